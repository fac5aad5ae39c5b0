"""Loops of every kind, their tests and their bounds."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from hypothesis import strategies as st

from tests.interpreted.oracle import Tally
from tests.interpreted.zoo.specimen import blank, integers, interval, normal, small, specimen


@triton.jit
def softmax_kernel(x, out, rows, cols, stride, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    mask = offs < cols
    for row in tl.range(tl.program_id(0), rows, tl.num_programs(0)):
        value = tl.load(x + row * stride + offs, mask=mask, other=-float("inf"))
        value = tl.exp(value - tl.max(value, axis=0))
        tl.store(out + row * stride + offs, value / tl.sum(value, axis=0), mask=mask)


@specimen(
    softmax_kernel,
    lambda rows, cols, **_: Tally(4 * rows * cols, 4 * rows * cols),
    rows=small(1, 12),
    cols=small(1, 32),
)
def softmax_with_the_mask_before_the_loop(kernel, rows, cols, seed):
    x, out = normal(seed, rows, cols), blank(rows, cols)
    kernel[(3,)](x, out, rows, cols, x.stride(0), BLOCK=32)
    return (out,)


@triton.jit
def while_kernel(x, out, n, BLOCK: tl.constexpr):
    start = 0
    acc = tl.zeros((BLOCK,), tl.float32)
    while start < n:
        offs = start + tl.arange(0, BLOCK)
        acc += tl.load(x + offs, mask=offs < n, other=0.0)
        start += BLOCK
    tl.store(out + tl.arange(0, BLOCK), acc)


@specimen(while_kernel, lambda n, **_: Tally(4 * n, 32), n=small(0, 40))
def while_loop(kernel, n, seed):
    x, out = normal(seed, n), blank(8)
    kernel[(1,)](x, out, n, BLOCK=8)
    return (out,)


@triton.jit
def while_test_kernel(flags, out):
    i = 0
    while tl.load(flags + i) != 0:
        i += 1
    j = i + 1
    while (tl.load(flags + j) != 0) & (j < 1000):
        j += 1 + tl.load(flags + j) * 0
    tl.store(out, i)
    tl.store(out + 1, j)


def flags_in_two_runs(first: int, second: int) -> torch.Tensor:
    return torch.tensor([1] * first + [0] + [1] * second + [0], dtype=torch.int32)


@specimen(
    while_test_kernel,
    lambda first, second, **_: Tally(4 * (first + 1 + 2 * second + 1), 8),
    first=small(0, 6),
    second=small(0, 6),
)
def load_in_the_test_of_a_while(kernel, first, second, seed):
    out = blank(2, dtype=torch.int32)
    kernel[(1,)](flags_in_two_runs(first, second), out)
    return (out,)


@triton.jit
def next_is_set(flags, i):
    return tl.load(flags + i) != 0


@triton.jit
def helper_in_while_test_kernel(flags, out):
    i = 0
    while next_is_set(flags, i):
        i += 1
    tl.store(out, i)


@specimen(
    helper_in_while_test_kernel,
    lambda first, **_: Tally(4 * (first + 1), 4),
    uncountable=True,
    first=small(0, 6),
)
def helper_in_the_test_of_a_while(kernel, first, seed):
    out = blank(1, dtype=torch.int32)
    kernel[(1,)](flags_in_two_runs(first, 0), out)
    return (out,)


@triton.jit
def chase_kernel(heads, successors, weights, out):
    node = tl.load(heads + tl.program_id(0))
    weight = 0.0
    while node >= 0:
        weight += tl.load(weights + node)
        node = tl.load(successors + node)
    tl.store(out + tl.program_id(0), weight)


def links(seed: int, nodes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Heads of three lists, and successors: each node points to a lower one or ends its list."""
    heads = integers(seed, -1, nodes, 3)
    return heads, torch.tensor([int(integers(seed + i, -1, i, 1)) if i else -1 for i in range(nodes)]).to(torch.int32)


def chase_counts(nodes, seed):
    heads, successors = links(seed, nodes)
    visits = 0
    for node in heads.tolist():
        while node >= 0:
            visits += 1
            node = int(successors[node])
    return Tally(4 * 3 + 8 * visits, 12)


@specimen(chase_kernel, chase_counts, nodes=small(1, 20))
def pointer_chase(kernel, nodes, seed):
    out = blank(3)
    kernel[(3,)](*links(seed, nodes), normal(seed, nodes), out)
    return (out,)


@triton.jit
def static_range_kernel(x, out, n, TIMES: tl.constexpr, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK,), tl.float32)
    for i in tl.static_range(TIMES):
        acc += tl.load(x + i + offs, mask=offs + i < n, other=0.0)
    for i in tl.static_range(1, 8, step=3):
        for j in tl.static_range(0, 2):
            acc += tl.load(x + i * j)
    tl.store(out + offs, acc)


