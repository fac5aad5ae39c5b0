"""Block pointers, where Triton has them, and tensor descriptors."""

from __future__ import annotations

from math import ceil

import torch
import triton
import triton.language as tl
from hypothesis import strategies as st
from triton.tools.tensor_descriptor import TensorDescriptor

from roofline_policies.counting.triton_versions import HAS_BLOCK_POINTERS
from tests.interpreted.oracle import Tally
from tests.interpreted.zoo.specimen import blank, integers, interval, normal, small, specimen, total


@triton.jit
def block_pointer_kernel(x, out, rows, cols, BM: tl.constexpr, BN: tl.constexpr):
    first = tl.program_id(0) * BM
    source = tl.make_block_ptr(x, (rows, cols), (cols, 1), (first, 0), (BM, BN), (1, 0))
    target = tl.make_block_ptr(
        base=out, shape=(rows, cols), strides=(cols, 1), offsets=(first, 0), block_shape=(BM, BN), order=(1, 0)
    )
    for _ in range(0, cols, BN):
        value = tl.load(source, boundary_check=(0, 1), padding_option="zero")
        tl.store(target, value * 2, boundary_check=(1, 0))
        source = tl.advance(source, (0, BN))
        target = tl.advance(target, [0, BN])


@specimen(
    block_pointer_kernel,
    lambda rows, cols, **_: Tally(4 * rows * cols, 4 * rows * cols),
    available=HAS_BLOCK_POINTERS,
    rows=small(),
    cols=small(),
)
def block_pointers_advanced_in_a_loop(kernel, rows, cols, seed):
    x, out = normal(seed, rows, cols), blank(rows, cols)
    kernel[(triton.cdiv(rows, 8),)](x, out, rows, cols, BM=8, BN=16)
    return (out,)


@triton.jit
def named_boundaries_kernel(x, out, rows, cols, stride, BM: tl.constexpr, BN: tl.constexpr):
    first = tl.program_id(0) * BM
    source = tl.make_block_ptr(x, (rows, cols), (stride, 1), (first, 0), (BM, BN), (1, 0))
    a = tl.load(source, boundary_check=(1,))
    b = tl.load(source, boundary_check=[0])
    c = tl.load(source)
    d = tl.load(tl.advance(source, (0, 0)), boundary_check=(0, 1), padding_option="nan")
    target = tl.make_block_ptr(out, (rows, cols), (stride, 1), (first, 0), (BM, BN), (1, 0))
    tl.store(target, a, boundary_check=(0,))
    tl.store(tl.advance(target, (tl.num_programs(0) * BM, 0)), a + b + c + d)


def named_boundaries_counts(rows, cols, **_):
    padded, width = 8 * ceil(rows / 8), min(cols, 16)
    return Tally(2 * (padded * width + rows * 16 + padded * 16 + rows * width), 2 * (rows * 16 + padded * 16))


@specimen(
    named_boundaries_kernel,
    named_boundaries_counts,
    available=HAS_BLOCK_POINTERS,
    rows=small(1, 20),
    cols=small(1, 16),
)
def boundary_check_of_named_dimensions(kernel, rows, cols, seed):
    blocks = triton.cdiv(rows, 8)
    x, out = normal(seed, blocks * 8, 16, dtype=torch.float16), blank(2 * blocks * 8, 16, dtype=torch.float16)
    kernel[(blocks,)](x, out, rows, cols, 16, BM=8, BN=16)
    return (out,)


@triton.jit
def block_pointer_offset_kernel(x, out, n, start, BLOCK: tl.constexpr):
    source = tl.make_block_ptr(x, (n,), (1,), (start,), (BLOCK,), (0,))
    for i in range(3):
        lane = tl.arange(0, BLOCK)
        tl.store(out + i * BLOCK + lane, tl.load(source, boundary_check=(0,), padding_option="zero"))
        source = tl.advance(source, (BLOCK,))


