"""What stands around a function under ``triton.jit``: what is looked through, and what to pass instead of the rest."""

from __future__ import annotations

import inspect
import reprlib
from collections.abc import Iterator
from types import FunctionType
from typing import Any

from triton.runtime.autotuner import Autotuner, Heuristics
from triton.runtime.jit import JITFunction

from roofline_policies.counting.rewriting.callees import Kernel
from roofline_policies.errors import Uncountable

_INWARD = ("fn", "kernel", "__wrapped__", "original", "src")
"""Attributes in which wrappers keep what they wrap: Triton's and inductor's autotuners; ``torch.library.wrap_triton``;
``functools.wraps``; our own; what is compiled already."""

_MOST = 64
"""Objects that are looked at before no way in is said to be there."""


def innermost(kernel: Any, counting: type) -> Kernel:
    """The function under ``triton.jit`` in a chain of Triton's autotuners and heuristics, which launch it as it is.

    counting: the class of kernels that count already.

    Raises:
        Uncountable: it is none; the message says what to pass instead, where there is a kernel in it.
    """
    inner = kernel
    while isinstance(inner, Autotuner | Heuristics):
        inner = inner.fn
    if isinstance(inner, counting):
        raise Uncountable(way_in(inner)[1].fn.__qualname__, "kernel", "counts already")
    if isinstance(inner, Kernel):
        if isinstance(inner, JITFunction) and inner.is_gluon():
            raise Uncountable(inner.fn.__qualname__, "gluon.jit", "only kernels under triton.jit can be counted")
        return inner
    name = str(getattr(inner, "__qualname__", None) or getattr(inner, "__name__", None) or reprlib.repr(inner))
    raise Uncountable(name, type(inner).__name__, f"is no function under triton.jit{_instead(inner)}")


def _instead(wrapper: Any) -> str:
    path, kernel = way_in(wrapper)
    if kernel is not None:
        return f"; it launches {kernel.fn.__qualname__} in a way of its own: pass its {path}"
    function = inspect.unwrap(wrapper) if callable(wrapper) else None
    function = getattr(wrapper, "_init_fn", function)  # of an operator that torch.library.triton_op made
    launched = sorted(set(_launched(function))) if isinstance(function, FunctionType) else []
    return f"; count what it launches: {', '.join(launched)}" if launched else ""


def way_in(wrapper: Any) -> tuple[str, Any]:
    """The attributes that lead from a wrapper to a kernel (``.fn.fn``), and it; or None. Runs none of their code."""
    pending, seen = [("", wrapper)], {id(wrapper)}
    for path, value in pending:  # which grows meanwhile
        if isinstance(value, Kernel):
            return path, value
        for name in _INWARD:
            inner = inspect.getattr_static(value, name, None)
            if inner is not None and not isinstance(inner, property) and id(inner) not in seen:
                seen.add(id(inner))
                pending.append((f"{path}.{name}", inner))
        if len(seen) > _MOST:
            break
    return "", None


def _launched(function: FunctionType, deep: int = 3) -> Iterator[str]:
    """The names of the kernels that a Python function refers to, itself or in the functions it was made around."""
    free = inspect.getclosurevars(function)
    for name, value in {**free.globals, **free.nonlocals}.items():
        if way_in(value)[1] is not None:
            yield name
    for value in free.nonlocals.values():
        if isinstance(value, FunctionType) and deep:
            yield from _launched(value, deep - 1)
