"""Products of matrices, and attention."""

# Kernels are written the ways people write them, not only the way the linter would.
# ruff: noqa: PIE808

from __future__ import annotations

from math import ceil
from typing import Any

import torch
import triton
import triton.language as tl
from hypothesis import strategies as st

from roofline_policies.work import Precision
from tests.interpreted.oracle import Tally
from tests.interpreted.zoo.specimen import blank, integers, normal, small, specimen

PRECISION = {
    torch.float32: Precision.FP32,
    torch.bfloat16: Precision.BF16,
    torch.float16: Precision.FP16,
    torch.float8_e4m3fn: Precision.FP8,
    torch.float8_e5m2: Precision.FP8,
    torch.int8: Precision.INT8,
}


@triton.jit
def matmul_tiles_kernel(
    a, b, c, M, N, K, stride_am, stride_bk, stride_cm, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr
):
    rm = tl.program_id(0) * BM + tl.arange(0, BM)
    rn = tl.program_id(1) * BN + tl.arange(0, BN)
    rk = tl.arange(0, BK)
    a_at = a + rm[:, None] * stride_am + rk[None, :]
    b_at = b + rk[:, None] * stride_bk + rn[None, :]
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for k in range(0, tl.cdiv(K, BK)):
        left = K - k * BK
        x = tl.load(a_at, mask=(rm[:, None] < M) & (rk[None, :] < left), other=0.0)
        y = tl.load(b_at, mask=(rk[:, None] < left) & (rn[None, :] < N), other=0.0)
        acc += tl.dot(x, y)
        a_at += BK
        b_at += BK * stride_bk
    mask = (rm[:, None] < M) & (rn[None, :] < N)
    tl.store(c + rm[:, None] * stride_cm + rn[None, :], acc.to(c.dtype.element_ty), mask=mask)


@triton.jit
def matmul_steps_kernel(
    a, b, c, M, N, K, stride_am, stride_bk, stride_cm, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr
):
    rm = tl.program_id(0) * BM + tl.arange(0, BM)
    rn = tl.program_id(1) * BN + tl.arange(0, BN)
    in_m = rm < M
    in_n = rn < N
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for k in range(0, K, BK):
        rk = k + tl.arange(0, BK)
        in_k = rk < K
        x = tl.load(a + rm[:, None] * stride_am + rk[None, :], mask=in_m[:, None] & in_k[None, :], other=0.0)
        y = tl.load(b + rk[:, None] * stride_bk + rn[None, :], mask=in_k[:, None] & in_n[None, :], other=0.0)
        acc = tl.dot(x, y, acc)
    tl.store(c + rm[:, None] * stride_cm + rn[None, :], acc, mask=in_m[:, None] & in_n[None, :])


