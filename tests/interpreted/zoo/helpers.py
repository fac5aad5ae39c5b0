"""Helpers: nested, passed as arguments, returning tuples, returning early."""

from __future__ import annotations

from math import ceil

import triton
import triton.language as tl
from hypothesis import strategies as st

from tests.interpreted.oracle import Tally
from tests.interpreted.zoo.specimen import blank, integers, interval, normal, small, specimen


@triton.jit
def load_masked(pointers, mask):
    return tl.load(pointers, mask=mask, other=0.0)


@triton.jit
def load_two(x, y, offs, mask):
    first = load_masked(x + offs, mask)
    return first, load_masked(y + offs, mask)


@triton.jit
def load_in_bounds(x, offs, n):
    return load_masked(x + offs, (offs >= 0) & (offs < n))


@triton.jit
def halved(value, by=0.5):
    return value * by


@triton.jit
def in_bounds(offs, n):
    return offs < n


@triton.jit
def store_both(x, y, offs, value, mask):
    tl.store(x + offs, value, mask=mask)
    tl.store(y + offs, halved(value), mask=mask)


@triton.jit(noinline=True)
def load_one(x, i):
    return tl.load(x + i)


@triton.jit
def load_maybe_masked(pointers, mask=None):
    return tl.load(pointers, mask=mask)


