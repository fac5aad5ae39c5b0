"""Accesses and helpers inside expressions: of ``and`` and ``or``, comprehensions, conditions, tests of ``while``."""

from __future__ import annotations

import math

import numpy as np
import torch
import triton
import triton.language as tl
from hypothesis import strategies as st

from tests.interpreted.oracle import Tally
from tests.interpreted.zoo.specimen import blank, normal, small, specimen


@triton.jit
def positive(x, at):
    return tl.load(x + at) > 0


@triton.jit
def take(tickets, x):
    """A helper that writes: how often and in which order it is called shows in memory."""
    return tl.load(x + tl.atomic_add(tickets, 1)) > 0


@triton.jit
def operands_kernel(x, out, n, FLAG: tl.constexpr):
    if FLAG or positive(x, 0):
        tl.store(out, 1.0)
    if FLAG and positive(x, 1) and positive(x, 2):
        tl.store(out + 1, 1.0)
    if n > 3 or positive(x, tl.load(x + 3).to(tl.int32) * 0 + 4):
        tl.store(out + 2, 1.0)
    if n > 4 or positive(x, 1) or tl.load(x + 2) > 0:
        tl.store(out + 4, 1.0)
    both = n > 3 and (positive(x, 5) or positive(x, 6))
    value = 1.0 + tl.where(both, 1.0, 0.0) + tl.load(x + 7)
    tl.store(out + 3, value)


def operands_counts(n, flag, seed):
    """Of the interpreter, which like Python leaves out what does not decide."""
    x = [value > 0 for value in normal(seed, 8).tolist()]
    loads, stores = 1, 1
    loads += not flag
    stores += flag or x[0]
    loads += flag * (1 + x[1])
    stores += flag and x[1] and x[2]
    loads += 2 * (n <= 3)
    stores += n > 3 or x[4]
    loads += (n <= 4) * (1 + (not x[1]))
    stores += n > 4 or x[1] or x[2]
    loads += (n > 3) * (1 + (not x[5]))
    return Tally(4 * loads, 4 * stores)


@specimen(operands_kernel, operands_counts, n=small(1, 6), flag=st.booleans())
def helpers_in_and_and_or(kernel, n, flag, seed):
    x, out = normal(seed, 8), blank(5)
    kernel[(1,)](x, out, n, FLAG=flag)
    return (out,)


@triton.jit
def writing_operands_kernel(tickets, x, out, n):
    first = take(tickets, x) or take(tickets, x)
    order = tl.atomic_add(tickets, 10) + tl.where(n > 2 and take(tickets, x), 1, 0) + tl.atomic_add(tickets, 100)
    last = take(tickets, x) and tl.load(x + 1) > 0
    tl.store(out, order + tl.where(first, 1000, 0) + tl.where(last, 2000, 0))


@specimen(writing_operands_kernel, n=small(1, 4))
def writing_helpers_in_and_and_or(kernel, n, seed):
    tickets, x, out = torch.zeros(1, dtype=torch.int32), normal(seed, 128), blank(1, dtype=torch.int32)
    kernel[(1,)](tickets, x, out, n)
    return tickets, out


@triton.jit
def pick(x, offs, n):
    return tl.load(x + offs, mask=offs < n, other=0.0)


