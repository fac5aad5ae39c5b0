"""Integer arithmetic while a kernel is traced: Python integers fold, tensors go through Triton's own semantics.

The same code serves the compiler, where an operation emits IR, and Triton's interpreter, where it computes.
"""

from __future__ import annotations

from typing import Any, TypeGuard

import triton.language as tl

Scalar = Any
"""A Python int, or a scalar ``tl.tensor`` of a signed integer type."""

_INT32 = range(-(2**31), 2**31)


def unwrap(value: Any) -> Any:
    """The Python value of a constexpr; anything else as it is."""
    return value.value if isinstance(value, tl.constexpr) else value


def is_block(value: Any) -> TypeGuard[tl.tensor]:
    """Whether ``value`` is a tensor with at least one dimension."""
    return isinstance(value, tl.tensor) and value.type.is_block()


def is_integer(value: Any) -> bool:
    """Whether ``value`` is a Scalar: its comparisons are those of signed integers."""
    if isinstance(value, bool):
        return False
    if isinstance(value, int):
        return True
    return isinstance(value, tl.tensor) and not value.type.is_block() and bool(value.dtype.is_int_signed())


def is_flag(value: Any) -> bool:
    """Whether ``value`` is a scalar truth value."""
    if isinstance(value, bool):
        return True
    return isinstance(value, tl.tensor) and not value.type.is_block() and value.dtype == tl.int1


def bits(value: Scalar) -> int:
    """The width of the type that Triton computes with ``value`` in."""
    if isinstance(value, int):
        return 32 if value in _INT32 else 64
    return int(value.dtype.primitive_bitwidth)


class Arithmetic:
    """Operations on Scalars; two Python ints give a Python int and emit nothing."""

    def __init__(self, semantic: Any) -> None:
        self._semantic = semantic

    def tensor(self, value: Scalar) -> tl.tensor:
        """``value`` as a scalar tensor: int32 where it fits, else int64 (Triton would take uint32 between)."""
        if isinstance(value, int):
            return self._semantic.scalar_constant(value, tl.int32 if value in _INT32 else tl.int64)
        return value

    def wide(self, value: Scalar) -> Scalar:
        """``value`` in 64 bits; a Python int stays one."""
        return value if isinstance(value, int) else self._semantic.cast(value, tl.int64)

    def fit(self, value: Scalar, width: int) -> Scalar:
        """``value`` in at least ``width`` bits, 32 or 64, as Triton promotes it; a Python int stays one."""
        if isinstance(value, int) or width < 32 or bits(value) >= width:
            return value
        return self._semantic.cast(value, tl.int64 if width > 32 else tl.int32)

    def add(self, left: Scalar, right: Scalar) -> Scalar:
        if isinstance(left, int) and isinstance(right, int):
            return left + right
        if isinstance(left, int) and left == 0:
            return right
        if isinstance(right, int) and right == 0:
            return left
        return self._semantic.add(self.tensor(left), self.tensor(right), False)

    def subtract(self, left: Scalar, right: Scalar) -> Scalar:
        if isinstance(left, int) and isinstance(right, int):
            return left - right
        if isinstance(right, int) and right == 0:
            return left
        return self._semantic.sub(self.tensor(left), self.tensor(right), False)

    def multiply(self, left: Scalar, right: Scalar) -> Scalar:
        if isinstance(left, int) and isinstance(right, int):
            return left * right
        for factor, other in ((left, right), (right, left)):
            if isinstance(factor, int) and factor in (0, 1):
                return other if factor else 0
        return self._semantic.mul(self.tensor(left), self.tensor(right), False)

    def divide(self, dividend: Scalar, divisor: Scalar) -> Scalar:
        """Whole quotient of a dividend that is not negative and a divisor that is positive."""
        if isinstance(dividend, int) and isinstance(divisor, int):
            return dividend // divisor
        if isinstance(divisor, int) and divisor & (divisor - 1) == 0:
            shift = divisor.bit_length() - 1
            return self._semantic.ashr(dividend, self.tensor(shift)) if shift else dividend
        return self._semantic.floordiv(self.tensor(dividend), self.tensor(divisor))

    def least(self, left: Scalar, right: Scalar) -> Scalar:
        if isinstance(left, int) and isinstance(right, int):
            return min(left, right)
        return tl.core.minimum(self.tensor(left), self.tensor(right), _semantic=self._semantic)

    def greatest(self, left: Scalar, right: Scalar) -> Scalar:
        if isinstance(left, int) and isinstance(right, int):
            return max(left, right)
        return tl.core.maximum(self.tensor(left), self.tensor(right), _semantic=self._semantic)

    def above(self, high: Scalar, low: Scalar, width: int) -> Scalar:
        """``max(high - low, 0)``, for integers that are compared in ``width`` bits.

        An unsigned integer of that width: a difference of two int32 fits into a uint32 where it is not negative, so
        nothing has to be widened. Wider arithmetic on what a loop uses too costs that loop instructions.
        """
        if isinstance(high, int) and isinstance(low, int):
            return max(high - low, 0)
        high, low = (self.tensor(self.fit(value, max(width, 32))) for value in (high, low))
        difference = self.subtract(self.greatest(high, low), low)
        return self._semantic.cast(difference, tl.uint64 if width > 32 else tl.uint32)

    def distance(self, high: Scalar, low: Scalar, width: int) -> Scalar:
        """``high - low`` in 64 bits, for integers compared in ``width`` bits; at most 2**62 either way."""
        if width <= 32 and not (isinstance(high, int) and isinstance(low, int)):
            return self.subtract(self.wide(high), self.wide(low))
        return self.subtract(self._limited(self.above(high, low, 64)), self._limited(self.above(low, high, 64)))

    def _limited(self, value: Scalar) -> Scalar:
        if isinstance(value, int):
            return min(value, 2**62)
        limit = self._semantic.scalar_constant(2**62, tl.uint64)
        return self._semantic.cast(tl.core.minimum(value, limit, _semantic=self._semantic), tl.int64)

    def at_most(self, value: Scalar, limit: int) -> Scalar:
        """The smaller one of what ``above`` gave and a limit that fits in 31 bits, as a signed integer."""
        if isinstance(value, int):
            return min(value, limit)
        capped = tl.core.minimum(value, self._semantic.scalar_constant(limit, value.dtype), _semantic=self._semantic)
        return self._semantic.cast(capped, tl.int32)

    def where_not_less(self, left: Scalar, right: Scalar, value: Scalar) -> Scalar:
        """``value`` where ``left >= right``, else 0."""
        if isinstance(left, int) and isinstance(right, int):
            return value if left >= right else 0
        holds = self._semantic.greater_equal(self.tensor(left), self.tensor(right))
        return self.multiply(value, self._semantic.cast(holds, tl.int32))

    def clamp(self, value: Scalar, low: Scalar, high: Scalar) -> Scalar:
        return self.least(self.greatest(value, low), high)

    def where_positive(self, condition: Scalar, value: Scalar) -> Scalar:
        """``value`` where ``condition`` > 0, else 0."""
        if isinstance(condition, int):
            return value if condition > 0 else 0
        holds = self._semantic.greater_than(condition, self.tensor(0))
        return self.multiply(value, self._semantic.cast(holds, tl.int64))

    def flag(self, value: Any) -> Scalar:
        """1 for a truth value that holds, 0 for one that does not."""
        return int(value) if isinstance(value, bool) else self._semantic.cast(value, tl.int32)
