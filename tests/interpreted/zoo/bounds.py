"""Masks of one axis whose bounds are wide, cast, loaded or hinted at."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from hypothesis import strategies as st

from tests.interpreted.oracle import Tally
from tests.interpreted.zoo.specimen import blank, integers, normal, small, specimen


@triton.jit
def wide_bounds_kernel(x, out, base, bound, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    offs = base + lane
    value = tl.load(x + lane, mask=offs < bound, other=0.0)
    value += tl.load(x + lane, mask=(offs >= 0) & (offs <= bound), other=0.0)
    value += tl.load(x + lane, mask=offs <= bound, other=0.0)
    value += tl.load(x + lane, mask=offs == bound, other=0.0)
    wide = tl.program_id(0).to(tl.int64) * BLOCK + base + lane
    value += tl.load(x + lane, mask=wide < bound, other=0.0)
    tl.store(out + lane, value, mask=offs > bound - BLOCK // 2)


def wide_bounds_counts(base, bound, **_):
    loads = 0
    for at in range(base, base + 16):
        loads += 2 * (at < bound) + (0 <= at <= bound) + (at <= bound) + (at == bound)
    return Tally(4 * loads, 4 * sum(base + i > bound - 8 for i in range(16)))


@specimen(
    wide_bounds_kernel,
    wide_bounds_counts,
    base=st.sampled_from([-(2**31), -(2**30), -17, -16, -9, -1, 0, 3, 2**30, 2**31 - 17, 2**31 - 16]),
    bound=st.sampled_from([-(2**31) + 8, -1, 0, 1, 5, 16, 2**30 + 5, 2**31 - 10, 2**31 - 1]),
)
def bounds_at_the_edge_of_int32(kernel, base, bound, seed):
    x, out = normal(seed, 16), blank(16)
    kernel[(1,)](x, out, base, bound, BLOCK=16)
    return (out,)


@specimen(
    wide_bounds_kernel,
    wide_bounds_counts,
    base=st.sampled_from([-(2**62), -(2**33), -(2**31) - 5, -5, 0, 2**31 + 1, 2**32 - 5, 2**40, 2**62]),
    bound=st.sampled_from([-(2**40), -3, 9, 2**31 + 3, 2**33, 2**40 + 7, 2**62 + 9]),
)
def int64_bounds(kernel, base, bound, seed):
    x, out = normal(seed, 16), blank(16)
    kernel[(1,)](x, out, base, bound, BLOCK=16)
    return (out,)


@triton.jit
def wrapping_kernel(x, out, base, bound, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    tl.store(out + lane, tl.load(x + lane, mask=base + lane < bound, other=0.0), mask=bound > base + lane)


@triton.jit
def cast_offsets_kernel(x, out, n, BLOCK: tl.constexpr):
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    unsigned = offs.to(tl.uint32)
    narrow = (offs % 64).to(tl.int8)
    value = tl.load(x + unsigned, mask=unsigned < n, other=0.0)
    value += tl.load(x + offs, mask=narrow < 20, other=0.0)
    value += tl.load(x + offs, mask=(offs - 4).to(tl.uint32) < 8, other=0.0)
    tl.store(out + offs, value, mask=(offs < n).to(tl.int1))


@specimen(
    cast_offsets_kernel,
    lambda n, **_: Tally(4 * (min(n, 32) + 20 + 8), 4 * min(n, 32)),
    n=small(),
)
def unsigned_and_narrow_offsets(kernel, n, seed):
    x, out = normal(seed, 32), blank(32)
    kernel[(4,)](x, out, n, BLOCK=8)
    return (out,)


@triton.jit
def narrowing_kernel(x, out, base, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + offs, mask=offs.to(tl.int8) < 20, other=0.0)
    value += tl.load(x + offs, mask=(offs * 300).to(tl.int16) >= 0, other=0.0)
    far = base + offs.to(tl.int64)
    value += tl.load(x + offs, mask=far.to(tl.int32) < 5, other=0.0)
    tl.store(out + offs, value, mask=tl.cast(far, tl.int32) >= 0)


def narrowing_counts(base, **_):
    def narrow(value, width):
        half = 2 ** (width - 1)
        return (value + half) % (2 * half) - half

    lanes = range(256)
    loads = sum((narrow(i, 8) < 20) + (narrow(300 * i, 16) >= 0) + (narrow(base + i, 32) < 5) for i in lanes)
    return Tally(4 * loads, 4 * sum(narrow(base + i, 32) >= 0 for i in lanes))


@specimen(narrowing_kernel, narrowing_counts, base=st.sampled_from([0, 2**31 - 40, 2**32 - 100, 2**33, -(2**32) + 3]))
def casts_that_change_values(kernel, base, seed):
    x, out = normal(seed, 256), blank(256)
    kernel[(4,)](x, out, base, BLOCK=64)
    return (out,)


@triton.jit
def loaded_mask_kernel(x, keep, length, out, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    n = tl.load(length)
    mask = tl.load(keep + offs, mask=offs < n, other=0) != 0
    also = tl.where(offs % 2 == 0, mask, offs < n - 3)
    tl.store(out + offs, tl.load(x + offs, mask=mask) + tl.load(x + offs, mask=also, other=0.0), mask=mask)


@specimen(loaded_mask_kernel, n=small(0, 16))
def mask_from_memory(kernel, n, seed):
    x, keep, out = normal(seed, 16), integers(seed, 0, 2, 16, dtype=torch.bool), blank(16)
    kernel[(1,)](x, keep, torch.tensor([n]), out, BLOCK=16)
    return (out,)


@triton.jit
def hinted_kernel(x, out, n, BLOCK: tl.constexpr):
    tl.assume(n >= 0)
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    offs = tl.max_contiguous(tl.multiple_of(offs, BLOCK), BLOCK)
    tl.static_assert(BLOCK >= 4)
    tl.store(out + offs, tl.load(x + offs, mask=offs < n), mask=offs < n)


@specimen(hinted_kernel, lambda n, **_: Tally(4 * n, 4 * n), n=small())
def compiler_hints(kernel, n, seed):
    x, out = normal(seed, n), blank(n)
    kernel[(triton.cdiv(n, 8),)](x, out, n, BLOCK=8)
    return (out,)
