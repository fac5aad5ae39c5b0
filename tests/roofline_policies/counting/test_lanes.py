"""Closed forms of lanes against looking at every lane in every iteration."""

from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roofline_policies.counting.tracing.lanes import (
    FULL,
    OPAQUE,
    Axis,
    Box,
    Edge,
    Interval,
    Known,
    Linear,
    Loop,
    edge_lanes,
    intersect,
    interval_lanes,
    lanes,
    lanes_over,
    plus,
    settle,
    summable,
)
from roofline_policies.counting.tracing.scalars import Arithmetic

INT64 = range(-(2**63), 2**63)


class Int64(Arithmetic):
    """Python integers that must stay in 64 bits, as they have to in a kernel."""

    def __init__(self) -> None:
        super().__init__(None)

    def add(self, left: int, right: int) -> int:
        return self._kept(super().add(left, right))

    def subtract(self, left: int, right: int) -> int:
        return self._kept(super().subtract(left, right))

    def multiply(self, left: int, right: int) -> int:
        return self._kept(super().multiply(left, right))

    def _kept(self, value: int) -> int:
        assert value in INT64
        return value


NUMBER = Int64()

# --- looking at every lane --------------------------------------------------------------------------------------------


def holds(edge: Edge | Known, lane: int, variable: int) -> bool:
    """Whether ``lane`` lies below ``edge``."""
    if isinstance(edge, Known):
        return lane < edge.lanes
    at = edge.base.offset + edge.base.slope * variable + lane
    bound = edge.bound.offset + edge.bound.slope * variable
    return at <= bound if edge.inclusive else at < bound


def is_active(interval: Interval, lane: int, variable: int) -> bool:
    lane = lane if interval.extent > 1 else 0
    below = all(holds(edge, lane, variable) for edge in interval.below)
    return below and not any(holds(edge, lane, variable) for edge in interval.skipped)


def brute(box: Box, shape: tuple[int, ...], variable: int) -> int:
    if not all(box.flags):
        return 0
    return sum(
        all(is_active(one, lane[dim], variable) for dim, one in box.intervals.items())
        for lane in product(*map(range, shape))
    )


def iterations(loop: Loop) -> range:
    return range(loop.start, loop.stop, loop.step)


# --- what is drawn ----------------------------------------------------------------------------------------------------

numbers = st.integers(-12, 12)
steps = st.integers(-7, 7).filter(bool)
loops = st.builds(Loop, numbers, numbers, steps)


@st.composite
def edges(draw: st.DrawFn, slopes: st.SearchStrategy[int], change: int | None = None) -> Edge:
    """An edge; where ``change`` is given, its lanes change by it from one value of the variable to the next."""
    base = draw(slopes)
    bound = draw(slopes) if change is None else base + change
    return Edge(Linear(draw(numbers), base), Linear(draw(numbers), bound), draw(st.booleans()))


def intervals(extent: int, edge: st.SearchStrategy[Any], most: int) -> st.SearchStrategy[Interval]:
    several = st.lists(edge, max_size=most).map(tuple)
    return st.builds(Interval, st.just(extent), several, several)


@st.composite
def masks(draw: st.DrawFn, *, moving: bool) -> tuple[Box, tuple[int, ...]]:
    """A mask of up to three dimensions and what it is broadcast to; ``moving``: in one dimension, a moving window."""
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)))
    still = st.one_of(edges(st.just(0)), edges(st.integers(-2, 2), 0), st.integers(0, 6).map(Known))
    chosen: dict[int, Interval] = {}
    mover = draw(st.integers(-len(shape), -1)) if moving else 0
    for dim in range(-len(shape), 0):
        extent = draw(st.sampled_from([1, shape[dim]]))
        if dim == mover:
            change = draw(st.integers(-5, 5).filter(bool))
            chosen[dim] = draw(intervals(extent, edges(st.integers(-2, 2), change), 1))
        elif draw(st.booleans()):
            known = st.integers(0, extent).map(Known)
            chosen[dim] = draw(intervals(extent, still.filter(lambda edge: isinstance(edge, Edge)) | known, 2))
    return Box(len(shape), chosen, tuple(draw(st.lists(st.booleans(), max_size=2)))), shape


