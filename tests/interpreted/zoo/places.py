"""Where loads and stores may stand."""

from __future__ import annotations

from math import ceil

import torch
import triton
import triton.language as tl
from hypothesis import strategies as st

from tests.interpreted.oracle import Tally
from tests.interpreted.zoo.specimen import blank, integers, interval, normal, small, specimen


@triton.jit
def nested_calls_kernel(x, index, out, n, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < n
    tl.store(out + offs, tl.load(x + tl.load(index + offs, mask=mask, other=0), mask=mask), mask=mask)
    tl.store(out + n + tl.load(index + tl.program_id(0)), tl.load(x + tl.load(index)))
    tl.store(out + 2 * n + offs, tl.load(x + offs, mask=offs < tl.load(index), other=tl.load(x)), mask=mask)


def nested_calls_counts(n, seed):
    blocks = ceil(n / 8)
    bound = int(integers(seed, 0, n, n)[0])
    return Tally(4 * (2 * n + 5 * blocks + interval(8 * blocks, 0, bound)), 4 * (2 * n + blocks))


@specimen(nested_calls_kernel, nested_calls_counts, n=small())
def loads_as_arguments(kernel, n, seed):
    x, out = normal(seed, n), blank(3 * n)
    kernel[(triton.cdiv(n, 8),)](x, integers(seed, 0, n, n), out, n, BLOCK=8)
    return (out,)


@triton.jit
def augmented_kernel(x, shifts, out, n, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    acc = tl.load(x + offs)
    acc += tl.load(x + offs, mask=offs < n, other=0.0)
    acc *= tl.load(x)
    acc -= tl.sum(tl.load(x + offs, mask=offs < n - 2, other=0.0))
    offs += tl.load(shifts)
    acc /= tl.load(x + offs, mask=offs < n, other=1.0)[:, None].reshape(BLOCK)
    out += tl.load(shifts + 1)
    tl.store(out + tl.arange(0, BLOCK), acc)


@specimen(
    augmented_kernel,
    lambda n, shift, **_: Tally(
        4 * (8 + min(n, 8) + 1 + interval(8, 0, n - 2) + 2 + interval(n, shift, shift + 8)), 32
    ),
    n=small(0, 12),
    shift=small(0, 9),
)
def augmented_assignments(kernel, n, shift, seed):
    x, out = normal(seed, 16), blank(16)
    kernel[(1,)](x, torch.tensor([shift, 3], dtype=torch.int32), out, n, BLOCK=8)
    return (out,)


@triton.jit
def order_kernel(counter, x, out):
    ticket = tl.atomic_add(counter, 1) * 10 + tl.atomic_add(counter, 1)
    tl.store(out + tl.program_id(0), ticket)
    tl.store(out + 8 + tl.atomic_add(counter + 1, 1), tl.load(x + tl.atomic_add(counter + 1, 1)))
    tl.store(x + tl.program_id(0), tl.load(x + tl.program_id(0)) + 1)
    tl.store(out + 16 + tl.program_id(0), tl.load(x + tl.program_id(0)) + tl.atomic_max(counter + 2, ticket))


@specimen(
    order_kernel,
    lambda programs, **_: Tally(12 * programs, 16 * programs, 20 * programs),
    programs=small(1, 4),
)
def order_of_evaluation(kernel, programs, seed):
    counter, x, out = torch.zeros(3, dtype=torch.int32), integers(seed, 0, 99, 16), blank(24, dtype=torch.int32)
    kernel[(programs,)](counter, x, out)
    return counter, x, out


@triton.jit
def pointer_table_kernel(table, lengths, out, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    source = tl.load(table + row).to(tl.pointer_type(tl.float16))
    offs = tl.arange(0, BLOCK)
    mask = offs < tl.load(lengths + row)
    tl.store(out + row * BLOCK + offs, tl.load(source + offs, mask=mask, other=0.0))


@specimen(
    pointer_table_kernel,
    lambda lengths, **_: Tally(16 * len(lengths) + 2 * sum(lengths), 32 * len(lengths)),
    lengths=st.lists(small(0, 8), min_size=1, max_size=4),
)
def table_of_pointers(kernel, lengths, seed):
    rows = [normal(seed + i, length + 1, dtype=torch.float16) for i, length in enumerate(lengths)]
    out = blank(len(lengths), 8)
    kernel[(len(lengths),)](torch.tensor([row.data_ptr() for row in rows]), torch.tensor(lengths), out, BLOCK=8)
    return (out,)


@triton.jit
def tuple_argument_kernel(sources, out, sizes, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    acc = tl.load(sources[0] + offs, mask=offs < sizes[0], other=0.0)
    for i in tl.static_range(1, len(sources)):
        acc += tl.load(sources[i] + offs, mask=offs < sizes[i], other=0.0)
    tl.store(out + offs, acc)


@specimen(
    tuple_argument_kernel,
    lambda a, b, c, **_: Tally(4 * (a + b) + 2 * c, 32),
    a=small(1, 8),
    b=small(1, 8),
    c=small(1, 8),
)
def tuples_as_arguments(kernel, a, b, c, seed):
    sources = (normal(seed, a), normal(seed, b), normal(seed, c, dtype=torch.float16))
    out = blank(8)
    kernel[(1,)](sources, out, (a, b, c), BLOCK=8)
    return (out,)


@triton.jit
def comprehension_kernel(sources, out):
    loaded = [tl.load(source) for source in sources]
    tl.store(out, loaded[0] + loaded[1])


@specimen(comprehension_kernel, lambda **_: Tally(8, 4), uncountable=True)
def loads_in_a_comprehension(kernel, seed):
    out = blank(1)
    kernel[(1,)]((normal(seed, 1), normal(seed + 1, 1)), out)
    return (out,)


@triton.jit
def no_memory_kernel(x, n, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    total = tl.sum(offs)
    if total > n:
        total += 1


@specimen(no_memory_kernel, lambda **_: Tally(), n=small())
def no_memory_at_all(kernel, n, seed):
    x = blank(4)
    kernel[(2,)](x, n, BLOCK=8)
    return (x,)
