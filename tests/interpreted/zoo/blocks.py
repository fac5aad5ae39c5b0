"""Masks of several axes, and grids."""

from __future__ import annotations

from math import ceil

import torch
import triton
import triton.language as tl

from tests.interpreted.oracle import Tally
from tests.interpreted.zoo.specimen import blank, integers, interval, normal, small, specimen, total


@triton.jit
def copy_2d_kernel(x, out, m, n, stride, BM: tl.constexpr, BN: tl.constexpr):
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    cols = tl.program_id(1) * BN + tl.arange(0, BN)
    mask = (rows < m)[:, None] & (cols[None, :] < n)
    at = rows[:, None] * stride + cols[None, :]
    tl.store(out + at, tl.load(x + at, mask=mask), mask=(rows[:, None] < m) & (cols < n)[None, :])


@specimen(
    copy_2d_kernel,
    lambda m, n, **_: Tally(2 * m * n, 2 * m * n),
    m=small(1, 20),
    n=small(1, 20),
    pad=small(0, 5),
)
def separable_2d_copy(kernel, m, n, pad, seed):
    x, out = normal(seed, m, n + pad, dtype=torch.float16), blank(m, n + pad, dtype=torch.float16)
    kernel[(triton.cdiv(m, 4), triton.cdiv(n, 8))](x, out, m, n, x.stride(0), BM=4, BN=8)
    return (out,)


@triton.jit
def broadcast_kernel(x, out, m, n, BM: tl.constexpr, BN: tl.constexpr):
    rows = tl.arange(0, BM)
    cols = tl.arange(0, BN)
    row_mask = rows < m
    at = rows[:, None] * BN + cols[None, :]
    a = tl.load(x + at, mask=cols[None, :] < n, other=0.0)  # one row of mask for all rows
    b = tl.load(x + at, mask=tl.expand_dims(row_mask, 1), other=0.0)
    c = tl.load(x + cols[None, :], mask=row_mask[:, None], other=0.0)  # the mask widens the pointers
    d = tl.load(x + at, mask=tl.broadcast_to(row_mask[:, None], (BM, BN)), other=0.0)
    e = tl.load(x + at, mask=m > n, other=0.0)
    tl.store(out + at, a + b + c + d + e, mask=row_mask[:, None])
    tl.store(out + BM * BN + at, 1.5, mask=cols[None, :] < n)


def broadcast_counts(m, n, **_):
    m8, n16 = min(m, 8), min(n, 16)
    return Tally(4 * (8 * n16 + 3 * m8 * 16 + (128 if m > n else 0)), 4 * (m8 * 16 + 8 * n16))


@specimen(broadcast_kernel, broadcast_counts, m=small(0, 10), n=small(0, 18))
def masks_that_broadcast(kernel, m, n, seed):
    x, out = normal(seed, 128), blank(256)
    kernel[(1,)](x, out, m, n, BM=8, BN=16)
    return (out,)


