"""Names given new values: bounds, masks and offsets, in loops and between them."""

# Kernels are written the ways people write them, not only the way the linter would.
# ruff: noqa: B007, PIE808, SIM108

from __future__ import annotations

from math import ceil

import triton
import triton.language as tl
from hypothesis import strategies as st

from tests.interpreted.oracle import Tally
from tests.interpreted.zoo.specimen import blank, interval, normal, small, specimen

LANES = tl.constexpr(8)


@triton.jit
def remaining_kernel(x, out, n, limit):
    x += tl.program_id(0) * n
    out = out + tl.program_id(0) * LANES
    DOUBLE: tl.constexpr = 2 * LANES
    offs = tl.arange(0, LANES)
    acc = tl.zeros((LANES,), tl.float32)
    remaining = n
    for _ in range(0, tl.cdiv(n, LANES)):
        acc += tl.load(x + offs, mask=offs < remaining, other=0.0)
        remaining -= LANES
        x += LANES
    x -= tl.cdiv(n, LANES) * LANES
    for i in range(0, tl.cdiv(n, DOUBLE)):
        at = offs + i * DOUBLE
        acc += tl.load(x + at, mask=at < tl.minimum(n, limit), other=0.0)
        acc += tl.load(x + at, mask=at < max(min(n, limit), n - 3), other=0.0)
        acc += tl.load(x + at, mask=at < tl.where(limit > 5, n, 3 - 3), other=0.0)
        tl.load(x + at, mask=at < n)  # executed, even if nobody wants the value
    tl.store(out + offs, acc)


def remaining_counts(n, limit, programs, **_):
    loads = n
    for i in range(ceil(n / 16)):
        for at in range(16 * i, 16 * i + 8):
            loads += (at < min(n, limit)) + (at < max(min(n, limit), n - 3)) + (limit > 5 and at < n) + (at < n)
    return Tally(4 * programs * loads, 32 * programs)


@specimen(remaining_kernel, remaining_counts, n=small(), limit=st.integers(-5, 45), programs=small(1, 3))
def bounds_that_shrink_and_are_minima(kernel, n, limit, programs, seed):
    x, out = normal(seed, programs, n), blank(programs, 8)
    kernel[(programs,)](x, out, n, limit)
    return (out,)


@triton.jit
def reused_names_kernel(x, out, n, limit, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    mask = offs < n
    acc = tl.load(x + offs, mask=mask, other=0.0)
    mask = mask & (offs >= 2)
    acc += tl.load(x + offs, mask=mask, other=0.0)
    if limit > 4:
        mask = offs < limit
    acc += tl.load(x + offs, mask=mask, other=0.0)
    bound = n
    early = offs < bound
    bound = limit
    acc += tl.load(x + offs, mask=early, other=0.0)
    acc += tl.load(x + offs, mask=offs < bound, other=0.0)
    for i in range(0, 3):
        acc += tl.load(x + offs, mask=offs < bound, other=0.0)
        bound -= 1
    for i in range(0, 2):
        acc += tl.load(x + i)
    i = limit
    acc += tl.load(x + offs, mask=offs < i, other=0.0)
    offs = offs + 1
    early &= offs < n
    tl.store(out + offs - 1, acc, mask=early)


def reused_names_counts(n, limit, **_):
    def lanes(bound):
        return interval(8, 0, bound)

    loads = lanes(n) + interval(min(n, 8), 2, 8)
    loads += lanes(limit) if limit > 4 else interval(min(n, 8), 2, 8)
    loads += lanes(n) + lanes(limit) + sum(lanes(limit - i) for i in range(3)) + 2 + lanes(limit)
    return Tally(4 * loads, 4 * lanes(n - 1))


@specimen(reused_names_kernel, reused_names_counts, n=small(0, 12), limit=small(0, 12))
def names_reused(kernel, n, limit, seed):
    x, out = normal(seed, 16), blank(8)
    kernel[(1,)](x, out, n, limit, BLOCK=8)
    return (out,)


@triton.jit
def changed_in_loop_kernel(x, out, n, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    mask = offs < n
    acc = tl.zeros((BLOCK,), tl.float32)
    for i in range(0, 4):
        acc += tl.load(x + offs, mask=mask, other=0.0)
        if i % 2 == 0:
            mask = mask & (offs > i)
        else:
            mask = offs < n - i
    tl.store(out + offs, acc, mask=mask)


def changed_in_loop_counts(n, **_):
    mask = [i < n for i in range(8)]
    loads = 0
    for i in range(4):
        loads += sum(mask)
        mask = [m and lane > i if i % 2 == 0 else lane < n - i for lane, m in enumerate(mask)]
    return Tally(4 * loads, 4 * sum(mask))


@specimen(changed_in_loop_kernel, changed_in_loop_counts, n=small(0, 12))
def mask_carried_through_a_loop(kernel, n, seed):
    x, out = normal(seed, 8), blank(8)
    kernel[(1,)](x, out, n, BLOCK=8)
    return (out,)
