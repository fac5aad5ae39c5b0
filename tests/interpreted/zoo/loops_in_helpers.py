"""Helpers that loop, found through a module, and two of one name."""

# Kernels are written the ways people write them, not only the way the linter would.
# ruff: noqa: PIE808

from __future__ import annotations

import sys

import torch
import triton
import triton.language as tl
from hypothesis import strategies as st

from tests.interpreted.oracle import Tally
from tests.interpreted.zoo.helpers import load_one  # noqa: F401 (this_module.load_one)
from tests.interpreted.zoo.specimen import blank, normal, small, specimen


@triton.jit
def sum_of_row(x, begin, end, BLOCK: tl.constexpr):
    acc = tl.zeros((BLOCK,), tl.float32)
    for start in range(begin, end, BLOCK):
        offs = start + tl.arange(0, BLOCK)
        if end - start >= BLOCK:
            acc += tl.load(x + offs)
        else:
            acc += tl.load(x + offs, mask=offs < end, other=0.0)
    return tl.sum(acc)


this_module = sys.modules[__name__]


@triton.jit
def looping_helper_kernel(x, starts, out, rows, BLOCK: tl.constexpr):
    for row in range(0, rows):
        begin = this_module.load_one(starts, row)
        if begin % 2 == 0:
            tl.store(out + row, this_module.sum_of_row(x, begin, tl.load(starts + row + 1), BLOCK))
        else:
            while begin < tl.load(starts + row + 1):
                tl.atomic_add(out + row, sum_of_row(x, begin, begin + 1, BLOCK=BLOCK))
                begin += 1


def looping_helper_counts(lengths, **_):
    loads = stores = atomics = begin = 0
    for length in lengths:
        if begin % 2 == 0:
            loads, stores = loads + 2 + length, stores + 1
        else:
            loads, atomics = loads + 1 + length + 1 + length, atomics + length
        begin += length
    return Tally(4 * loads, 4 * stores, 4 * atomics)


@specimen(looping_helper_kernel, looping_helper_counts, lengths=st.lists(small(0, 20), min_size=1, max_size=5))
def loop_in_a_helper_of_a_module(kernel, lengths, seed):
    starts = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    x, out = normal(seed, sum(lengths)), blank(len(lengths))
    kernel[(1,)](x, starts, out, len(lengths), BLOCK=8)
    return (out,)


@triton.jit
def row_sum(x, n):
    acc = 0.0
    for i in range(0, n):
        acc += tl.load(x + i)
    return acc


sum_of_halves = row_sum


@triton.jit
def row_sum(x, halves, n):  # as two modules may have helpers of one name
    acc = 0.0
    for i in range(0, n):
        acc += tl.load(x + i)
        acc += sum_of_halves(halves, 2)
    return acc


@triton.jit
def namesakes_kernel(x, halves, out, n):
    tl.store(out, row_sum(x, halves, n))


@specimen(namesakes_kernel, lambda n, **_: Tally(8 * n, 4), n=small(0, 9))
def helpers_of_one_name(kernel, n, seed):
    x, halves, out = normal(seed, n), normal(seed, 2, dtype=torch.float16), blank(1)
    kernel[(1,)](x, halves, out, n)
    return (out,)
