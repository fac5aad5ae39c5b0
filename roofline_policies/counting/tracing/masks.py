"""The shapes of masks and offsets, computed while a kernel is traced; ``traced`` counts with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import triton.language as tl

from roofline_policies.counting.tracing.lanes import (
    FULL,
    OPAQUE,
    Axis,
    Box,
    Edge,
    Interval,
    Known,
    Linear,
    Opaque,
    edge_lanes,
    intersect,
    interval_lanes,
    plus,
)
from roofline_policies.counting.tracing.scalars import Scalar, bits, is_flag, is_integer, unwrap
from roofline_policies.counting.tracing.trace import Trace, traced

Shape = Any
"""Opaque | Linear | Axis | Box, or a value of the kernel's own that is yet to be looked at."""


def _shape(value: Shape) -> Opaque | Linear | Axis | Box:
    value = unwrap(value)
    if isinstance(value, Opaque | Linear | Axis | Box):
        return value
    if value is None or value is True:
        return FULL
    if is_flag(value):
        return Box(flags=(value,))
    return Linear(value, bits=bits(value)) if is_integer(value) else OPAQUE


def as_box(value: Shape) -> Opaque | Box:
    shape = _shape(value)
    return shape if isinstance(shape, Box) else OPAQUE


@traced
def variable(trace: Trace) -> Linear:
    """The variable of the loop whose sites are counted after it."""
    return Linear(0, 1)


@traced
def arange(trace: Trace, start: Any, end: Any) -> Axis:
    start, end = unwrap(start), unwrap(end)
    return Axis(Linear(start), end - start)


@traced
def add(trace: Trace, left: Shape, right: Shape) -> Shape:
    left, right = _shape(left), _shape(right)
    if isinstance(left, Linear) and isinstance(right, Axis):
        left, right = right, left
    return _sum(trace, left, right, 1)


@traced
def subtract(trace: Trace, left: Shape, right: Shape) -> Shape:
    return _sum(trace, _shape(left), _shape(right), -1)


def _sum(trace: Trace, left: Shape, right: Shape, sign: int) -> Shape:
    match left, right:
        case Linear(), Linear():
            return plus(left, right, sign, trace.number)
        case Axis(base=base), Linear():
            return replace(left, base=plus(base, right, sign, trace.number))
    return OPAQUE


@traced
def multiply(trace: Trace, left: Shape, right: Shape) -> Shape:
    """A product of scalars; of one that moves with the loop only by a constant."""
    left, right = _shape(left), _shape(right)
    if not isinstance(left, Linear) or not isinstance(right, Linear):
        return OPAQUE
    if left.slope:
        left, right = right, left
    if left.slope or (right.slope and not isinstance(left.offset, int)):
        return OPAQUE
    number, width = trace.number, max(left.bits, right.bits)
    one, other = (number.fit(side.offset, width) for side in (left, right))
    return Linear(number.multiply(one, other), right.slope * left.offset if right.slope else 0, width)


def _below(axis: Axis, bound: Linear, *, inclusive: bool) -> Box:
    return Box(axis.rank, {axis.dim: Interval(axis.extent, below=(Edge(axis.base, bound, inclusive),))})


def _not_below(axis: Axis, bound: Linear, *, inclusive: bool) -> Box:
    return Box(axis.rank, {axis.dim: Interval(axis.extent, skipped=(Edge(axis.base, bound, inclusive),))})


_COMPARISONS = {
    "<": "less_than",
    "<=": "less_equal",
    ">": "greater_than",
    ">=": "greater_equal",
    "==": "equal",
    "!=": "not_equal",
}


def _flag(trace: Trace, left: Scalar, operator: str, right: Scalar) -> Box:
    comparison = getattr(trace.semantic, _COMPARISONS[operator])
    return Box(flags=(comparison(trace.number.tensor(left), trace.number.tensor(right)),))


_MIRRORED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "==": "==", "!=": "!="}


@traced
def compare(trace: Trace, left: Shape, operator: str, right: Shape) -> Shape:
    operator = unwrap(operator)
    left, right = _shape(left), _shape(right)
    if isinstance(left, Linear) and isinstance(right, Axis):
        left, right, operator = right, left, _MIRRORED[operator]
    if isinstance(left, Linear) and isinstance(right, Linear) and not left.slope and not right.slope:
        return _flag(trace, left.offset, operator, right.offset)
    if not isinstance(left, Axis) or not isinstance(right, Linear):
        return OPAQUE
    match operator:
        case "<":
            return _below(left, right, inclusive=False)
        case "<=":
            return _below(left, right, inclusive=True)
        case ">=":
            return _not_below(left, right, inclusive=False)
        case ">":
            return _not_below(left, right, inclusive=True)
        case "==":
            return intersect(_below(left, right, inclusive=True), _not_below(left, right, inclusive=False))
    return OPAQUE


@traced
def both(trace: Trace, left: Shape, right: Shape) -> Shape:
    return _both(left, right)


def _both(left: Shape, right: Shape) -> Opaque | Box:
    one, other = as_box(left), as_box(right)
    if isinstance(one, Opaque) or isinstance(other, Opaque):
        return OPAQUE
    return intersect(one, other)