# --- one iteration ----------------------------------------------------------------------------------------------------


@given(edges(st.just(0)), st.integers(1, 9))
def test_lanes_below_an_edge(edge: Edge, extent: int) -> None:
    assert edge_lanes(edge, extent, NUMBER) == sum(holds(edge, lane, 0) for lane in range(extent))


@given(st.integers(1, 9).flatmap(lambda extent: intervals(extent, edges(st.just(0)), 3)))
def test_lanes_of_an_interval(interval: Interval) -> None:
    expected = sum(
        all(holds(edge, lane, 0) for edge in interval.below)
        and not any(holds(edge, lane, 0) for edge in interval.skipped)
        for lane in range(interval.extent)
    )
    assert interval_lanes(interval, NUMBER) == expected


@given(masks(moving=False) | masks(moving=True), st.integers(-9, 9))
def test_lanes_of_a_mask_in_one_iteration(mask: tuple[Box, tuple[int, ...]], variable: int) -> None:
    box, shape = mask
    assert lanes(settle(box, variable, NUMBER), shape, NUMBER) == brute(box, shape, variable)


@given(
    base=st.integers(-(2**63) + 1, 2**63 - 1025),
    bound=st.integers(-(2**63), 2**63 - 1),
    extent=st.integers(1, 1024),
    inclusive=st.booleans(),
)
def test_bounds_anywhere_in_64_bits_do_not_overflow(base: int, bound: int, extent: int, inclusive: bool) -> None:
    edge = Edge(Linear(base), Linear(bound), inclusive)
    assert edge_lanes(edge, extent, NUMBER) == min(max(bound + inclusive - base, 0), extent)


def test_every_lane_of_a_full_mask() -> None:
    assert lanes(FULL, (4, 5), NUMBER) == 20
    assert lanes(FULL, (), NUMBER) == 1  # a scalar
    assert lanes(Box(flags=(True, False)), (4,), NUMBER) == 0


# --- over a loop ------------------------------------------------------------------------------------------------------


@given(loops)
def test_trips_of_a_loop(loop: Loop) -> None:
    assert loop.trips(NUMBER) == len(iterations(loop))


@settings(max_examples=400)
@given(masks(moving=True), loops)
def test_lanes_of_a_moving_mask_over_a_loop(mask: tuple[Box, tuple[int, ...]], loop: Loop) -> None:
    box, shape = mask
    assert summable(box)
    assert lanes_over(box, shape, loop, NUMBER) == sum(brute(box, shape, v) for v in iterations(loop))


@given(masks(moving=False), loops)
def test_lanes_of_a_mask_that_stays_over_a_loop(mask: tuple[Box, tuple[int, ...]], loop: Loop) -> None:
    box, shape = mask
    assert summable(box)
    assert lanes_over(box, shape, loop, NUMBER) == sum(brute(box, shape, v) for v in iterations(loop))


@given(numbers, numbers, st.integers(1, 6), st.booleans(), st.integers(-1, 1), st.integers(0, 1))
def test_the_usual_loop(start: int, stop: int, extent: int, inclusive: bool, offset: int, skew: int) -> None:
    """``for start in range(a, b, BLOCK)`` with ``start + arange < b``, and what is almost that."""
    edge = Edge(Linear(offset, 1), Linear(stop, skew), inclusive)
    box, loop = Box(1, {-1: Interval(extent, (edge,))}), Loop(start, stop, extent)
    assert lanes_over(box, (extent,), loop, NUMBER) == sum(brute(box, (extent,), v) for v in iterations(loop))


int32 = st.integers(-(2**31), 2**31 - 1)


@given(
    base=int32,
    bound=int32,
    slope=st.sampled_from([-1, 1]),
    extent=st.sampled_from([1, 16, 1024]),
    start=int32,
    trips=st.integers(0, 50),
    step=st.integers(1, 2**24),
    inclusive=st.booleans(),
)
def test_sums_of_32_bit_values_do_not_overflow(
    base: int, bound: int, slope: int, extent: int, start: int, trips: int, step: int, inclusive: bool
) -> None:
    edge = Edge(Linear(base, slope), Linear(bound), inclusive)
    box = Box(1, {-1: Interval(extent, (edge,))})
    loop = Loop(start, start + trips * step, step)
    expected = sum(
        min(max(bound + inclusive - base - slope * v, 0), extent) for v in range(start, start + trips * step, step)
    )
    assert lanes_over(box, (extent,), loop, NUMBER) == expected


