"""Integers narrower and wider than 32 bits, in masks and loops."""

# Kernels are written the ways people write them, not only the way the linter would.
# ruff: noqa: PIE808

from __future__ import annotations

import torch
import triton
import triton.language as tl
from hypothesis import strategies as st

from tests.interpreted.oracle import Tally
from tests.interpreted.zoo.specimen import blank, interval, small, specimen


@triton.jit
def narrow_kernel(pair, out, n, BLOCK: tl.constexpr):
    a = tl.load(pair)
    b = tl.load(pair + 1)
    offs = tl.arange(0, BLOCK)
    tl.store(out + offs, 1.0, mask=a + offs + b < n)
    tl.store(out + offs, 2.0, mask=(offs - a < n) & (offs < b))
    for i in range(-a, b):
        tl.store(out + offs, 3.0, mask=offs + i < n - b)


def narrow_counts(a, b, n, dtype, **_):
    lanes = interval(16, 0, n - a - b) + interval(16, 0, min(n + a, b))
    lanes += sum(interval(16, 0, n - b - i) for i in range(-a, b))
    return Tally(2 * dtype.itemsize, 4 * lanes)


@specimen(
    narrow_kernel,
    narrow_counts,
    a=st.sampled_from([100, 3, -100]),
    b=st.sampled_from([100, 9, 120]),
    n=st.integers(190, 230) | st.integers(-10, 30),
    dtype=st.sampled_from([torch.int8, torch.int16]),
)
def sums_that_leave_int8(kernel, a, b, n, dtype, seed):
    out = blank(16)
    kernel[(1,)](torch.tensor([a, b], dtype=dtype), out, n, BLOCK=16)
    return (out,)


@triton.jit
def short_kernel(pair, out, n, BLOCK: tl.constexpr):
    start = tl.load(pair)
    length = tl.load(pair + 1)
    offs = tl.arange(0, BLOCK)
    tl.store(out + offs, 1.0, mask=start + offs + length < n)
    tl.store(out + offs, 2.0, mask=(offs + start < n - length) & (length - offs > 3))


@specimen(
    short_kernel,
    lambda n, length, **_: Tally(
        4, 4 * (interval(16, 0, n - 20000 - length) + interval(16, 0, min(n - 20000 - length, length - 3)))
    ),
    n=st.integers(39990, 40020) | st.integers(20000, 20020),
    length=st.sampled_from([20000, 7]),
)
def sums_that_leave_int16(kernel, n, length, seed):
    out = blank(16)
    kernel[(1,)](torch.tensor([20000, length], dtype=torch.int16), out, n, BLOCK=16)
    return (out,)


@triton.jit
def wide_kernel(trips, out, limit, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    for i in range(0, tl.load(trips)):
        at = offs + tl.cast(i, tl.int64) * 1000000000
        tl.store(out + offs, 1.0, mask=(at < limit) & (at < limit + 1))


@specimen(
    wide_kernel,
    lambda trips, limit, **_: Tally(4, 4 * sum(interval(16, 0, limit - 10**9 * i) for i in range(trips))),
    trips=small(0, 5),
    limit=st.sampled_from([2500000000, 3000000007, 4000000001, 2]),
)
def steps_of_a_billion_with_two_upper_edges(kernel, trips, limit, seed):
    out = blank(16)
    kernel[(1,)](torch.tensor([trips], dtype=torch.int32), out, limit, BLOCK=16)
    return (out,)