@triton.jit
def comprehensions_kernel(sources, out, n, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    masked = [tl.load(source + offs, mask=offs < n, other=0.0) for source in sources]
    helped = tl.tuple([pick(sources[0], offs, n + at) for at in (1, 2)])
    nested = [[tl.load(source + at) for at in (0, 2)] for source in sources]
    indirect = [tl.load(source + tl.load(source + 8).to(tl.int32)) for source in sources]
    chosen = [tl.load(source) if n > 3 else 0.0 for source in sources]
    of_loads = [[2.0 * value for value in (tl.load(source) > 0 or positive(source, 1),)] for source in sources]
    total = masked[0] + masked[1] + helped[0] + helped[1] + nested[0][0] + nested[1][1]
    tl.store(out + offs, total + indirect[0] + indirect[1] + chosen[0] + chosen[1] + of_loads[1][0], mask=offs < n)


def comprehensions_counts(n, seed):
    firsts = [float(normal(one, 9)[0]) > 0 for one in (seed, seed + 1)]
    loads = 2 * min(n, 8) + min(n + 1, 8) + min(n + 2, 8) + 4 + 4 + 2 * (n > 3) + 2 + firsts.count(False)
    return Tally(4 * loads, 4 * min(n, 8))


@specimen(comprehensions_kernel, comprehensions_counts, n=small(1, 9))
def accesses_in_comprehensions(kernel, n, seed):
    sources = (normal(seed, 9), normal(seed + 1, 9))
    for source in sources:
        source[8] = seed % 5
    out = blank(8)
    kernel[(1,)](sources, out, n, BLOCK=8)
    return (out,)


@triton.jit
def generator_kernel(sources, out):
    loaded = tuple(tl.load(source) for source in sources)
    several = [tl.load(source + at) for source in sources for at in (1, 2)]
    tl.store(out, loaded[0] + loaded[1] + several[3] + sum(tl.load(source) for source in sources))


@specimen(generator_kernel, lambda **_: Tally(4 * 8, 4))
def accesses_in_generators(kernel, seed):
    sources, out = (normal(seed, 3), normal(seed + 1, 3)), blank(1)
    kernel[(1,)](sources, out)
    return (out,)


@triton.jit
def conditional_helpers_kernel(x, out, n, FLAG: tl.constexpr):
    one = 1.0 + (pick(x, n, 4) if n > 2 else tl.load(x + n + tl.load(x).to(tl.int32) * 0))
    two = tl.load(x + 1) * (pick(x, n, 9) if FLAG else 2.0)
    three = pick(x, 0, 1) + (tl.load(x + 2) if n > 3 else tl.load(x) + tl.load(x + 1))
    for i in range(n):
        three += pick(x, i, 3) if i > 1 else 0.0
    tl.store(out, one + two + three)


def conditional_helpers_counts(n, flag, **_):
    loads = (n < 4 if n > 2 else 2) + 1 + flag + 1 + (1 if n > 3 else 2) + (n > 2)
    return Tally(4 * loads, 4)


@specimen(conditional_helpers_kernel, conditional_helpers_counts, n=small(0, 6), flag=st.booleans())
def helpers_in_conditional_expressions(kernel, n, flag, seed):
    x, out = normal(seed, 16), blank(1)
    kernel[(1,)](x, out, n, FLAG=flag)
    return (out,)


@triton.jit
def while_tests_kernel(flags, nexts, out, n):
    i = 0
    while positive(flags, i):
        i += 1
    tl.store(out, i)
    at = 0
    while tl.load(flags + tl.load(nexts + at)) > 0:
        at = tl.load(nexts + at)
    tl.store(out + 1, at)
    j = 0
    while j < n and positive(flags, j):
        j += 1
        if j > 2:
            k = 0
            while k < j and tl.load(flags + k) > 0:
                k += 1
            j += k
    tl.store(out + 2, j)
    for _ in range(n):
        i = 0
        while positive(flags, i):
            i += 1
        tl.store(out + 3, tl.load(flags + i))


def while_tests_counts(n, ones, **_):
    flags = [1] * ones + [0] * 16
    loads, stores = ones + 1, 3
    at = 0
    while True:
        loads += 2
        if not flags[at + 1]:
            break
        loads += 1
        at += 1
    j = 0
    while j < n:
        loads += 1
        if not flags[j]:
            break
        j += 1
        if j > 2:
            k = 0
            while k < j:
                loads += 1
                if not flags[k]:
                    break
                k += 1
            j += k
    return Tally(4 * (loads + n * (ones + 2)), 4 * (stores + n))


@specimen(while_tests_kernel, while_tests_counts, n=small(0, 9), ones=small(0, 6))
def helpers_in_tests_of_while(kernel, n, ones, seed):
    flags = torch.tensor([1] * ones + [0] * 16, dtype=torch.int32)
    nexts, out = torch.arange(1, 20, dtype=torch.int32), blank(4, dtype=torch.int32)
    kernel[(1,)](flags, nexts, out, n)
    return (out,)


@triton.jit
def python_kernel(x, out, n, D: tl.constexpr, LIST: tl.constexpr):
    """Functions of Python that Triton runs while it compiles."""
    scale = 1.0 / math.sqrt(D)
    STEPS: tl.constexpr = int(math.log2(D))
    BLOCK: tl.constexpr = max(2 ** math.ceil(math.log2(D - 1)), 4)
    offs = tl.arange(0, BLOCK)
    lowest = torch.finfo(torch.float16).min
    largest = torch.iinfo(torch.int8).max
    acc = tl.full((BLOCK,), lowest, tl.float32)
    for i in tl.static_range(STEPS):
        acc = tl.maximum(acc, tl.load(x + offs, mask=offs < n + i, other=np.iinfo(np.int8).min))
    if math.log2(D) > 3:
        acc += tl.load(x + offs) * scale
    if isinstance(D, int) and math.isclose(D, 4):
        acc += tl.load(x)
    tl.store(out + offs, tl.minimum(acc, largest), mask=offs < min(math.gcd(D, 12), len(LIST)))


@specimen(
    python_kernel,
    lambda n, d, **_: Tally(
        4 * (sum(min(d, n + i) for i in range(d.bit_length() - 1)) + (d if d > 8 else 0) + (d == 4)), 4 * min(4, d, 3)
    ),
    n=small(0, 20),
    d=st.sampled_from([4, 8, 16]),
)
def functions_of_python(kernel, n, d, seed):
    x, out = normal(seed, 32), blank(16)
    kernel[(1,)](x, out, n, D=d, LIST=(1, 2, 3))
    return (out,)


@triton.jit
def reads_by_another_version(x):
    of_another_version(x)  # noqa: F821
    return tl.load(x)


@triton.jit
def untraced_kernel(x, out, n, NEW: tl.constexpr, SOURCE: tl.constexpr):
    value = tl.load(x)
    if NEW:
        value += of_another_version(x)  # noqa: F821
        for i in range(n):
            if tl.load(x + i) > 0:
                break
    else:
        for i in range(n):
            value += tl.load(x + i)
    if SOURCE is None:
        value += 1.0
    elif NEW:
        value += reads_by_another_version(x)
    value += of_another_version(x) if NEW else tl.load(x + 1)  # noqa: F821
    if NEW and of_another_version(x):  # noqa: F821
        value += 2.0
    if NEW and (n > 3 or reads_by_another_version(x)):
        value += 3.0
    other = 1.0 + (reads_by_another_version(x) if NEW else tl.load(x + 2))
    tl.store(out, value + other)


@specimen(untraced_kernel, lambda n, **_: Tally(4 * (3 + n), 4), n=small(0, 5), source=st.sampled_from([None, 1]))
def branches_that_are_not_compiled(kernel, n, source, seed):
    x, out = normal(seed, 8), blank(1)
    kernel[(1,)](x, out, n, NEW=False, SOURCE=source)
    return (out,)
