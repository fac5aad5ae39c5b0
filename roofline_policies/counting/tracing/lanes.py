"""How many lanes of a mask are active, without looking at the lanes.

A mask such as ``start + tl.arange(0, N) < bound`` selects an interval of lane numbers, so its active lanes follow from
``start``, ``N`` and ``bound``. A ``Box`` is such an interval for each dimension, and what it costs to count it is a few
scalar instructions instead of a reduction across warps. Inside a counted loop ``start`` moves by a fixed amount, and
the sum over the loop has a closed form that is evaluated once, after the loop.

Values are symbolic only in the one loop variable ``v``: ``Linear(offset, slope)`` stands for ``offset + slope * v``.
Whatever does not fit is ``OPAQUE`` and is counted by a reduction instead, not wrong but dearer. The limit: a tensor
whose lanes overflow their integer type, to Triton's overflow sanitizer an error of the kernel, is counted as if they
did not.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from roofline_policies.counting.tracing.scalars import Arithmetic, Scalar, bits


class Opaque:
    """A value whose lanes have no closed form here."""


OPAQUE = Opaque()


@dataclass(frozen=True)
class Linear:
    """The scalar ``offset + slope * v`` of the loop variable ``v``; ``slope`` 0 where no loop is meant.

    bits: of the integer type the kernel computes it in.
    """

    offset: Scalar
    slope: int = 0
    bits: int = 32


@dataclass(frozen=True)
class Axis:
    """A tensor that holds ``base + i`` at index ``i`` of dimension ``dim``, for ``extent`` indices.

    dim: counted from the last, -1; the other ``rank - 1`` dimensions broadcast.
    """

    base: Linear
    extent: int
    rank: int = 1
    dim: int = -1


@dataclass(frozen=True)
class Edge:
    """Lanes ``i`` with ``base + i < bound``, or ``<=`` where ``inclusive``."""

    base: Linear
    bound: Linear
    inclusive: bool

    @property
    def slope(self) -> int:
        """How the number of lanes below it changes with the loop variable, before clipping."""
        return self.bound.slope - self.base.slope


@dataclass(frozen=True)
class Known:
    """``lanes`` lanes, counted already."""

    lanes: Scalar


@dataclass(frozen=True)
class Interval:
    """Lanes of one dimension that lie below every edge of ``below`` and below no edge of ``skipped``."""

    extent: int
    below: tuple[Edge | Known, ...] = ()
    skipped: tuple[Edge | Known, ...] = ()

    @property
    def edges(self) -> tuple[Edge | Known, ...]:
        return self.below + self.skipped


@dataclass(frozen=True)
class Box:
    """A mask: an interval of lanes in each dimension of ``intervals``, all lanes of the others.

    intervals: keyed by dimension, counted from the last, -1.
    flags: scalar truth values; where one does not hold, no lane is active.
    """

    rank: int = 0
    intervals: dict[int, Interval] = field(default_factory=dict)
    flags: tuple[Any, ...] = ()

    @property
    def varies(self) -> frozenset[int]:
        """Dimensions whose interval moves with the loop variable."""
        return frozenset(
            dim
            for dim, interval in self.intervals.items()
            for edge in interval.edges
            if isinstance(edge, Edge) and edge.slope
        )


FULL = Box()
"""Every lane."""


def plus(left: Linear, right: Linear, sign: int, number: Arithmetic) -> Linear:
    """``left + right``, or ``left - right`` where ``sign`` is -1, computed as widely as the kernel does."""
    operation = number.add if sign > 0 else number.subtract
    width = max(left.bits, right.bits)
    one, other = (number.fit(side.offset, width) for side in (left, right))
    return Linear(operation(one, other), left.slope + sign * right.slope, width)


def intersect(left: Box, right: Box) -> Box | Opaque:
    """The lanes that are active in both."""
    intervals = dict(left.intervals)
    for dim, interval in right.intervals.items():
        mine = intervals.get(dim)
        if mine is None:
            intervals[dim] = interval
        elif mine.extent != interval.extent:
            # One of them has a single lane that broadcasts: its condition holds for all lanes or for none.
            return OPAQUE
        else:
            intervals[dim] = Interval(mine.extent, mine.below + interval.below, mine.skipped + interval.skipped)
    return Box(max(left.rank, right.rank), intervals, left.flags + right.flags)


def at(value: Linear, variable: Scalar, number: Arithmetic) -> Linear:
    """``value`` where the loop variable is ``variable``."""
    if not value.slope:
        return value
    width = max(bits(variable), value.bits)
    moved = Linear(number.multiply(number.fit(variable, width), value.slope), bits=width)
    return plus(Linear(value.offset, bits=value.bits), moved, 1, number)


def settle(box: Box, variable: Scalar, number: Arithmetic) -> Box:
    """``box`` in the iteration where the loop variable is ``variable``."""

    def settled(edges: tuple[Edge | Known, ...]) -> tuple[Edge | Known, ...]:
        return tuple(
            replace(edge, base=at(edge.base, variable, number), bound=at(edge.bound, variable, number))
            if isinstance(edge, Edge)
            else edge
            for edge in edges
        )

    intervals = {
        dim: replace(interval, below=settled(interval.below), skipped=settled(interval.skipped))
        for dim, interval in box.intervals.items()
    }
    return replace(box, intervals=intervals)


def edge_lanes(edge: Edge | Known, extent: int, number: Arithmetic) -> Scalar:
    """Lanes below ``edge`` among ``extent``, in one iteration: ``clip(bound - base, 0, extent)``."""
    if isinstance(edge, Known):
        return edge.lanes
    base, bound = edge.base.offset, edge.bound.offset
    gap = number.above(bound, base, max(edge.base.bits, edge.bound.bits))
    if not edge.inclusive:
        return number.at_most(gap, extent)
    return number.where_not_less(bound, base, number.add(number.at_most(gap, extent - 1), 1))


def _distance(edge: Edge, number: Arithmetic) -> Scalar:
    """``bound - base``, and one more where the edge is inclusive; of the offsets alone, in 64 bits."""
    width = max(edge.base.bits, edge.bound.bits)
    return number.add(number.distance(edge.bound.offset, edge.base.offset, width), int(edge.inclusive))


def interval_lanes(interval: Interval, number: Arithmetic) -> Scalar:
    """Active lanes of one dimension, in one iteration."""
    high: Scalar = interval.extent
    for edge in interval.below:
        high = number.least(high, edge_lanes(edge, interval.extent, number))
    if not interval.skipped:
        return high
    low: Scalar = 0
    for edge in interval.skipped:
        low = number.greatest(low, edge_lanes(edge, interval.extent, number))
    return number.greatest(number.subtract(high, low), 0)


def lanes(box: Box, shape: tuple[int, ...], number: Arithmetic) -> Scalar:
    """Active lanes of ``box`` broadcast to ``shape``, in one iteration (no slopes)."""
    total: Scalar = 1
    for position, size in enumerate(shape):
        interval = box.intervals.get(position - len(shape))
        if interval is None:
            total = number.multiply(total, size)
        elif interval.extent == size:
            total = number.multiply(total, interval_lanes(interval, number))
        else:  # one lane, broadcast along the dimension
            total = number.multiply(total, number.multiply(interval_lanes(interval, number), size))
    for truth in box.flags:
        total = number.multiply(total, number.flag(truth))
    return total


@dataclass(frozen=True)
class Loop:
    """``for v in range(start, stop, step)``."""

    start: Scalar
    stop: Scalar
    step: Scalar

    def trips(self, number: Arithmetic) -> Scalar:
        """How often the body runs, in 64 bits. A step that is not a constant is positive, as Triton requires."""
        step = number.wide(self.step)
        if isinstance(step, int) and step < 0:
            step, span = -step, self._span(self.stop, self.start, number)
        else:
            span = self._span(self.start, self.stop, number)
        trips = number.divide(number.add(span, number.subtract(step, 1)), step)
        return trips if isinstance(step, int) else number.where_positive(span, trips)

    def span(self, number: Arithmetic) -> Scalar:
        """``max(stop - start, 0)``, in 64 bits."""
        return self._span(self.start, self.stop, number)

    def _span(self, start: Scalar, stop: Scalar, number: Arithmetic) -> Scalar:
        return number.wide(number.above(stop, start, max(bits(start), bits(stop))))


def summable(box: Box) -> bool:
    """Whether the lanes of ``box`` summed over a loop have a closed form here.

    One dimension may move, all of its edges by the same amount an iteration and, of each kind, one edge only.
    """
    if not box.varies:
        return True
    if len(box.varies) > 1:
        return False
    (dim,) = box.varies
    interval = box.intervals[dim]
    slopes = {edge.slope for edge in interval.edges if isinstance(edge, Edge)}
    known = any(isinstance(edge, Known) for edge in interval.edges)
    return not known and len(slopes) == 1 and len(interval.below) <= 1 and len(interval.skipped) <= 1


def _reach(edge: Edge, loop: Loop, trips: Scalar, number: Arithmetic) -> tuple[Scalar, Scalar]:
    """``(p, s)`` with s > 0 such that the iterations, in some order k = 0, 1, ..., have ``p - s * k`` lanes below
    ``edge`` before clipping."""
    slope = edge.slope
    step = number.wide(loop.step)
    first = number.add(_distance(edge, number), number.multiply(slope, number.wide(loop.start)))
    change = number.multiply(slope, step)
    falling = (step < 0) == (slope > 0) if isinstance(step, int) else slope < 0
    if falling:
        return first, number.multiply(change, -1)
    last = number.add(first, number.multiply(change, number.subtract(trips, 1)))
    return last, change


def _clipped_sum(first: Scalar, fall: Scalar, trips: Scalar, extent: int, number: Arithmetic) -> Scalar:
    """Sum over k in [0, trips) of ``clip(first - fall * k, 0, extent)``, fall > 0.

    The terms are ``extent`` for the first ``whole`` values of k, then fall linearly until they reach 0 at k = ``some``.
    Where they fall by the extent itself, each iteration takes up where the last one stopped.
    """
    if isinstance(fall, int) and fall == extent:
        return number.clamp(first, 0, number.multiply(trips, extent))
    # More than this changes nothing, and could overflow below.
    first = number.clamp(first, 0, number.add(number.multiply(trips, fall), extent))
    whole = number.divide(number.greatest(number.add(number.subtract(first, extent), fall), 0), fall)
    whole = number.least(whole, trips)
    some = number.divide(number.greatest(number.add(first, number.subtract(fall, 1)), 0), fall)
    some = number.least(some, trips)
    partial = number.subtract(some, whole)
    # Sum of k over [whole, some): the product is even, its factors have opposite parity or one is zero.
    steps = number.divide(number.multiply(number.subtract(number.add(whole, some), 1), partial), 2)
    ramp = number.subtract(number.multiply(partial, first), number.multiply(fall, steps))
    return number.add(number.multiply(whole, extent), ramp)


def _sweeps(edge: Edge, loop: Loop, extent: int) -> bool:
    """Whether the loop goes block by block over ``range(start, stop)`` and the edge is its end: the usual loop."""
    plain = isinstance(edge.base.offset, int) and edge.base.offset == 0 and edge.base.slope == 1
    whole = isinstance(loop.step, int) and loop.step == extent
    return plain and whole and not edge.inclusive and not edge.bound.slope and edge.bound.offset is loop.stop


def lanes_over(box: Box, shape: tuple[int, ...], loop: Loop, number: Arithmetic) -> Scalar:
    """Active lanes of a summable ``box`` broadcast to ``shape``, summed over ``loop``; in 64 bits."""
    trips = loop.trips(number)
    fixed = replace(box, intervals={dim: one for dim, one in box.intervals.items() if dim not in box.varies})
    if not box.varies:
        return number.multiply(trips, number.wide(lanes(fixed, shape, number)))
    (dim,) = box.varies
    interval = box.intervals[dim]

    def total(edges: tuple[Edge | Known, ...], none: Scalar) -> Scalar:
        for edge in edges:
            assert isinstance(edge, Edge)  # summable() admits no other
            if _sweeps(edge, loop, interval.extent):
                return loop.span(number)
            return _clipped_sum(*_reach(edge, loop, trips, number), trips, interval.extent, number)
        return none

    moving = total(interval.below, number.multiply(trips, interval.extent))
    if interval.skipped:
        moving = number.subtract(moving, total(interval.skipped, 0))
        if interval.below:
            # Both edges move together, so either the upper one is above the lower one in every iteration or in none.
            upper, lower = (_distance(edge, number) for edge in interval.edges if isinstance(edge, Edge))
            gap = number.subtract(upper, lower)
            moving = number.where_positive(gap, moving)
    # A dimension of size 1 that is broadcast counts once for every lane it is broadcast to; leave it out of the rest.
    rest = tuple(size for position, size in enumerate(shape) if position - len(shape) != dim)
    others = {key if key > dim else key + 1: one for key, one in fixed.intervals.items()}
    copies = shape[dim] // interval.extent
    return number.multiply(
        moving, number.wide(number.multiply(lanes(replace(fixed, intervals=others), rest, number), copies))
    )
