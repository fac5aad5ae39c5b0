"""Masks that are no comparison: joined by ``and``, ``or``, ``not``, or plain numbers; and loops that are left early.

Here the interpreter is Python and the compiler is not: ``first and second`` is ``second`` to Python where ``first`` is
a block, and the lanes of both to the compiler.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from hypothesis import strategies as st

from roofline_policies.counting.triton_versions import NUMBERS_ARE_MASKS
from tests.interpreted.oracle import Tally
from tests.interpreted.zoo.specimen import blank, interval, normal, small, specimen


@triton.jit
def and_kernel(x, out, n, low, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    one = tl.load(x + offs, mask=(offs < n) and (offs >= low), other=0.0)
    two = tl.load(x + offs, mask=(n > 3) and (offs < low), other=0.0)
    three = tl.load(x + offs, mask=(offs < n) and (n > 3), other=0.0)
    four = tl.load(x + offs, mask=(n > 3) and (offs < n) and (offs < low), other=0.0)
    mask = offs < n and offs < low and offs >= 2
    tl.store(out + offs, one + two + three + four, mask=mask)


@specimen(
    and_kernel,
    lambda n, low, **_: Tally(
        4 * (interval(16, low, 16) + (n > 3) * (interval(16, 0, low) + 16 + interval(16, 0, low))), 4 * 14
    ),
    n=small(0, 20),
    low=small(0, 20),
)
def block_masks_joined_by_and(kernel, n, low, seed):
    x, out = normal(seed, 16), blank(16)
    kernel[(1,)](x, out, n, low, BLOCK=16)
    return (out,)


@triton.jit
def or_and_not_kernel(x, out, n, low, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    one = tl.load(x + offs, mask=(offs < n) or (offs >= low), other=0.0)
    two = tl.load(x + offs, mask=(n > 3) or (offs < low), other=0.0)
    three = tl.load(x + offs, mask=not (n > 3), other=0.0)
    four = tl.load(x + offs, mask=((offs < n) or (offs < low)) and (offs < 9), other=0.0)
    tl.store(out + offs, one + two + three + four, mask=(offs < low) or (n > 3))


@specimen(
    or_and_not_kernel,
    lambda n, low, **_: Tally(
        4 * (interval(16, 0, n) + (16 if n > 3 else interval(16, 0, low)) + 16 * (n <= 3) + 9), 4 * interval(16, 0, low)
    ),
    n=small(0, 20),
    low=small(0, 20),
)
def block_masks_joined_by_or(kernel, n, low, seed):
    x, out = normal(seed, 16), blank(16)
    kernel[(1,)](x, out, n, low, BLOCK=16)
    return (out,)


@triton.jit
def and_in_a_loop_kernel(x, out, n, low, BLOCK: tl.constexpr):
    acc = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, n, BLOCK):
        offs = start + tl.arange(0, BLOCK)
        acc += tl.load(x + offs, mask=(offs < n) and (offs >= low), other=0.0)
    tl.store(out + tl.arange(0, BLOCK), acc)


@specimen(
    and_in_a_loop_kernel,
    lambda n, low, **_: Tally(4 * interval(-(-n // 8) * 8, low, 48), 32),
    n=small(0, 40),
    low=small(0, 40),
)
def block_masks_joined_by_and_in_a_loop(kernel, n, low, seed):
    x, out = normal(seed, 48), blank(8)
    kernel[(1,)](x, out, n, low, BLOCK=8)
    return (out,)


@triton.jit
def number_kernel(x, out, n, half, BLOCK: tl.constexpr, FIXED: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    one = tl.load(x + offs, mask=n, other=0.0) + tl.load(x + offs, mask=half, other=0.0)
    two = tl.load(x + offs, mask=FIXED, other=0.0) + tl.load(x + offs, mask=n * offs, other=0.0)
    tl.store(out + offs, one + two + tl.load(x, mask=n - 1, other=0.0))
    if tl.load(x, mask=n & 6, other=0.0) > 0:
        tl.store(out, tl.load(x + 1, mask=-n, other=0.0))


def number_counts(n, half, fixed, seed):
    lanes = 8 * (n != 0) + 8 * (half != 0) + 8 * (fixed != 0) + 7 * (n != 0) + (n != 1) + (n & 6 != 0)
    taken = bool(n & 6) and float(normal(seed, 8)[0]) > 0
    return Tally(4 * (lanes + (taken and n != 0)), 4 * (8 + taken))


@specimen(
    number_kernel,
    number_counts,
    available=NUMBERS_ARE_MASKS,
    n=small(-2, 5),
    half=st.sampled_from([0.0, 0.25, 2.0]),
    fixed=st.sampled_from([0, 1, 2, 7]),
)
def numbers_as_masks(kernel, n, half, fixed, seed):
    x, out = normal(seed, 8), blank(8)
    kernel[(1,)](x, out, n, half, BLOCK=8, FIXED=fixed)
    return (out,)


@triton.jit
def return_in_a_loop_kernel(x, out, n, stop):
    acc = 0.0
    for i in range(n):
        acc += tl.load(x + i)
        if i == stop:
            tl.store(out, acc)
            return
        tl.store(out + 1 + i, acc)
    tl.store(out, acc)


@specimen(
    return_in_a_loop_kernel,
    lambda n, stop, **_: Tally(4 * min(n, stop + 1), 4 * (min(n, stop) + 1)),
    n=small(1, 9),
    stop=small(0, 9),
)
def return_in_a_loop(kernel, n, stop, seed):
    x, out = normal(seed, 9), blank(11)
    kernel[(1,)](x, out, n, stop)
    return (out,)


@triton.jit
def first_above(x, n, bound):
    at = n
    for outer in range(n):
        for inner in range(2):
            if tl.load(x + 2 * outer + inner) > bound:
                return outer
    return at


@triton.jit
def return_in_loops_of_a_helper_kernel(x, out, n):
    i = 0
    while i < n:
        found = first_above(x, n, i)
        if found == n:
            return
        tl.store(out + i, found)
        i += 1


def return_in_loops_counts(n, seed):
    x = normal(seed, 2 * n).tolist()
    loads = stores = 0
    for i in range(n):
        first = next((at for at, value in enumerate(x) if value > i), None)
        loads += len(x) if first is None else first + 1
        if first is None:
            break
        stores += 1
    return Tally(4 * loads, 4 * stores)


@specimen(return_in_loops_of_a_helper_kernel, return_in_loops_counts, n=small(1, 6))
def return_in_loops_of_a_helper(kernel, n, seed):
    x, out = normal(seed, 2 * n), blank(n, dtype=torch.int32)
    kernel[(1,)](x, out, n)
    return (out,)


@triton.jit
def return_in_an_unrolled_loop_kernel(x, out, n, STOP: tl.constexpr):
    for i in tl.static_range(4):
        if i == STOP:
            return
        if i == n:
            tl.store(out + 4, 1.0)
            return
        tl.store(out + i, tl.load(x + i))
    tl.store(out + 5, tl.load(x))


def return_in_an_unrolled_loop_counts(n, stop, **_):
    passes = min(4, n, stop)
    return Tally(4 * (passes + (passes == 4)), 4 * (passes + (n < min(4, stop)) + (passes == 4)))


@specimen(
    return_in_an_unrolled_loop_kernel, return_in_an_unrolled_loop_counts, n=small(0, 5), stop=st.sampled_from([2, 9])
)
def return_in_an_unrolled_loop(kernel, n, stop, seed):
    x, out = normal(seed, 4), blank(6)
    kernel[(1,)](x, out, n, STOP=stop)
    return (out,)


@triton.jit
def return_in_branches_kernel(x, out, n, low):
    if n > 2:
        value = tl.load(x)
        if low > 3:
            tl.store(out, value)
            return
        tl.store(out + 1, value + tl.load(x + 1))
    elif n == 2:
        return
    tl.store(out + 2, tl.load(x + 2))


def return_in_branches_counts(n, low, **_):
    if n > 2:
        return Tally(4, 4) if low > 3 else Tally(12, 8)
    return Tally() if n == 2 else Tally(4, 4)


@specimen(return_in_branches_kernel, return_in_branches_counts, n=small(0, 5), low=small(0, 6))
def return_in_branches_of_branches(kernel, n, low, seed):
    x, out = normal(seed, 4), blank(4)
    kernel[(1,)](x, out, n, low)
    return (out,)
