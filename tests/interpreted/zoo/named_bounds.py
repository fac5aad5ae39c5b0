"""The ways to name what bounds a mask or a loop: unpacked, swapped, changed in place, returned, walrus."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from hypothesis import strategies as st

from tests.interpreted.oracle import Tally
from tests.interpreted.zoo.specimen import blank, interval, normal, small, specimen

BLOCK = 8


def bounds(low: int, high: int) -> torch.Tensor:
    return torch.tensor([low, high], dtype=torch.int32)


def swept(start: int, stop: int, low: int, high: int, step: int = BLOCK) -> int:
    """Active lanes of ``low <= at < high``, summed over the blocks ``at = i + arange(BLOCK)``."""
    return sum(interval(BLOCK, low - i, high - i) for i in range(start, stop, step))


edges = {"n": small(0, 40), "low": st.integers(-3, 20), "high": st.integers(-3, 45)}


@triton.jit
def unpacked_kernel(x, ends, out, n, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK,), tl.float32)
    low, high = tl.load(ends), tl.load(ends + 1)
    for i in range(0, n, BLOCK):
        at = i + lane
        acc += tl.load(x + at, mask=at < high, other=0.0)
        acc += tl.load(x + at, mask=(at >= low) & (at < high), other=0.0)
        tl.atomic_add(out + lane, 1.0, mask=at < high)
    low, high = high, low
    for i in range(0, n, BLOCK):
        at, limit = i + lane, n - 2
        acc += tl.load(x + at, mask=(at < high) & (at < limit), other=0.0)
    high += 5
    high -= low
    (first, last), middle = (low, high), low + high
    for i in range(0, n, BLOCK):
        at = i + lane
        acc += tl.load(x + at, mask=at < last, other=0.0)
        acc += tl.load(x + at, mask=(at >= first) & (at < middle), other=0.0)
    tl.store(out + lane, acc)


def unpacked_counts(n, low, high, **_):
    loads = swept(0, n, 0, high) + swept(0, n, low, high)
    atomics = swept(0, n, 0, high)
    low, high = high, low
    loads += swept(0, n, 0, min(high, n - 2))
    high += 5 - low
    loads += swept(0, n, 0, high) + swept(0, n, low, low + high)
    return Tally(4 * loads + 8, 32, 4 * atomics)


@specimen(unpacked_kernel, unpacked_counts, **edges)
def bounds_that_are_unpacked(kernel, n, low, high, seed):
    x, out = normal(seed, 64), torch.zeros(BLOCK)
    kernel[(1,)](x, bounds(low, high), out, n, BLOCK=BLOCK)
    return (out,)


@triton.jit
def walrus_kernel(x, ends, out, n, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK,), tl.float32)
    low = 0
    if (high := tl.load(ends + 1)) > (low := tl.load(ends)):
        for i in range(0, n, BLOCK):
            at = i + lane
            acc += tl.load(x + at, mask=at < high, other=0.0)
            acc += tl.load(x + at, mask=(here := at + 1) < high, other=0.0)
            acc += here
    acc += tl.load(x + lane, mask=lane < (low := low + 3), other=0.0)
    acc += tl.load(x + lane, mask=lane < low) if (low := low + 1) > 5 else tl.load(x + lane)
    tl.store(out + lane, acc + low)


def walrus_counts(n, low, high, **_):
    loads = swept(0, n, 0, high) + swept(0, n, -1, high - 1) if high > low else 0
    loads += interval(BLOCK, 0, low + 3) + (interval(BLOCK, 0, low + 4) if low + 4 > 5 else BLOCK)
    return Tally(4 * loads + 8, 32)


@specimen(walrus_kernel, walrus_counts, **edges)
def bounds_from_assignments_in_expressions(kernel, n, low, high, seed):
    x, out = normal(seed, 80), blank(BLOCK)
    kernel[(1,)](x[3:], bounds(low, high), out, n, BLOCK=BLOCK)
    return (out,)


@triton.jit
def ends_of(ends):
    return tl.load(ends), tl.load(ends + 1)


@triton.jit
def middle_of(low, high):
    return (low + high) // 2, low + high


@triton.jit
def window_sum(x, lane, low, high, n, BLOCK: tl.constexpr):
    acc = tl.zeros((BLOCK,), tl.float32)
    for i in range(low, n, BLOCK):
        acc += tl.load(x + i + lane, mask=i + lane < high, other=0.0)
    return acc


@triton.jit
def returned_kernel(x, ends, window, out, n, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK,), tl.float32)
    low, high = ends_of(ends)
    for i in range(0, n, BLOCK):
        at = i + lane
        acc += tl.load(x + at, mask=(at >= low) & (at < high), other=0.0)
    middle, _ = middle_of(low, high)
    for i in range(middle, n, BLOCK):
        acc += tl.load(x + i + lane, mask=i + lane < high, other=0.0)
    first, last = window
    for i in range(first, n, BLOCK):
        acc += tl.load(x + i + lane, mask=i + lane < last, other=0.0)
        acc += tl.load(x + i + lane, mask=i + lane < window[1], other=0.0)
    acc += window_sum(x, lane, *window, n, BLOCK)
    acc += window_sum(x, lane, *ends_of(ends), n, BLOCK)
    tl.store(out + lane, acc)


def returned_counts(n, low, high, **_):
    loads = swept(0, n, low, high)
    loads += swept((low + high) // 2, n, 0, high)
    loads += 3 * swept(low, n, 0, high) + swept(low, n, 0, high)
    return Tally(4 * loads + 16, 32)


@specimen(returned_kernel, returned_counts, **{**edges, "low": small(0, 20), "high": small(0, 45)})
def bounds_from_helpers_and_tuples(kernel, n, low, high, seed):
    x, out = normal(seed, 64), blank(BLOCK)
    kernel[(1,)](x, bounds(low, high), (low, high), out, n, BLOCK=BLOCK)
    return (out,)


@triton.jit
def nested_kernel(x, ends, out, rows, n, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK,), tl.float32)
    low, high = 0, 0
    for row in range(rows):
        low, high = tl.load(ends + row), tl.load(ends + row + 1)
        for i in range(0, n, BLOCK):
            at, before = i + lane, low
            acc += tl.load(x + at, mask=(at < high) & (at >= before), other=0.0)
            if i > BLOCK:
                acc += tl.load(x + at, mask=at < high, other=0.0)
        left = n
        while left > 0:
            at, left = n - left + lane, left - BLOCK
            acc += tl.load(x + at, mask=at < high, other=0.0)
    for i in range(0, n, BLOCK):  # bounds that a loop left behind
        acc += tl.load(x + i + lane, mask=(i + lane < high) & (i + lane >= low), other=0.0)
    tl.store(out + lane, acc)


def nested_counts(n, ends, **_):
    loads = 0
    for low, high in pairwise(ends):
        loads += swept(0, n, low, high) + swept(2 * BLOCK, n, 0, high) + swept(0, n, 0, high)
    if len(ends) > 1:
        loads += swept(0, n, ends[-2], ends[-1])
    return Tally(4 * loads + 8 * (len(ends) - 1), 32)


@specimen(nested_kernel, nested_counts, n=small(0, 40), ends=st.lists(st.integers(-3, 45), min_size=1, max_size=4))
def bounds_named_in_nested_loops(kernel, n, ends, seed):
    x, out = normal(seed, 64), blank(BLOCK)
    kernel[(1,)](x, torch.tensor(ends, dtype=torch.int32), out, len(ends) - 1, n, BLOCK=BLOCK)
    return (out,)


class Interval(NamedTuple):
    low: tl.tensor
    high: tl.tensor


@triton.jit
def interval_of(ends):
    return Interval(tl.load(ends), high=tl.load(ends + 1))


@triton.jit
def shifted(both, by):
    return Interval(both.low + by, both.high + by)


@triton.jit
def named_tuple_kernel(x, ends, out, n, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK,), tl.float32)
    both = interval_of(ends)
    for i in range(0, n, BLOCK):
        at = i + lane
        acc += tl.load(x + at, mask=(at >= both.low) & (at < both.high), other=0.0)
        both = shifted(both, -1)
    low, high = both
    tl.store(out + lane, acc, mask=(lane >= low) & (lane < high))


def named_tuple_counts(n, low, high, **_):
    steps = range(0, n, BLOCK)
    loads = sum(interval(BLOCK, low - turn - i, high - turn - i) for turn, i in enumerate(steps))
    return Tally(4 * loads + 8, 4 * interval(BLOCK, low - len(steps), high - len(steps)))


@specimen(named_tuple_kernel, named_tuple_counts, **edges)
def bounds_in_a_named_tuple(kernel, n, low, high, seed):
    x, out = normal(seed, 64), blank(BLOCK)
    kernel[(1,)](x, bounds(low, high), out, n, BLOCK=BLOCK)
    return (out,)
