"""Helpers that call themselves, over a constant that tells when to stop: Triton compiles one form for each."""

from __future__ import annotations

import triton
import triton.language as tl
from hypothesis import strategies as st

from tests.interpreted.oracle import Tally
from tests.interpreted.zoo.specimen import blank, normal, small, specimen


@triton.jit
def summed(x, offs, n, DEPTH: tl.constexpr):
    mine = tl.load(x + DEPTH * 8 + offs, mask=offs + DEPTH < n, other=0.0)
    if DEPTH == 0:  # noqa: SIM108  # a conditional expression is another construct
        value = mine
    else:
        value = mine + summed(x, offs, n, DEPTH - 1)
    return value


@triton.jit
def pairwise(x, START: tl.constexpr, COUNT: tl.constexpr):
    """A tree: each calls itself twice, in one expression."""
    if COUNT == 1:
        value = tl.load(x + START)
    else:
        value = pairwise(x, START, COUNT // 2) + pairwise(x, START + COUNT // 2, COUNT - COUNT // 2)
    return value


@triton.jit
def power(value, N: tl.constexpr):
    """Moves no bytes, at no depth."""
    if N == 0:  # noqa: SIM108
        result = value * 0.0 + 1.0
    else:
        result = value * power(value, N - 1)
    return result


@triton.jit
def recursion_kernel(x, out, n, DEPTH: tl.constexpr, COUNT: tl.constexpr):
    offs = tl.arange(0, 8)
    value = summed(x, offs, n, DEPTH)
    total = pairwise(x, 0, COUNT)
    for i in range(n):
        total += tl.sum(summed(x, offs, i, 1))
    tl.store(out + offs, value + total + power(total, 3))


def recursion_counts(n, depth, count, **_):
    def lanes(bound, deepest):
        return sum(min(8, max(0, bound - level)) for level in range(deepest + 1))

    return Tally(4 * (lanes(n, depth) + count + sum(lanes(i, 1) for i in range(n))), 32)


@specimen(recursion_kernel, recursion_counts, n=small(0, 9), depth=small(0, 3), count=small(1, 5))
def helpers_that_call_themselves(kernel, n, depth, count, seed):
    x, out = normal(seed, 32), blank(8)
    kernel[(1,)](x, out, n, DEPTH=depth, COUNT=count)
    return (out,)


@triton.jit
def even(x, at, N: tl.constexpr, READ: tl.constexpr):
    if N == 0:  # noqa: SIM108  # the compiler reads on behind a `return` in a branch, and would never end
        value = READ(x, at)
    else:
        value = odd(x, at + 1, N - 1, READ)
    return value


@triton.jit
def odd(x, at, N: tl.constexpr, READ: tl.constexpr):
    if N == 0:  # noqa: SIM108
        value = 0.0
    else:
        value = even(x, at + 1, N - 1, READ) + tl.load(x)
    return value


@triton.jit
def read_twice(x, at):
    return tl.load(x + at) + tl.load(x + at + 1)


@triton.jit
def mutual_kernel(x, out, N: tl.constexpr):
    tl.store(out, even(x, 0, N, read_twice) + odd(x, 1, 1, read_twice))


@specimen(
    mutual_kernel,
    lambda n, **_: Tally(4 * ((n // 2 if n % 2 else 2 + n // 2) + 3), 4),
    n=st.integers(0, 5),
)
def helpers_that_call_each_other(kernel, n, seed):
    x, out = normal(seed, 16), blank(1)
    kernel[(1,)](x, out, N=n)
    return (out,)