@triton.jit
def flattened_kernel(x, out, m, n, limit, BM: tl.constexpr, BN: tl.constexpr):
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    cols = tl.arange(0, BN)
    at = rows[:, None] * n + cols[None, :]
    value = tl.load(x + at, mask=(at < limit) & (cols[None, :] < n) & (rows[:, None] < m), other=0.0)
    late = tl.arange(BN // 2, BN)
    value += tl.sum(tl.load(x + late, mask=late < n, other=0.0))
    lengths = tl.sum((at < limit).to(tl.int32), axis=1)
    value += tl.load(x + at, mask=(cols[None, :] < lengths[:, None]) & (at < m * n), other=0.0)
    tl.store(out + at, value, mask=(rows < m)[:, None] & (cols < n))


def flattened_counts(m, n, limit, **_):
    loads = 0
    for row in range(4 * ceil(m / 4)):
        length = sum(row * n + col < limit for col in range(8))
        loads += sum(row * n + col < limit for col in range(n)) if row < m else 0
        loads += sum(col < length and row * n + col < m * n for col in range(8))
    return Tally(4 * (loads + ceil(m / 4) * interval(n, 4, 8)), 4 * m * n)


@specimen(flattened_kernel, flattened_counts, m=small(1, 10), n=small(1, 8), limit=small(0, 90))
def mask_on_flattened_offsets(kernel, m, n, limit, seed):
    x, out = normal(seed, m * n + 8), blank(m, n)
    kernel[(triton.cdiv(m, 4),)](x, out, m, n, limit, BM=4, BN=8)
    return (out,)


@triton.jit
def causal_kernel(x, out, n, BQ: tl.constexpr, BK: tl.constexpr):
    q = tl.program_id(0) * BQ + tl.arange(0, BQ)
    acc = tl.zeros((BQ,), tl.float32)
    for start in range(0, tl.minimum((tl.program_id(0) + 1) * BQ, n), BK):
        k = start + tl.arange(0, BK)
        mask = (q[:, None] >= k[None, :]) & (q[:, None] < n) & (k[None, :] < n)
        acc += tl.sum(tl.load(x + q[:, None] * n + k[None, :], mask=mask, other=0.0), 1)
    tl.store(out + q, acc, mask=q < n)


@specimen(causal_kernel, lambda n, **_: Tally(2 * n * (n + 1), 4 * n), n=small(1, 30))
def causal_mask(kernel, n, seed):
    x, out = normal(seed, n, n), blank(n)
    kernel[(triton.cdiv(n, 8),)](x, out, n, BQ=8, BK=4)
    return (out,)


@triton.jit
def ragged_rows_kernel(x, lengths, out, rows, width, BM: tl.constexpr, BN: tl.constexpr):
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    length = tl.load(lengths + row, mask=row < rows, other=0)
    acc = tl.zeros((BM,), tl.float32)
    for start in range(0, width, BN):
        col = start + tl.arange(0, BN)
        mask = col[None, :] < length[:, None]
        acc += tl.sum(tl.load(x + row[:, None] * width + col[None, :], mask=mask, other=0.0), axis=1)
    tl.store(out + row, acc, mask=row < rows)


@specimen(
    ragged_rows_kernel,
    lambda rows, width, seed: Tally(4 * (rows + total(integers(seed, 0, width + 1, rows))), 4 * rows),
    rows=small(1, 12),
    width=small(1, 20),
)
def bound_loaded_per_row(kernel, rows, width, seed):
    x, lengths, out = normal(seed, rows, width), integers(seed, 0, width + 1, rows), blank(rows)
    kernel[(triton.cdiv(rows, 4),)](x, lengths, out, rows, width, BM=4, BN=8)
    return (out,)


@triton.jit
def cube_kernel(x, out, a, b, c, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr):
    i = tl.program_id(0) * A + tl.arange(0, A)[:, None, None]
    j = tl.program_id(1) * B + tl.arange(0, B)[None, :, None]
    k = tl.program_id(2) * C + tl.arange(0, C)[None, None, :]
    mask = (i < a) & (j < b) & (k < c)
    at = (i * b + j) * c + k
    tl.store(out + at, tl.load(x + at, mask=mask, other=0) + 1, mask=mask & (j < b - 1))


@specimen(
    cube_kernel,
    lambda a, b, c, **_: Tally(a * b * c, a * (b - 1) * c),
    a=small(1, 5),
    b=small(1, 6),
    c=small(1, 9),
)
def three_dimensional_blocks_and_grid(kernel, a, b, c, seed):
    x, out = integers(seed, 0, 99, a, b, c, dtype=torch.int8), blank(a, b, c, dtype=torch.int8)
    kernel[(triton.cdiv(a, 2), triton.cdiv(b, 4), triton.cdiv(c, 4))](x, out, a, b, c, A=2, B=4, C=4)
    return (out,)


@triton.jit
def grid_2d_kernel(out, BLOCK: tl.constexpr):
    program = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    lane = tl.arange(0, BLOCK)
    tl.store(out + program * BLOCK + lane, program, mask=lane <= tl.program_id(1))


@specimen(
    grid_2d_kernel,
    lambda x, y, **_: Tally(0, 4 * x * sum(min(8, row + 1) for row in range(y))),
    x=small(1, 4),
    y=small(1, 10),
)
def two_dimensional_grid(kernel, x, y, seed):
    out = blank(x * y * 8, dtype=torch.int32)
    kernel[(x, y)](out, BLOCK=8)
    return (out,)