@specimen(
    static_range_kernel,
    lambda n, times, **_: Tally(4 * (sum(interval(n - i, 0, 8) for i in range(times)) + 6), 32),
    n=small(1, 12),
    times=small(0, 4),
)
def static_ranges(kernel, n, times, seed):
    x, out = normal(seed, 16), blank(8)
    kernel[(1,)](x, out, n, TIMES=times, BLOCK=8)
    return (out,)


@triton.jit
def nested_loops_kernel(x, lengths, out, rows, stride, BLOCK: tl.constexpr):
    for i in range(rows):
        length = tl.load(lengths + i)
        acc = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, length, BLOCK):
            offs = start + tl.arange(0, BLOCK)
            acc += tl.load(x + i * stride + offs, mask=offs < length, other=0.0)
            for _ in range(start, i):
                acc += tl.load(x)
        tl.store(out + i, tl.sum(acc))


def nested_loops_counts(rows, seed):
    lengths = integers(seed, 0, 30, rows).tolist()
    inner = sum(max(0, i - start) for i, length in enumerate(lengths) for start in range(0, length, 8))
    return Tally(4 * (rows + sum(lengths) + inner), 4 * rows)


@specimen(nested_loops_kernel, nested_loops_counts, rows=small(1, 12))
def nested_loops_of_ragged_length(kernel, rows, seed):
    x, lengths, out = normal(seed, rows, 30), integers(seed, 0, 30, rows), blank(rows)
    kernel[(1,)](x, lengths, out, rows, 30, BLOCK=8)
    return (out,)


@triton.jit
def step_kernel(x, out, first, n, STEP: tl.constexpr, BLOCK: tl.constexpr):
    acc = tl.zeros((BLOCK,), tl.float32)
    for start in range(first, n, STEP):
        offs = start + tl.arange(0, BLOCK)
        acc += tl.load(x + offs, mask=offs < n, other=0.0)
        acc += tl.load(x + offs, mask=(offs >= 4) & (offs < n - 2), other=0.0)
    tl.store(out + tl.arange(0, BLOCK), acc)


@specimen(
    step_kernel,
    lambda first, n, step, **_: Tally(
        4 * sum((i < n) + (4 <= i < n - 2) for start in range(first, n, step) for i in range(start, start + 8)), 32
    ),
    first=small(0, 9),
    n=small(),
    step=st.sampled_from([1, 5, 8, 11]),
)
def step_other_than_the_block(kernel, first, n, step, seed):
    x, out = normal(seed, n), blank(8)
    kernel[(1,)](x, out, first, n, STEP=step, BLOCK=8)
    return (out,)


@triton.jit
def backward_kernel(x, out, n, BLOCK: tl.constexpr):
    acc = 0.0
    for i in range(n - 1, -1, -1):
        acc = acc * 0.5 + tl.load(x + i)
    for start in range(n // BLOCK * BLOCK, -1, -BLOCK):
        offs = start + tl.arange(0, BLOCK)
        acc += tl.sum(tl.load(x + offs, mask=offs < n, other=0.0))
    tl.store(out, acc)


@specimen(backward_kernel, lambda n, **_: Tally(8 * n, 4), n=small())
def negative_step(kernel, n, seed):
    x, out = normal(seed, n), blank(1)
    kernel[(1,)](x, out, n, BLOCK=8)
    return (out,)


@triton.jit
def runtime_step_kernel(x, out, n, step, BLOCK: tl.constexpr):
    acc = tl.zeros((BLOCK,), tl.float32)
    for start in range(tl.program_id(0) * step, n, step * tl.num_programs(0)):
        offs = start + tl.arange(0, BLOCK)
        acc += tl.load(x + offs, mask=(offs < n) & (offs < start + step), other=0.0)
    tl.store(out + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), acc)


@specimen(
    runtime_step_kernel,
    lambda n, step, **_: Tally(4 * sum(min(8, step, n - start) for start in range(0, n, step)), 64),
    n=small(),
    step=small(1, 12),
)
def runtime_step(kernel, n, step, seed):
    x, out = normal(seed, n), blank(16)
    kernel[(2,)](x, out, n, step, BLOCK=8)
    return (out,)


@triton.jit
def range_bound_kernel(x, starts, out):
    row = tl.program_id(0)
    acc = 0.0
    for i in range(tl.load(starts + row), tl.load(starts + row + 1)):
        acc += tl.load(x + i)
    tl.store(out + row, acc)


@specimen(
    range_bound_kernel,
    lambda lengths, **_: Tally(4 * (2 * len(lengths) + sum(lengths)), 4 * len(lengths)),
    lengths=st.lists(small(0, 7), min_size=1, max_size=5),
)
def loads_in_the_bounds_of_a_range(kernel, lengths, seed):
    starts = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    x, out = normal(seed, sum(lengths)), blank(len(lengths))
    kernel[(len(lengths),)](x, starts, out)
    return (out,)