@specimen(
    block_pointer_offset_kernel,
    lambda n, start, **_: Tally(4 * interval(n, start, start + 24), 4 * 24),
    available=HAS_BLOCK_POINTERS,
    n=small(1, 30),
    start=st.integers(-30, 40),
)
def block_pointer_before_the_start(kernel, n, start, seed):
    x, out = normal(seed, n), blank(24)
    kernel[(1,)](x, out, n, start, BLOCK=8)
    return (out,)


@triton.jit
def descriptor_kernel(x, out, rows, cols, stride, shift, BM: tl.constexpr, BN: tl.constexpr):
    source = tl.make_tensor_descriptor(x, shape=[rows, cols], strides=[stride, 1], block_shape=[BM, BN])
    target = tl.make_tensor_descriptor(out, [rows, cols], [stride, 1], [BM, BN])
    row = tl.program_id(0) * BM + shift
    for col in range(0, cols, BN):
        value = source.load([row, col])
        if row % 2 == 0:
            target.store([row, col], value + 1)
        else:
            tl.store_tensor_descriptor(target, [row, col], tl.load_tensor_descriptor(source, [row, col]) * value)


def descriptor_counts(rows, cols, shift, **_):
    loads = stores = 0
    for pid in range(ceil(rows / 8) + 1):
        row = 8 * pid + shift
        lanes = interval(rows, row, row + 8) * cols
        loads += lanes * (1 if row % 2 == 0 else 2)
        stores += lanes
    return Tally(4 * loads, 4 * stores)


@specimen(descriptor_kernel, descriptor_counts, rows=small(1, 20), cols=small(1, 20), shift=st.integers(-9, 9))
def descriptors_with_ragged_edges(kernel, rows, cols, shift, seed):
    width = 4 * ceil(cols / 4)  # rows start at multiples of 16 bytes
    x, out = normal(seed, rows, width), blank(rows, width)
    kernel[(ceil(rows / 8) + 1,)](x, out, rows, cols, width, shift, BM=8, BN=8)
    return (out,)


@triton.jit
def descriptor_argument_kernel(source, target, shift, BM: tl.constexpr, BN: tl.constexpr):
    row = tl.program_id(0) * BM
    target.store([row, tl.program_id(1) * BN], source.load([row + shift, tl.program_id(1) * BN]))


def descriptor_argument_counts(rows, shift, **_):
    blocks = ceil(rows / 4)
    return Tally(2 * 16 * interval(rows, shift, shift + 4 * blocks), 2 * 16 * rows)


@specimen(descriptor_argument_kernel, descriptor_argument_counts, rows=small(1, 20), shift=st.integers(-5, 5))
def descriptors_from_the_host(kernel, rows, shift, seed):
    x, out = normal(seed, rows, 16, dtype=torch.float16), blank(rows, 16, dtype=torch.float16)
    source, target = (TensorDescriptor.from_tensor(t, [4, 8]) for t in (x, out))
    kernel[(triton.cdiv(rows, 4), 2)](source, target, shift, BM=4, BN=8)
    return (out,)


@triton.jit
def gather_kernel(x, picks, out, rows, cols, stride, col, COUNT: tl.constexpr, BN: tl.constexpr):
    source = tl.make_tensor_descriptor(x, [rows, cols], [stride, 1], [1, BN])
    target = tl.make_tensor_descriptor(out, [rows, cols], [stride, 1], [1, BN])
    pick = tl.load(picks + tl.arange(0, COUNT))
    target.scatter(source.gather(pick, col), pick, col)


def gather_counts(rows, cols, col, seed):
    picks = integers(seed, -2, rows + 2, 8)
    lanes = total((picks >= 0) & (picks < rows)) * interval(cols, 4 * col, 4 * col + 16)
    return Tally(4 * 8 + 4 * lanes, 4 * lanes)


@specimen(gather_kernel, gather_counts, rows=small(1, 9), cols=small(1, 30), col=small(0, 8), uncountable=True)
def descriptor_gather_and_scatter(kernel, rows, cols, col, seed):
    width = 4 * ceil(cols / 4)
    x, out = normal(seed, rows, width), blank(rows, width)
    kernel[(1,)](x, integers(seed, -2, rows + 2, 8), out, rows, cols, width, 4 * col, COUNT=8, BN=16)
    return (out,)
