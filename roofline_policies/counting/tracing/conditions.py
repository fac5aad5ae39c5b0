"""What a kernel asks while it is traced: what is evaluated, which counts hold, and whether it is refused."""

from __future__ import annotations

from typing import Any, NoReturn

import triton.language as tl

from roofline_policies.counting.rewriting.callees import Kernel, is_of_the_language
from roofline_policies.counting.tracing.scalars import unwrap
from roofline_policies.counting.tracing.trace import Counts, Trace, traced
from roofline_policies.errors import Uncountable


@traced
def method(
    trace: Trace, receiver: Any, name: str, kernel: str, construct: str, file: str, line: int, text: str
) -> None:
    """Refuse a function that ``receiver`` holds: to the source it looked like a method of a value.

    Raises:
        Uncountable: it is under ``triton.jit``, and nothing in it is counted.
    """
    function = unwrap(getattr(unwrap(receiver), unwrap(name), None))
    function = getattr(function, "original", function)
    if isinstance(function, Kernel) and not is_of_the_language(function):
        why = f"{function.fn.__qualname__} is held by an argument; pass it as an argument of its own"
        where = {"file": unwrap(file), "line": unwrap(line), "text": unwrap(text)}
        raise Uncountable(unwrap(kernel), unwrap(construct), why, **where)


@traced
def refuse(trace: Trace, kernel: str, construct: str, why: str, file: str, line: int, text: str) -> NoReturn:
    """Refuse the kernel: what stands here cannot be counted, and here it is compiled."""
    told = map(unwrap, (kernel, construct, why))
    raise Uncountable(*told, file=unwrap(file), line=unwrap(line), text=unwrap(text))


@traced
def where(trace: Trace, condition: Any, counts: Counts, otherwise: Counts) -> Counts:
    """``counts`` where a scalar condition holds, else ``otherwise``; both have been computed."""
    condition = unwrap(condition)
    if not isinstance(condition, tl.tensor):
        return counts if condition else otherwise
    holds = trace.semantic.cast(condition, tl.int1)
    return tl.tuple([trace.semantic.where(holds, one, other) for one, other in zip(counts, otherwise, strict=True)])


@traced
def reached(trace: Trace, operator: str, *earlier: Any) -> bool:
    """Whether an operand of ``and`` or ``or`` is evaluated, given the ones before it.

    Compiled code evaluates all operands but those that a constant makes unnecessary; the interpreter is Python.
    """
    stops = unwrap(operator) == "or"
    for operand in map(unwrap, earlier):
        if isinstance(operand, tl.tensor) and trace.generator is not None:
            continue
        if bool(operand) is stops:
            return False
    return True
