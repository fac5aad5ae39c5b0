"""Loops whose offsets and bounds move while they run."""

# Kernels are written the ways people write them, not only the way the linter would.
# ruff: noqa: PIE808

from __future__ import annotations

from math import ceil

import triton
import triton.language as tl

from tests.interpreted.oracle import Tally
from tests.interpreted.zoo.specimen import blank, interval, normal, small, specimen


@triton.jit
def together_kernel(x, out, n, width, step, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, n, BLOCK):
        offs = start + lane
        acc += tl.load(x + offs, mask=offs < start + width, other=0.0)
        acc += tl.load(x + offs, mask=(offs >= start + 2) & (offs < start + width), other=0.0)
    for start in range(0, n, step):
        offs = start + lane
        acc += tl.load(x + offs, mask=start + width > offs, other=0.0)
        acc += tl.load(x + offs, mask=lane - start < width - 2 * start, other=0.0)
        acc += tl.load(x + offs, mask=(offs < start + width) & (offs < n), other=0.0)
    tl.store(out + lane, acc)


def together_counts(n, width, step, **_):
    loads = len(range(0, n, 8)) * (interval(8, 0, width) + interval(min(8, max(width, 0)), 2, 8))
    for start in range(0, n, step):
        loads += interval(8, 0, width) + interval(8, 0, width - start) + interval(8, 0, min(width, n - start))
    return Tally(4 * loads, 32)


@specimen(together_kernel, together_counts, n=small(0, 30), width=small(-2, 10), step=small(1, 9))
def offsets_and_bounds_that_move_together(kernel, n, width, step, seed):
    x, out = normal(seed, n + 16), blank(8)
    kernel[(1,)](x, out, n, width, step, BLOCK=8)
    return (out,)


@triton.jit
def moved_offsets_kernel(x, out, n, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    pointers = x + offs
    acc = tl.zeros((BLOCK,), tl.float32)
    for _ in range(0, tl.cdiv(n, BLOCK)):
        acc += tl.load(pointers, mask=offs < n, other=0.0)
        offs += BLOCK
        pointers += BLOCK
        acc += tl.load(x + offs, mask=offs < n, other=0.0)
    tl.store(out + tl.arange(0, BLOCK), acc, mask=offs - BLOCK < n)


def moved_offsets_counts(n, **_):
    last = n - 8 * (ceil(n / 8) - 1)
    return Tally(4 * (n + max(0, n - 8)), 4 * last)


@specimen(moved_offsets_kernel, moved_offsets_counts, n=small())
def offsets_moved_in_the_loop(kernel, n, seed):
    x, out = normal(seed, n), blank(8)
    kernel[(1,)](x, out, n, BLOCK=8)
    return (out,)


@triton.jit
def fixed_trips_kernel(x, out, n, BLOCK: tl.constexpr):
    """Loops that look like closed forms and are not: what the range was made from changes while it runs."""
    lane = tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK,), tl.float32)
    left = n
    for i in range(0, left):
        acc += tl.load(x + lane, mask=lane + i < left, other=0.0)
        left -= 2
        i = i * 3
        acc += tl.load(x + lane, mask=lane + i < n, other=0.0)
    start = 0
    shift = BLOCK
    for i in range(0, n, BLOCK):
        offs = start + lane
        acc += tl.load(x + offs, mask=offs < n, other=0.0)
        if i % 16 == 0:
            acc += tl.load(x + i + lane, mask=i + lane < n, other=0.0)
            shift = BLOCK // 2
        elif n > 20:
            acc += tl.load(x + lane, mask=lane < n - i, other=0.0)
        else:
            for j in range(i, n):
                if j % 3 == 0:
                    acc += tl.load(x + lane, mask=j + lane < n, other=0.0)
        start += shift
    tl.store(out + lane, acc)


def fixed_trips_counts(n, **_):
    def lanes(base, bound):
        return interval(max(bound, 0), base, base + 8)

    loads, left, start, shift = 0, n, 0, 8
    for i in range(n):
        loads += lanes(i, left) + lanes(3 * i, n)
        left -= 2
    for i in range(0, n, 8):
        loads += lanes(start, n)
        if i % 16 == 0:
            loads += lanes(i, n)
            shift = 4
        elif n > 20:
            loads += lanes(0, n - i)
        else:
            loads += sum(lanes(j, n) for j in range(i, n) if j % 3 == 0)
        start += shift
    return Tally(4 * loads, 32)


@specimen(fixed_trips_kernel, fixed_trips_counts, n=small(-3, 40))
def loops_whose_bounds_change_while_they_run(kernel, n, seed):
    x, out = normal(seed, 48), blank(8)
    kernel[(1,)](x, out, n, BLOCK=8)
    return (out,)
