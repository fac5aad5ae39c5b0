"""Branches, conditional expressions, and what is known when a kernel is compiled."""

from __future__ import annotations

from math import ceil

import torch
import triton
import triton.language as tl
from hypothesis import strategies as st

from tests.interpreted.oracle import Tally
from tests.interpreted.zoo.specimen import blank, integers, normal, small, specimen


@triton.jit
def branches_kernel(x, y, flags, out, n, BLOCK: tl.constexpr):
    pid = tl.program_id(0)
    offs = tl.arange(0, BLOCK)
    if tl.load(flags + pid) > 1:
        value = tl.load(x + offs, mask=offs < n, other=0.0)
    elif tl.load(flags + pid + 1) > 0:
        value = tl.load(y + offs) + tl.load(x + offs)
    else:
        value = tl.zeros((BLOCK,), tl.float32)
        if n > 4:
            value += tl.load(y + pid)
    tl.store(out + pid * BLOCK + offs, value)


def branches_counts(n, seed):
    flags = integers(seed, 0, 3, 5).tolist()
    loads = 0
    for pid in range(4):
        if flags[pid] > 1:
            loads += 1 + min(n, 8)
        else:
            loads += 2 + (16 if flags[pid + 1] > 0 else n > 4)
    return Tally(4 * loads, 4 * 32)


@specimen(branches_kernel, branches_counts, n=small(1, 10))
def loads_under_and_in_the_test_of_if(kernel, n, seed):
    x, y, out = normal(seed, 8), normal(seed + 1, 8), blank(32)
    kernel[(4,)](x, y, integers(seed, 0, 3, 5), out, n, BLOCK=8)
    return (out,)


@triton.jit
def conditional_expression_kernel(x, y, flags, out, BLOCK: tl.constexpr):
    pid = tl.program_id(0)
    offs = tl.arange(0, BLOCK)
    one = tl.load(x + pid) if tl.load(flags + pid) > 0 else tl.load(y + pid) + tl.load(y)
    source = x if pid % 2 == 0 else y
    block = tl.load(source + offs) if pid > 1 else tl.load(source + offs, mask=offs < 3, other=0.0)
    tl.store(out + pid * BLOCK + offs, block + one, mask=(offs < 5) if pid == 0 else (offs < 6))


def conditional_expression_counts(seed):
    flags = integers(seed, 0, 2, 4).tolist()
    return Tally(4 * (4 + sum(1 if flag else 2 for flag in flags) + 3 + 3 + 8 + 8), 4 * (5 + 3 * 6))


@specimen(conditional_expression_kernel, conditional_expression_counts)
def loads_in_conditional_expressions(kernel, seed):
    x, y, out = normal(seed, 8), normal(seed + 1, 8), blank(32)
    kernel[(4,)](x, y, integers(seed, 0, 2, 4), out, BLOCK=8)
    return (out,)


@triton.jit
def bool_operators_kernel(a, b, out):
    """The compiler evaluates both sides of ``and`` and ``or``, the interpreter is Python and may not."""
    pid = tl.program_id(0)
    value = 0
    if (tl.load(a + pid) > 0) and (tl.load(b + pid) > 0):
        value += 1
    if tl.load(a + pid) > 0 or tl.load(b + pid) > 0 or pid > 2:
        value += 2
    if not tl.load(a + pid) > 1:
        value += 4
    tl.store(out + pid, value)


@specimen(bool_operators_kernel)
def bool_operators_on_loads(kernel, seed):
    out = blank(6, dtype=torch.int32)
    kernel[(6,)](integers(seed, 0, 3, 6), integers(seed + 1, 0, 2, 6), out)
    return (out,)


@triton.jit
def constexpr_branches_kernel(x, bias, out, n, EVEN: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if EVEN:
        value = tl.load(x + offs)
        mask = None
    else:
        mask = offs < n
        value = tl.load(x + offs, mask=mask, other=0.0)
    value += tl.load(bias + offs, mask=None if EVEN else mask) if bias is not None else 1.0
    if HAS_BIAS and tl.load(bias) > 0:
        value *= 2
    if bias is not None:
        value -= tl.load(bias + 1)
    tl.store(out + offs, value, mask=mask)


def constexpr_branches_counts(n, biased, **_):
    blocks = ceil(n / 8)
    return Tally(4 * (n + (n + 2 * blocks if biased else 0)), 4 * n)


@specimen(constexpr_branches_kernel, constexpr_branches_counts, n=small(2, 24), biased=st.booleans())
def constexpr_branches_and_optional_pointers(kernel, n, biased, seed):
    x, bias, out = normal(seed, n), normal(seed, n) if biased else None, blank(n)
    kernel[(triton.cdiv(n, 8),)](x, bias, out, n, EVEN=n % 8 == 0, HAS_BIAS=biased, BLOCK=8)
    return (out,)


@triton.jit
def even_loop_kernel(x, out, n, EVEN: tl.constexpr, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, n, BLOCK):
        if EVEN:
            acc += tl.load(x + start + lane)
        else:
            acc += tl.load(x + start + lane, mask=lane < n - start, other=0.0)
        acc += tl.load(x + start + lane, mask=False, other=2.0)
        tl.store(out + lane, acc, mask=False)
    for start in range(0, n - 16, BLOCK):
        NARROW: tl.constexpr = BLOCK <= 8
        if NARROW and not EVEN:
            acc += tl.load(x + start + lane)
        elif NARROW:
            mask = lane < 3
            acc += tl.load(x + start + lane, mask=mask, other=0.0)
    tl.store(out + lane, acc)


def even_loop_counts(n, **_):
    trips = max(0, ceil((n - 16) / 8))
    return Tally(4 * (n + trips * (3 if n % 8 == 0 else 8)), 32)


@specimen(even_loop_kernel, even_loop_counts, n=small(1, 40))
def constexpr_branches_in_loops(kernel, n, seed):
    x, out = normal(seed, n), blank(8)
    kernel[(1,)](x, out, n, EVEN=n % 8 == 0, BLOCK=8)
    return (out,)
