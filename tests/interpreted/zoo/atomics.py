"""Atomics, and calls written as methods."""

from __future__ import annotations

from math import ceil

import torch
import triton
import triton.language as tl

from tests.interpreted.oracle import Tally
from tests.interpreted.zoo.specimen import blank, integers, interval, normal, small, specimen


@triton.jit
def histogram_kernel(x, bins, n, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < n
    value = tl.load(x + offs, mask=mask, other=0)
    tl.atomic_add(bins + value, 1, mask=mask)
    tl.atomic_add(bins + 8, tl.sum(mask.to(tl.int32)), sem="relaxed")


@specimen(histogram_kernel, lambda n, **_: Tally(4 * n, 0, 4 * n + 4 * ceil(n / 8)), n=small())
def masked_atomic_add(kernel, n, seed):
    bins = torch.zeros(9, dtype=torch.int32)
    kernel[(triton.cdiv(n, 8),)](integers(seed, 0, 8, n), bins, n, BLOCK=8)
    return (bins,)


@triton.jit
def atomics_kernel(ints, longs, floats, out, n, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    mask = offs < n
    # Lanes that are masked off get an undefined value, from the interpreter as from a GPU.
    old = tl.where(mask, tl.atomic_max(ints + offs, 3, mask=mask), 0)
    tl.atomic_min(ints + offs, n - offs, mask)
    tl.atomic_and(longs + offs, offs, mask=offs >= n)
    tl.atomic_or(longs + offs, old, mask=mask)
    tl.atomic_xor(longs, 5)
    peak = tl.where(mask, tl.atomic_max(floats + offs, (n - 2 * offs).to(tl.float32), mask=mask), 1.0)
    low = tl.atomic_min(floats + offs, peak * 0.5)
    seen = tl.atomic_cas(ints + BLOCK, 0, 1)
    swapped = tl.where(offs < n - 1, tl.atomic_xchg(ints + offs, seen, mask=offs < n - 1), 0)
    tl.atomic_add(floats + offs, low, mask=mask)
    block = tl.atomic_cas(ints + offs, old, old + 1)
    tl.store(out + offs, swapped + block, mask=mask)


def atomics_counts(n, **_):
    n8 = interval(8, 0, n)
    words = 4 * n8 + 8 + 1 + interval(8, 0, n - 1) + 8  # of 4 bytes
    return Tally(0, 2 * 4 * n8, 2 * (4 * words + 8 * (8 + 1)))


@specimen(atomics_kernel, atomics_counts, n=small(0, 10))
def every_atomic(kernel, n, seed):
    ints, longs = integers(seed, 0, 9, 9), integers(seed, 0, 99, 8, dtype=torch.int64)
    floats, out = normal(seed, 8), blank(8)
    kernel[(2,)](ints, longs, floats, out, n, BLOCK=8)
    return ints, longs, floats, out


@triton.jit
def methods_kernel(x, out, n, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < n
    value = tl.load(x + offs, mask=mask, other=0)
    old = (out + offs).atomic_add(value, mask=mask)
    (out + n + offs).store(old, mask=mask)
    (out + offs).atomic_max(old + 1, mask=offs < n - 1)
    (out + 2 * n).atomic_xchg(value.max() + value.sum(axis=0))


@specimen(
    methods_kernel,
    lambda n, **_: Tally(4 * n, 4 * n, 4 * (n + n - 1 + ceil(n / 8))),
    n=small(),
)
def method_calls(kernel, n, seed):
    x, out = integers(seed, 0, 9, n), blank(2 * n + 1, dtype=torch.int32)
    kernel[(triton.cdiv(n, 8),)](x, out, n, BLOCK=8)
    return (out,)


@triton.jit
def method_keywords_kernel(x, out, rows, cols, BM: tl.constexpr, BN: tl.constexpr):
    lane = tl.arange(0, BN)
    value = tl.load(x + lane).gather(index=BN - 1 - lane, axis=0)
    (out + lane).atomic_add(val=value, mask=lane < cols, sem="relaxed")
    (out + lane).store(value=value, mask=lane < rows)
    (out + lane).store(value, lane < 2)
    (out + lane).atomic_max(value, lane < 3, "relaxed")
    source = tl.make_tensor_descriptor(base=x, shape=[rows, cols], strides=[BN, 1], block_shape=[BM, BN])
    target = tl.make_tensor_descriptor(out, [rows, cols], [BN, 1], [BM, BN])
    target.store(offsets=[0, 0], value=source.load(offsets=[1, 0]))


def method_keywords_counts(rows, cols, **_):
    loads = 8 + interval(rows, 1, 5) * cols
    return Tally(4 * loads, 4 * (min(rows, 8) + 2 + min(rows, 4) * cols), 4 * (cols + 3))


@specimen(method_keywords_kernel, method_keywords_counts, rows=small(1, 6), cols=small(1, 8))
def keywords_of_methods(kernel, rows, cols, seed):
    x, out = integers(seed, 0, 9, 8, 8), blank(8, 8, dtype=torch.int32)
    kernel[(1,)](x, out, rows, cols, BM=4, BN=8)
    return (out,)


@triton.jit
def lock_kernel(lock, out):
    while tl.atomic_cas(lock, 0, 1) == 1:
        pass
    tl.store(out, tl.load(out) + 1)
    tl.atomic_xchg(lock, 0)


@specimen(
    lock_kernel,
    lambda programs, **_: Tally(4 * programs, 4 * programs, 8 * programs),
    uncountable=True,
    programs=small(1, 4),
)
def spin_lock(kernel, programs, seed):
    lock, out = torch.zeros(1, dtype=torch.int32), blank(1)
    kernel[(programs,)](lock, out)
    return lock, out
