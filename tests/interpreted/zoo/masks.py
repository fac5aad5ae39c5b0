"""Masks of one axis."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from hypothesis import strategies as st

from tests.interpreted.oracle import Tally
from tests.interpreted.zoo.specimen import blank, integers, interval, normal, small, specimen

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.int64, torch.float64, torch.bool]


@triton.jit
def add_kernel(x, y, out, n, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < n
    tl.store(out + offs, tl.load(x + offs, mask=mask) + tl.load(y + offs, mask=mask), mask=mask)


@specimen(add_kernel, lambda n, **_: Tally(8 * n, 4 * n), n=small(0, 70))
def masked_add(kernel, n, seed):
    x, y, out = normal(seed, n), normal(seed + 1, n), blank(n + 16)
    kernel[(triton.cdiv(n, 16),)](x, y, out, n, BLOCK=16)
    return (out,)


@specimen(add_kernel, lambda n, **_: Tally(8 * n, 4 * n), n=small())
def grid_from_meta_and_keywords(kernel, n, seed):
    x, y, out = normal(seed, n), normal(seed + 1, n), blank(n)
    kernel[lambda meta: (triton.cdiv(n, meta["BLOCK"]),)](x, y, out=out, n=n, BLOCK=8, num_warps=2)
    return (out,)


@triton.jit
def copy_kernel(x, out, n, BLOCK: tl.constexpr = 16):
    """A docstring, a default for a constexpr, and elements of any size."""
    offs = tl.program_id(axis=0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + offs, tl.load(x + offs, mask=offs < n), mask=offs < n)


@specimen(
    copy_kernel,
    lambda n, dtype, **_: Tally(n * dtype.itemsize, n * dtype.itemsize),
    n=small(),
    dtype=st.sampled_from(DTYPES),
)
def copy_of_any_dtype(kernel, n, dtype, seed):
    x, out = integers(seed, 0, 2, n, dtype=dtype), blank(n, dtype=dtype)
    kernel[(triton.cdiv(n, 16),)](x, out, n)
    return (out,)


@triton.jit
def unmasked_kernel(x, scalar, out, BLOCK: tl.constexpr):
    pid = tl.program_id(0)
    offs = pid * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + offs) + tl.load(scalar)
    tl.store(out + offs, value)
    tl.store(scalar + 1 + pid, tl.sum(value))


@specimen(unmasked_kernel, lambda blocks, **_: Tally(blocks * 36, blocks * 36), blocks=small(1, 5))
def no_masks_and_scalars(kernel, blocks, seed):
    x, scalar, out = normal(seed, blocks * 8), normal(seed, blocks + 1), blank(blocks * 8)
    kernel[(blocks,)](x, scalar, out, BLOCK=8)
    return scalar, out


@triton.jit
def argument_forms_kernel(x, out, n, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    a = tl.load(x + offs, offs < n, 0.5)
    b = tl.load(pointer=x + offs, mask=None, eviction_policy="evict_last")
    c = tl.load(mask=n > offs, pointer=x + offs, other=0.0, cache_modifier=".cg")
    d = tl.load(x + offs, True, volatile=True)
    tl.store(out + offs, a + b, offs < n)
    tl.store(mask=offs <= n, value=c, pointer=out + BLOCK + offs)
    tl.store(value=d, pointer=out + 2 * BLOCK + offs, mask=False)


@specimen(
    argument_forms_kernel,
    lambda n, **_: Tally(4 * (2 * min(n, 16) + 32), 4 * (min(n, 16) + min(n + 1, 16))),
    n=small(0, 20),
)
def positional_and_keyword_arguments(kernel, n, seed):
    x, out = normal(seed, 16), blank(48)
    kernel[(1,)](x, out, n, BLOCK=16)
    return (out,)


@triton.jit
def interval_kernel(x, out, n, low, high, BLOCK: tl.constexpr):
    for start in range(0, n, BLOCK):
        offs = start + tl.arange(0, BLOCK)
        mask = (offs >= low) & (offs < high) & (offs < n)
        value = tl.load(x + offs, mask=mask, other=1.0)
        tl.store(out + offs, value, mask=(offs > low) & (high >= offs) & (n > offs))


@specimen(
    interval_kernel,
    lambda n, low, high, **_: Tally(4 * interval(n, low, high), 4 * interval(n, low + 1, high + 1)),
    n=small(),
    low=st.integers(-20, 50),
    high=st.integers(-20, 50),
)
def interval_mask(kernel, n, low, high, seed):
    x, out = normal(seed, n), blank(n)
    kernel[(1,)](x, out, n, low, high, BLOCK=8)
    return (out,)


@triton.jit
def window_kernel(x, out, n, window, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    first = tl.maximum(row - window + 1, 0)
    acc = 0.0
    for start in range(first // BLOCK * BLOCK, row + 1, BLOCK):
        offs = start + tl.arange(0, BLOCK)
        acc += tl.sum(tl.load(x + offs, mask=(offs >= first) & (offs <= row), other=0.0))
    tl.store(out + row, acc)


@specimen(
    window_kernel,
    lambda n, window, **_: Tally(4 * sum(min(window, row + 1) for row in range(n)), 4 * n),
    n=small(1, 20),
    window=small(1, 24),
)
def sliding_window(kernel, n, window, seed):
    x, out = normal(seed, n), blank(n)
    kernel[(n,)](x, out, n, window, BLOCK=8)
    return (out,)


@triton.jit
def or_not_kernel(x, out, n, low, high, hole, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    outside = (offs < low) | (offs >= high)
    kept = ~(offs == hole) & (offs < n)
    a = tl.load(x + offs, mask=outside & kept, other=0.0)
    b = tl.load(x + offs, mask=(~outside) & (offs < n), other=0.0)
    c = tl.load(x + offs, mask=outside ^ kept, other=0.0)
    d = tl.load(x + offs, mask=(offs != hole) | (offs == low), other=0.0)
    tl.store(out + offs, a + b + c + d, mask=~(offs >= n))


def or_not_counts(n, low, high, hole, **_):
    lanes = range(32)
    loads = 0
    for i in lanes:
        outside, kept = i < low or i >= high, i != hole and i < n
        loads += (outside and kept) + (not outside and i < n) + (outside != kept) + (i != hole or i == low)
    return Tally(4 * loads, 4 * min(n, 32))


@specimen(
    or_not_kernel,
    or_not_counts,
    n=small(),
    low=st.integers(-3, 34),
    high=st.integers(-3, 34),
    hole=st.integers(-3, 34),
)
def or_not_xor_equal_masks(kernel, n, low, high, hole, seed):
    x, out = normal(seed, 32), blank(32)
    kernel[(1,)](x, out, n, low, high, hole, BLOCK=32)
    return (out,)


@triton.jit
def strided_mask_kernel(x, out, n, stride, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    acc = tl.load(x + offs, mask=offs * 2 < n, other=0.0)
    acc += tl.load(x + offs, mask=offs * stride < n, other=0.0)
    acc += tl.load(x + offs, mask=offs // 2 < n, other=0.0)
    acc += tl.load(x + offs, mask=(offs % 3 == 0) & (offs < n), other=0.0)
    acc += tl.load(x + offs, mask=n - offs > 0, other=0.0)
    acc += tl.load(x + offs, mask=-offs > -n, other=0.0)
    acc += tl.load(x + offs, mask=offs + offs < n, other=0.0)
    tl.store(out + offs, acc, mask=2 * offs + 1 < n + stride)


def strided_mask_counts(n, stride, **_):
    lanes = range(32)
    loads = sum(
        (i * 2 < n) + (i * stride < n) + (i // 2 < n) + (i % 3 == 0 and i < n) + 2 * (i < n) + (i + i < n)
        for i in lanes
    )
    return Tally(4 * loads, 4 * sum(2 * i + 1 < n + stride for i in lanes))


@specimen(strided_mask_kernel, strided_mask_counts, n=small(0, 70), stride=st.integers(-3, 4))
def strided_and_divided_masks(kernel, n, stride, seed):
    x, out = normal(seed, 32), blank(32)
    kernel[(4,)](x, out, n, stride, BLOCK=8)
    return (out,)


@triton.jit
def flag_kernel(x, flags, out, n, flag, BLOCK: tl.constexpr):
    pid = tl.program_id(0)
    offs = pid * BLOCK + tl.arange(0, BLOCK)
    mask = offs < n
    even = pid % 2 == 0
    acc = tl.load(x + offs, mask=mask & even, other=0.0)
    acc += tl.load(x + offs, mask=mask & (flag > 0), other=0.0)
    acc += tl.load(x + offs, mask=(tl.load(flags + pid) != 0) & mask, other=0.0)
    acc += tl.load(x + offs, mask=mask | even, other=0.0)
    acc += tl.load(x + offs, mask=even, other=0.0)
    one = tl.load(x + pid, mask=even, other=0.0)
    tl.store(out + offs, acc + one, mask=mask & (even | (flag > 0)))


def flag_counts(n, flag, seed, **_):
    flags = integers(seed, 0, 2, 5)
    loads = stores = 0
    for pid in range(5):
        lanes, even = min(8, max(0, n - 8 * pid)), pid % 2 == 0
        loads += 1 + (9 if even else 0) + lanes * (even + (flag > 0) + int(flags[pid])) + (8 if even else lanes)
        stores += lanes * (even or flag > 0)
    return Tally(4 * loads, 4 * stores)


@specimen(flag_kernel, flag_counts, n=small(), flag=st.integers(-1, 1))
def scalar_predicates(kernel, n, flag, seed):
    x, flags, out = normal(seed, 40), integers(seed, 0, 2, 5), blank(40)
    kernel[(5,)](x, flags, out, n, flag, BLOCK=8)
    return (out,)
