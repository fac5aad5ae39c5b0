"""Constants and names that have another value where the count is emitted than where they were used."""

# Kernels are written the ways people write them, not only the way the linter would.
# ruff: noqa: SIM108

from __future__ import annotations

import triton
import triton.language as tl
from hypothesis import strategies as st

from tests.interpreted.oracle import Tally
from tests.interpreted.zoo.specimen import blank, interval, normal, small, specimen

WIDE = tl.constexpr(True)


@triton.jit
def rebound_kernel(x, out, n, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    whole: tl.constexpr = BLOCK > 4
    if whole:
        mask = lane < BLOCK
    else:
        mask = lane < 3
    limit = n
    if WIDE:
        bound = limit
    else:
        bound = 0
    limit = 0
    whole = n > 1000
    tl.store(out + lane, 1.0, mask=mask)
    acc = tl.zeros((BLOCK,), tl.float32)
    for i in range(0, n, BLOCK):
        acc += tl.load(x + i + lane, mask=i + lane < bound, other=0.0)
    if whole:
        acc += tl.load(x + lane)
    tl.store(out + BLOCK + lane, acc, mask=lane < bound)


def rebound_counts(n, **_):
    return Tally(4 * n, 4 * (8 + interval(8, 0, n)))


@specimen(rebound_kernel, rebound_counts, n=small())
def constants_with_another_value_later(kernel, n, seed):
    x, out = normal(seed, 48), blank(16)
    kernel[(1,)](x, out, n, BLOCK=8)
    return (out,)


@triton.jit
def in_loops_kernel(x, out, n, BLOCK: tl.constexpr, FLAG: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK,), tl.float32)
    skip = False
    if FLAG:
        skip = n > 20
    for i in range(0, n, BLOCK):
        if not skip:
            acc += tl.load(x + i + lane, mask=i + lane < n, other=0.0)
        skip = False
    for part in tl.static_range(3):
        last = n
        if part == 1:
            last = n - 2
        for i in range(0, last, BLOCK):
            acc += tl.load(x + i + lane, mask=(i + lane < last) & (lane < part + 4), other=0.0)
        if part > 1:
            acc += tl.load(x + part + lane)
    for row in range(n):
        left = n
        while left > 0:
            left -= BLOCK
            acc += tl.load(x + lane, mask=lane < left, other=0.0)
        acc += tl.load(x + row + lane, mask=lane < 2, other=0.0)
    acc += tl.load(x + lane)
    tl.store(out + lane, acc)


def in_loops_counts(n, flag, **_):
    loads = sum(interval(8, 0, n - i) for i in range(0, n, 8) if i or not (flag and n > 20))
    for part in range(3):
        last = n - 2 if part == 1 else n
        loads += sum(interval(min(8, part + 4), 0, last - i) for i in range(0, last, 8))
    loads += 8
    loads += n * (sum(interval(8, 0, n - left) for left in range(8, n + 8, 8)) + 2)
    return Tally(4 * (loads + 8), 32)


@specimen(in_loops_kernel, in_loops_counts, n=small(), flag=st.booleans())
def constants_in_loops(kernel, n, flag, seed):
    x, out = normal(seed, 64), blank(8)
    kernel[(1,)](x, out, n, BLOCK=8, FLAG=flag)
    return (out,)


@triton.jit
def one_of_two(p, at, FIRST: tl.constexpr):
    if FIRST:
        return tl.load(p + at)
    return tl.load(p + at, mask=at > 2, other=0.0) * 2


@triton.jit
def first_or_last(p, at, n):
    if n > 3:
        return tl.load(p + at)
    if n > 1:
        return tl.load(p + at, mask=at < n, other=0.0) * 2
    return at * 1.0


@triton.jit
def returns_kernel(x, out, n, BLOCK: tl.constexpr, FIRST: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    value = one_of_two(x, lane, FIRST) + one_of_two(x, lane, not FIRST)
    if n == 5:
        tl.store(out + lane, value, mask=lane < 1)
        return
    tl.store(out + lane, value + first_or_last(x, lane, n))


def returns_counts(n, **_):
    loads = 13 if n == 5 else 13 + (8 if n > 3 else n if n > 1 else 0)
    return Tally(4 * loads, 4 if n == 5 else 32)


@specimen(returns_kernel, returns_counts, n=small(1, 8), first=st.booleans())
def returns_in_all_branches(kernel, n, first, seed):
    x, out = normal(seed, 64), blank(8)
    kernel[(1,)](x, out, n, BLOCK=8, FIRST=first)
    return (out,)