@traced
def conjunction(trace: Trace, left: Shape, right: Shape) -> Shape:
    """``left and right``: compiled, the lanes active in both; interpreted, what Python makes of it.

    A block of more than one element is true to the interpreter, so ``and`` gives what stands to its right.
    """
    shape = _shape(left)
    scalar = isinstance(shape, Linear) or (isinstance(shape, Box) and not shape.rank)
    if scalar or trace.generator is not None:
        return _both(left, right)
    if not isinstance(shape, Box) or shape.flags:  # with flags it may be a block, or a scalar that decided before
        return OPAQUE
    return _shape(right) if any(interval.extent > 1 for interval in shape.intervals.values()) else OPAQUE


@traced
def cast(trace: Trace, value: Shape, target: Any) -> Shape:
    """``value`` as integers of another width; narrower ones may be other numbers."""
    shape, target = _shape(value), unwrap(target)
    if isinstance(shape, Box):
        return shape if target == tl.int1 else OPAQUE
    if not isinstance(shape, Axis | Linear) or not target.is_int_signed():
        return OPAQUE
    start, width = shape.base if isinstance(shape, Axis) else shape, int(target.primitive_bitwidth)
    if width < start.bits or (start.slope and width < 64):  # which of the two the loop's variable is, is not known here
        return OPAQUE
    start = replace(start, bits=width)
    return replace(shape, base=start) if isinstance(shape, Axis) else start


def _moved(shape: Shape, rank: int, target: Callable[[int], int], new_rank: int) -> Shape:
    """``shape`` with dimension ``p`` (from the first) of ``rank`` at ``target(p)`` of ``new_rank``."""
    if isinstance(shape, Axis):
        return replace(shape, rank=new_rank, dim=target(rank + shape.dim) - new_rank)
    if isinstance(shape, Box):
        return Box(new_rank, {target(rank + dim) - new_rank: one for dim, one in shape.intervals.items()}, shape.flags)
    return OPAQUE


@traced
def index(trace: Trace, value: Shape, pattern: str) -> Shape:
    """``value[pattern]``, the pattern of ``:`` and ``None`` written as a string of ``:`` and ``+``."""
    shape, pattern = _shape(value), unwrap(pattern)
    kept = [position for position, kind in enumerate(pattern) if kind == ":"]
    rank = getattr(shape, "rank", -1)
    return _moved(shape, rank, kept.__getitem__, len(pattern)) if rank == len(kept) else OPAQUE


@traced
def expand_dims(trace: Trace, value: Shape, axis: Any) -> Shape:
    shape, axis = _shape(value), unwrap(axis)
    rank = getattr(shape, "rank", 0)
    if not isinstance(axis, int) or not rank:
        return OPAQUE
    axis %= rank + 1
    return _moved(shape, rank, lambda position: position + (position >= axis), rank + 1)


@traced
def transpose(trace: Trace, value: Shape) -> Shape:
    shape = _shape(value)
    return _moved(shape, 2, lambda position: 1 - position, 2) if getattr(shape, "rank", 0) == 2 else OPAQUE


@traced
def given(trace: Trace, value: Any, packed: Any) -> Shape:
    """The shape of a helper's argument, from what ``pack`` made of it at the call."""
    packed = unwrap(packed)
    if packed is None:
        return _shape(value)
    kind, *scalars = [unwrap(part) for part in packed]
    if kind[0] == "axis":
        return Axis(Linear(scalars[0], bits=64), *kind[1:])
    _, rank, dims, flags = kind
    remaining = iter(scalars)
    intervals = {
        dim: Interval(extent, below=(Known(next(remaining)),), skipped=(Known(next(remaining)),))
        for dim, extent in dims
    }
    return Box(rank, intervals, tuple(next(remaining) for _ in range(flags)))


@traced
def pack(trace: Trace, value: Shape) -> Any:
    """``value`` as an argument for a helper: a tuple of a constant that tells its form and of its scalars, or None."""
    shape = _shape(value)
    if isinstance(shape, Axis):
        parts: list[Any] = [("axis", shape.extent, shape.rank, shape.dim), shape.base.offset]
    elif isinstance(shape, Box) and (shape.intervals or shape.flags):
        parts = [("box", shape.rank, tuple((d, one.extent) for d, one in shape.intervals.items()), len(shape.flags))]
        for interval in shape.intervals.values():
            low: Scalar = 0
            for edge in interval.skipped:
                low = trace.number.greatest(low, edge_lanes(edge, interval.extent, trace.number))
            parts += [interval_lanes(replace(interval, skipped=()), trace.number), low]
        parts += shape.flags
    else:
        return None
    return tuple(part if isinstance(part, tl.tensor) else tl.constexpr(part) for part in parts)


def window(extents: tuple[int, ...], limits: Any, offsets: Any, checked: Any) -> Opaque | Box:
    """The lanes of a tile of ``extents`` at ``offsets`` that lie inside ``limits``, in the dimensions ``checked``."""
    box: Opaque | Box = FULL
    for dim in checked:
        offset, limit = _shape(offsets[dim]), _shape(limits[dim])
        if not isinstance(offset, Linear) or not isinstance(limit, Linear):
            return OPAQUE
        axis = Axis(offset, extents[dim], len(extents), dim - len(extents))
        for side in (_below(axis, limit, inclusive=False), _not_below(axis, Linear(0), inclusive=False)):
            box = intersect(box, side) if isinstance(box, Box) else box
    return box