@triton.jit
def matmul_wrapped_kernel(
    a, b, c, M, N, K, stride_am, stride_bk, stride_cm, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr
):
    """Rows and columns wrap around instead of being masked; tiles are numbered column by column."""
    tile = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    tiles_m = tl.cdiv(M, BM)
    rm = (tile % tiles_m) * BM + tl.arange(0, BM)
    rn = (tile // tiles_m) * BN + tl.arange(0, BN)
    rk = tl.arange(0, BK)
    a_at = a + (rm % M)[:, None] * stride_am + rk[None, :]
    b_at = b + rk[:, None] * stride_bk + (rn % N)[None, :]
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for k in tl.range(0, tl.cdiv(K, BK), num_stages=2):
        x = tl.load(a_at + k * BK, mask=rk[None, :] < K - k * BK, other=0.0)
        y = tl.load(b_at + k * BK * stride_bk, mask=rk[:, None] < K - k * BK, other=0.0)
        acc = tl.dot(x, y, acc=acc, input_precision="ieee")
    tl.store(c + rm[:, None] * stride_cm + rn[None, :], acc, mask=(rm[:, None] < M) & (rn[None, :] < N))


def matmul_flops(M, N, K):
    return 2 * ceil(M / 16) * ceil(N / 16) * ceil(K / 16) * 16**3


def matmul_counts(M, N, K, dtype, **_):
    loads = (M * ceil(N / 16) + N * ceil(M / 16)) * K * dtype.itemsize
    return Tally(loads, 4 * M * N, 0, {PRECISION[dtype]: matmul_flops(M, N, K)})


def wrapped_counts(M, N, K, dtype, **_):
    tiles = ceil(M / 16) * ceil(N / 16)
    return Tally(2 * tiles * 16 * K * dtype.itemsize, 4 * M * N, 0, {PRECISION[dtype]: matmul_flops(M, N, K)})


MATMUL: dict[str, Any] = {
    "M": small(1, 35),
    "N": small(1, 35),
    "K": small(1, 35),
    "dtype": st.sampled_from([torch.float16, torch.float32, torch.bfloat16]),
}


def launch_matmul(kernel, M, N, K, dtype, seed):
    a, b, c = normal(seed, M, K, dtype=dtype), normal(seed + 1, K, N, dtype=dtype), blank(M, N)
    strides = (a.stride(0), b.stride(0), c.stride(0))
    kernel[(triton.cdiv(M, 16), triton.cdiv(N, 16))](a, b, c, M, N, K, *strides, BM=16, BN=16, BK=16)
    return (c,)


@specimen(matmul_tiles_kernel, matmul_counts, **MATMUL)
def matmul_over_tiles(kernel, **params):
    return launch_matmul(kernel, **params)


@specimen(matmul_steps_kernel, matmul_counts, **MATMUL)
def matmul_in_steps(kernel, **params):
    return launch_matmul(kernel, **params)


@specimen(matmul_wrapped_kernel, wrapped_counts, **MATMUL)
def matmul_wrapped_around(kernel, **params):
    return launch_matmul(kernel, **params)


@triton.jit
def many_dots_kernel(half, brain, single, byte, eight, out, rounds, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)[:, None]
    j = tl.arange(0, BLOCK)[None, :]
    at = i * BLOCK + j
    h = tl.load(half + at)
    acc = tl.dot(h, tl.trans(h), out_dtype=tl.float32)
    for _ in range(rounds):
        x = tl.load(brain + at)
        acc += tl.dot(x, x)
        if rounds > 2:
            s = tl.load(single + at)
            acc = tl.dot(s, s, acc, allow_tf32=False)
    w = tl.load(byte + at)
    acc += tl.dot(w, w.T).to(tl.float32)
    e = tl.load(eight + at)
    acc += tl.dot(e, e, max_num_imprecise_acc=0)
    tl.store(out + at, acc)


def many_dots_counts(rounds, **_):
    singles = rounds if rounds > 2 else 0
    each = 2 * 32**3
    flops = {Precision.FP16: each, Precision.INT8: each, Precision.FP8: each}
    flops |= {Precision.BF16: rounds * each, Precision.FP32: singles * each}
    return Tally(32 * 32 * (2 + 2 * rounds + 4 * singles + 1 + 1), 32 * 32 * 4, 0, flops)


@specimen(many_dots_kernel, many_dots_counts, rounds=small(0, 4))
def dots_of_every_precision(kernel, rounds, seed):
    half, brain, single = (normal(seed, 32, 32, dtype=d) for d in (torch.float16, torch.bfloat16, torch.float32))
    byte, eight = integers(seed, -9, 9, 32, 32, dtype=torch.int8), normal(seed, 32, 32).to(torch.float8_e5m2)
    out = blank(32, 32)
    kernel[(1,)](half, brain, single, byte, eight, out, rounds, BLOCK=32)
    return (out,)


@triton.jit
def batched_dot_kernel(a, b, out, batch, BATCH: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    i = tl.program_id(0) * BATCH + tl.arange(0, BATCH)[:, None, None]
    m = tl.arange(0, M)
    n = tl.arange(0, N)
    k = tl.arange(0, K)
    x = tl.load(a + i * M * K + m[None, :, None] * K + k[None, None, :], mask=i < batch, other=0.0)
    y = tl.load(b + i * K * N + k[None, :, None] * N + n[None, None, :], mask=i < batch, other=0.0)
    tl.store(out + i * M * N + m[None, :, None] * N + n[None, None, :], tl.dot(x, y), mask=i < batch)


@specimen(
    batched_dot_kernel,
    lambda batch, **_: Tally(
        2 * batch * (16 * 16 + 16 * 32),
        4 * batch * 16 * 32,
        0,
        {Precision.FP16: 2 * ceil(batch / 2) * 2 * 16 * 32 * 16},
    ),
    batch=small(1, 5),
)
def batched_dot(kernel, batch, seed):
    a, b = normal(seed, batch, 16, 16, dtype=torch.float16), normal(seed, batch, 16, 32, dtype=torch.float16)
    out = blank(batch, 16, 32)
    kernel[(triton.cdiv(batch, 2),)](a, b, out, batch, BATCH=2, M=16, N=32, K=16)
    return (out,)


@triton.jit
def scaled_dot_kernel(a, a_scale, b, b_scale, out, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    m = tl.arange(0, M)
    n = tl.arange(0, N)
    k = tl.arange(0, K)
    group = tl.arange(0, K // 32)
    x = tl.load(a + m[:, None] * K + k[None, :])
    y = tl.load(b + k[:, None] * N + n[None, :])
    x_scale = tl.load(a_scale + m[:, None] * (K // 32) + group[None, :])
    y_scale = tl.load(b_scale + n[:, None] * (K // 32) + group[None, :])
    tl.store(out + m[:, None] * N + n[None, :], tl.dot_scaled(x, x_scale, "e4m3", y, y_scale, "e4m3"))


@specimen(
    scaled_dot_kernel,
    lambda **_: Tally(2 * 32 * 64 + 2 * 32 * 2, 4 * 32 * 32, 0, {Precision.FP8: 2 * 32 * 32 * 64}),
    uncountable=True,
)
def scaled_dot(kernel, seed):
    a, b = (normal(seed, *shape).to(torch.float8_e4m3fn) for shape in ((32, 64), (64, 32)))
    scales = integers(seed, 125, 130, 2, 32, 2, dtype=torch.uint8)
    out = blank(32, 32)
    kernel[(1,)](a, scales[0], b, scales[1], out, M=32, N=32, K=64)
    return (out,)


@triton.jit
def attend(acc, peak, norm, q, keys, values, at, mask):
    k = tl.load(keys + at, mask=mask, other=0.0)
    scores = tl.dot(q, tl.trans(k))
    scores = tl.where(tl.trans(mask.to(tl.int8)) != 0, scores, -1e30)
    new_peak = tl.maximum(peak, tl.max(scores, 1))
    weights = tl.exp(scores - new_peak[:, None])
    scale = tl.exp(peak - new_peak)
    v = tl.load(values + at, mask=mask, other=0.0)
    acc = acc * scale[:, None] + tl.dot(weights.to(v.dtype), v)
    return acc, new_peak, norm * scale + tl.sum(weights, 1)


@triton.jit
def attention_kernel(queries, keys, values, starts, out, BLOCK: tl.constexpr, DIM: tl.constexpr):
    """Decode over sequences of ragged lengths; the helper takes the mask and returns the carried state."""
    sequence = tl.program_id(0)
    begin = tl.load(starts + sequence)
    end = tl.load(starts + sequence + 1)
    head = tl.arange(0, BLOCK)
    dim = tl.arange(0, DIM)
    q = tl.load(queries + sequence * BLOCK * DIM + head[:, None] * DIM + dim[None, :])
    peak = tl.full((BLOCK,), -1e30, tl.float32)
    norm = tl.zeros((BLOCK,), tl.float32)
    acc = tl.zeros((BLOCK, DIM), tl.float32)
    for start in range(begin, end, BLOCK):
        token = start + tl.arange(0, BLOCK)
        mask = (token < end)[:, None] & (dim[None, :] < DIM)
        at = token[:, None] * DIM + dim[None, :]
        acc, peak, norm = attend(acc, peak, norm, q, keys, values, at, mask)
    tl.store(out + sequence * BLOCK * DIM + head[:, None] * DIM + dim[None, :], acc / norm[:, None])


def attention_counts(lengths, **_):
    s, tokens, tiles = len(lengths), sum(lengths), sum(ceil(length / 16) for length in lengths)
    flops = {Precision.FP16: tiles * 2 * (2 * 16 * 16 * 16)}
    return Tally(2 * 4 * s + 2 * (s * 256 + 2 * tokens * 16), 4 * s * 256, 0, flops)


@specimen(attention_kernel, attention_counts, lengths=st.lists(small(1, 40), min_size=1, max_size=3))
def attention_in_a_helper(kernel, lengths, seed):
    starts = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    tokens = sum(lengths)
    q, k, v = (normal(seed + i, n, 16, dtype=torch.float16) for i, n in enumerate((16 * len(lengths), tokens, tokens)))
    out = blank(len(lengths), 16, 16)
    kernel[(len(lengths),)](q, k, v, starts, out, BLOCK=16, DIM=16)
    return (out,)