@triton.jit
def helpers_kernel(x, y, out, other, n, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = in_bounds(offs, n)
    a, b = load_two(x, y, offs, mask)
    c = halved(load_in_bounds(x, offs - 3, n)) + load_in_bounds(n=n, offs=offs, x=y)
    d = load_maybe_masked(x + tl.arange(0, BLOCK)) + load_maybe_masked(x + offs, mask=mask)
    value = a + b + c + d + load_one(x, 0) * load_one(y, tl.program_id(0) % 2)
    store_both(out, other, offs, value, mask)


@specimen(
    helpers_kernel,
    lambda n, **_: Tally(4 * (4 * n + interval(n, -3, 8 * ceil(n / 8) - 3) + 10 * ceil(n / 8)), 8 * n),
    n=small(),
)
def nested_helpers(kernel, n, seed):
    x, y, out, other = normal(seed, n + 8), normal(seed + 1, n + 8), blank(n), blank(n)
    kernel[(triton.cdiv(n, 8),)](x, y, out, other, n, BLOCK=8)
    return out, other


@triton.jit
def helper_on_diagonal_kernel(x, out, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)[:, None]
    j = tl.arange(0, BLOCK)[None, :]
    at = i * BLOCK + j
    value = load_masked(x + at, i >= j) + load_masked(x + at, (i < n) & (j < n)) + load_masked(x + at, (i + j) % 2 == 0)
    tl.store(out + at, value)


@specimen(
    helper_on_diagonal_kernel,
    lambda n, **_: Tally(4 * (36 + min(n, 8) ** 2 + 32), 4 * 64),
    n=small(1, 12),
)
def one_helper_with_three_kinds_of_mask(kernel, n, seed):
    x, out = normal(seed, 64), blank(64)
    kernel[(1,)](x, out, n, BLOCK=8)
    return (out,)


@triton.jit
def nested_tuple(x, offs, n):
    return (tl.load(x + offs, mask=offs < n, other=0.0), tl.load(x)), tl.load(x + 1)


@triton.jit
def tuples_kernel(x, y, out, n, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    pair = load_two(x, y, offs, offs < n)
    block, one = nested_tuple(x, offs, n)
    a, b = tl.load(x + offs, mask=offs < n - 1, other=0.0), tl.load(y + n)
    a, b = b, a
    tl.store(out + offs, pair[0] - pair[1] + block[0] * block[1] + one + a - b)


@specimen(
    tuples_kernel,
    lambda n, **_: Tally(4 * (3 * min(n, 8) + min(n - 1, 8) + 3), 32),
    n=small(1, 12),
)
def tuple_returns(kernel, n, seed):
    x, y, out = normal(seed, 16), normal(seed + 1, 16), blank(8)
    kernel[(1,)](x, y, out, n, BLOCK=8)
    return (out,)


@triton.jit
def doubled(x, offs, n):
    return (2 * offs).to(tl.float32)


@triton.jit
def squared_load(x, offs, n):
    value = tl.load(x + offs, mask=offs < n, other=0.0)
    return value * value


@triton.jit
def function_argument_kernel(x, out, n, FUNCTION: tl.constexpr, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    tl.store(out + offs, FUNCTION(x, offs, n))


@specimen(
    function_argument_kernel,
    lambda n, function, **_: Tally(0 if function is doubled else 4 * min(n, 8), 32),
    n=small(1, 12),
    function=st.sampled_from([doubled, squared_load, load_in_bounds]),
)
def function_passed_as_constexpr(kernel, n, function, seed):
    x, out = normal(seed, n), blank(8)
    kernel[(1,)](x, out, n, FUNCTION=function, BLOCK=8)
    return (out,)


@triton.jit
def apply(function: tl.constexpr, x, offs, n):
    return function(x, offs, n)


@triton.jit
def function_handed_on_kernel(x, out, n, FUNCTION: tl.constexpr, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    tl.store(out + offs, apply(FUNCTION, x, offs, n) + apply(squared_load, x, offs, n))


@specimen(
    function_handed_on_kernel,
    lambda n, function, **_: Tally(4 * min(n, 8) * (1 if function is doubled else 2), 32),
    n=small(1, 12),
    function=st.sampled_from([doubled, squared_load]),
)
def function_handed_to_a_helper(kernel, n, function, seed):
    x, out = normal(seed, n), blank(8)
    kernel[(1,)](x, out, n, FUNCTION=function, BLOCK=8)
    return (out,)


@triton.jit
def apply_default(x, offs, n, function: tl.constexpr = squared_load):
    return function(x, offs, n)


@triton.jit
def function_default_kernel(x, out, n, BLOCK: tl.constexpr, FUNCTION: tl.constexpr = load_in_bounds):
    offs = tl.arange(0, BLOCK)
    value = FUNCTION(x, offs, n) + apply_default(x, offs, n) + apply_default(x, offs, n, doubled)
    tl.store(out + offs, value + apply_default(x, offs, n, function=load_in_bounds))


@specimen(function_default_kernel, lambda n, **_: Tally(12 * min(n, 8), 32), n=small(1, 12))
def functions_as_defaults(kernel, n, seed):
    x, out = normal(seed, n), blank(8)
    kernel[(1,)](x, out, n, BLOCK=8)
    return (out,)


@triton.jit
def early_value(x, flag, offs, n):
    if flag > 1:
        return tl.load(x + offs, mask=offs < n, other=0.0)
    if flag > 0:
        return tl.load(x + offs)
    return tl.zeros(offs.shape, tl.float32)


@triton.jit
def early_none(out, flag, offs):
    if flag == 0:
        return
    tl.store(out + offs, tl.load(out + offs) + flag)


@triton.jit
def early_return_kernel(x, flags, out, count, n, BLOCK: tl.constexpr):
    pid = tl.program_id(0)
    if pid >= count:
        return
    offs = tl.arange(0, BLOCK)
    flag = tl.load(flags + pid)
    tl.store(out + pid * BLOCK + offs, early_value(x, flag, offs, n))
    early_none(out + pid * BLOCK, flag, offs)
    if flag > 1:
        tl.store(out + pid * BLOCK, 0.0)
        return
    tl.store(out + pid * BLOCK + 1, 1.0)


def early_return_counts(count, n, seed):
    flags = integers(seed, 0, 3, count)
    n8 = min(n, 8)
    loads = sum(1 + (0, 8 + 8, n8 + 8)[flag] for flag in flags)
    return Tally(4 * loads, 4 * sum(8 + (8 if flag else 0) + 1 for flag in flags))


@specimen(early_return_kernel, early_return_counts, count=small(1, 6), n=small(1, 10))
def early_returns(kernel, count, n, seed):
    x, flags, out = normal(seed, 10), integers(seed, 0, 3, count), blank(count, 8)
    kernel[(count + 2,)](x, flags, out, count, n, BLOCK=8)
    return (out,)