@pytest.mark.parametrize("step", [1, 11, 16, 100])
@pytest.mark.parametrize("inclusive", [False, True])
@pytest.mark.parametrize("bound", [2**63 - 1, 2**63 - 17, 2**62])
def test_a_bound_that_stands_for_no_limit(bound: int, inclusive: bool, step: int) -> None:
    box = Box(1, {-1: Interval(16, (Edge(Linear(0, 1), Linear(bound), inclusive),))})
    assert lanes_over(box, (16,), Loop(0, 21, step), NUMBER) == 16 * len(range(0, 21, step))


# --- what has no closed form ------------------------------------------------------------------------------------------


def moving(*slopes: int) -> tuple[Edge, ...]:
    return tuple(Edge(Linear(0, slope), Linear(9), False) for slope in slopes)


@pytest.mark.parametrize(
    "intervals_by_dimension",
    [
        {-1: Interval(4, moving(1)), -2: Interval(4, moving(1))},
        {-1: Interval(4, moving(1, 1))},
        {-1: Interval(4, moving(1), moving(2))},
        {-1: Interval(4, moving(1), moving(0))},
        {-1: Interval(4, (), moving(1, 1))},
        {-1: Interval(4, (*moving(1), Known(2)))},
        {-1: Interval(4, moving(1), (Known(2),))},
    ],
    ids=["two dimensions", "two ends", "two speeds", "one end stays", "two beginnings", "known", "known beginning"],
)
def test_what_is_not_summable(intervals_by_dimension: dict[int, Interval]) -> None:
    assert not summable(Box(2, intervals_by_dimension))


def test_what_is_summable() -> None:
    still = Interval(4, (*moving(0, 0), Known(2)), (Known(1), *moving(0)))
    assert summable(FULL)
    assert summable(Box(2, {-1: still, -2: still}, (True,)))
    assert summable(Box(2, {-1: Interval(4, moving(3), moving(3)), -2: still}, (True,)))
    together = Edge(Linear(0, 5), Linear(3, 5), False)  # base and bound move alike: its lanes stay
    assert summable(Box(2, {-1: Interval(4, (together, together)), -2: Interval(4, moving(1))}))


# --- how masks are put together ---------------------------------------------------------------------------------------


@given(masks(moving=False), masks(moving=True), numbers)
def test_an_intersection_holds_where_both_do(
    one: tuple[Box, tuple[int, ...]], other: tuple[Box, tuple[int, ...]], variable: int
) -> None:
    (left, shape), (right, of_right) = one, other
    both = intersect(left, right)
    extents = {
        dim: {box.intervals[dim].extent for box in (left, right) if dim in box.intervals} for dim in (-3, -2, -1)
    }
    assert (both is OPAQUE) == any(len(two) > 1 for two in extents.values())
    if not isinstance(both, Box):
        return
    rank = max(len(shape), len(of_right))
    whole = tuple(max(extents[dim - rank] or {2}) for dim in range(rank))

    def active(box: Box, lane: tuple[int, ...]) -> bool:
        return all(box.flags) and all(is_active(i, lane[d], variable) for d, i in box.intervals.items())

    expected = sum(active(left, lane) and active(right, lane) for lane in product(*map(range, whole)))
    assert lanes(settle(both, variable, NUMBER), whole, NUMBER) == expected
    assert both.rank == rank


@given(numbers, numbers, numbers, numbers, st.sampled_from([1, -1]), numbers)
def test_sums_of_linear_values(a: int, b: int, c: int, d: int, sign: int, variable: int) -> None:
    total = plus(Linear(a, b), Linear(c, d, bits=64), sign, NUMBER)
    assert total.offset + total.slope * variable == a + b * variable + sign * (c + d * variable)
    assert total.bits == 64


def test_an_axis_counts_its_dimension_from_the_last() -> None:
    axis = Axis(Linear(0), 4)
    assert (axis.rank, axis.dim) == (1, -1)
