"""What functions that run while a kernel is traced may use of the compiler, or of Triton's interpreter."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, TypeVar, cast

from roofline_policies.counting.tracing.scalars import Arithmetic

MARK = "roofline: "
"""What the names of marks begin with; no name in a kernel has a colon."""

Counts = Any
"""What a kernel has counted: a ``tl.tuple`` of ``slots.USED`` int64 scalars; of one where there is no ledger."""

_marking: ContextVar[bool] = ContextVar("marking", default=False)


@contextmanager
def marking() -> Iterator[None]:
    """While a kernel is traced for an audit: each statement that counts leaves a mark in the code."""
    token = _marking.set(True)
    try:
        yield
    finally:
        _marking.reset(token)


class Trace:
    """The compiler's state that a function here may use."""

    def __init__(self, semantic: Any, generator: Any) -> None:
        self.semantic = semantic
        self.generator = generator
        self.number = Arithmetic(semantic)

    @property
    def deferred(self) -> dict[str, tuple[int, int, tuple[int, ...]]]:
        """Sites of the function being traced that are counted after their loop: slot, units a lane, shape."""
        deferred: dict[str, tuple[int, int, tuple[int, ...]]] = vars(self.semantic).setdefault("roofline_deferred", {})
        return deferred

    @property
    def used(self) -> set[int]:
        """Slots the kernel counts in. Kept in the one dictionary that all functions of a compilation share."""
        used: set[int] = self.semantic.builder.codegen_fns.setdefault("roofline_slots", set())
        return used

    def mark(self, *what: object) -> None:
        """Leave a constant that nothing uses, named after what is counted here, where an audit asks for it."""
        if _marking.get():
            builder = self.semantic.builder
            here = builder.get_loc()
            builder.set_loc(builder.create_name_loc(MARK + " ".join(map(str, what)), here))
            builder.get_int64(0)
            builder.set_loc(here)


def _interpreter() -> Any:
    from triton.runtime.interpreter import interpreter_semantic

    return interpreter_semantic


F = TypeVar("F", bound=Callable[..., Any])


def traced(function: F) -> F:
    """Make ``function`` callable from inside a kernel, compiled or interpreted; its first argument is the Trace."""

    @wraps(function)
    def call(*args: Any, _semantic: Any = None, _generator: Any = None, **kwargs: Any) -> Any:
        return function(Trace(_semantic or _interpreter(), _generator), *args, **kwargs)

    call.__triton_builtin__ = True  # type: ignore[attr-defined]  # the mark by which Triton knows what it may call
    call.signature = inspect.signature(call, follow_wrapped=False)  # type: ignore[attr-defined]  # Triton reads it
    return cast(F, call)
