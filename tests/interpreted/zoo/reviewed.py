"""What a review found: values made in a loop, products that move, tests without names."""

# Kernels are written the ways people write them, not only the way the linter would.
# ruff: noqa: PIE808, SIM108

from __future__ import annotations

import torch
import triton
import triton.language as tl
from hypothesis import strategies as st

from tests.interpreted.oracle import Tally
from tests.interpreted.zoo.specimen import blank, integers, interval, normal, small, specimen


@triton.jit
def length_of(p):
    return tl.load(p)


@triton.jit
def is_set(p):
    return tl.load(p) > 2


# --- masks that depend on what is loaded in the loop ------------------------------------------------------------------


def lengths_in(seed: int, trips: int) -> list[int]:
    return integers(seed, -1, 11, trips).tolist()


def loaded_bounds(trips, seed):
    return Tally(4 * trips, 4 * sum(interval(8, 0, one) for one in lengths_in(seed, trips)))


@triton.jit
def loaded_bound_kernel(lengths, out, trips, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    for i in range(0, trips):
        tl.store(out + offs, 1.0, mask=offs < tl.load(lengths + i))


@specimen(loaded_bound_kernel, loaded_bounds, trips=small(0, 6))
def bound_loaded_inside_a_mask_of_a_loop(kernel, trips, seed):
    out = blank(8)
    kernel[(1,)](integers(seed, -1, 11, trips), out, trips, BLOCK=8)
    return (out,)


@triton.jit
def helpers_bound_kernel(lengths, out, trips, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    for i in range(0, trips):
        length = length_of(lengths + i)
        tl.store(out + offs, 1.0, mask=offs < length)


@specimen(helpers_bound_kernel, loaded_bounds, trips=small(0, 6))
def bound_from_a_helper_in_a_loop(kernel, trips, seed):
    out = blank(8)
    kernel[(1,)](integers(seed, -1, 11, trips), out, trips, BLOCK=8)
    return (out,)


@triton.jit
def bound_in_two_loops_kernel(lengths, out, trips, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    length = trips
    for i in range(0, trips):
        length = length_of(lengths + i)
        for j in range(0, 3):
            tl.store(out + offs, 1.0, mask=offs < length + j)
        mask = offs < length
        length = 0
        for _ in range(0, 2):
            tl.store(out + offs, 2.0, mask=mask)
    tl.store(out + offs, 3.0, mask=offs < length)


def bounds_in_two_loops(trips, seed):
    lanes = sum(interval(8, 0, one + j) for one in lengths_in(seed, trips) for j in (0, 0, 0, 1, 2))
    return Tally(4 * trips, 4 * lanes)


@specimen(bound_in_two_loops_kernel, bounds_in_two_loops, trips=small(1, 6))
def bound_from_a_helper_used_in_inner_loops(kernel, trips, seed):
    out = blank(8)
    kernel[(1,)](integers(seed, -1, 11, trips), out, trips, BLOCK=8)
    return (out,)


@triton.jit
def helpers_flag_kernel(flags, out, trips, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    for i in range(0, trips):
        go = is_set(flags + i)
        tl.store(out + offs, 1.0, mask=go & (offs < 4))


@specimen(
    helpers_flag_kernel,
    lambda trips, seed: Tally(4 * trips, 16 * sum(one > 2 for one in integers(seed, 0, 5, trips).tolist())),
    trips=small(0, 6),
)
def flag_from_a_helper_in_a_loop(kernel, trips, seed):
    out = blank(8)
    kernel[(1,)](integers(seed, 0, 5, trips), out, trips, BLOCK=8)
    return (out,)


@triton.jit
def helpers_row_kernel(rows_of, x, out, trips, rows, COLS: tl.constexpr):
    source = tl.make_tensor_descriptor(x, [rows, COLS], [COLS, 1], [4, 4])
    target = tl.make_tensor_descriptor(out, [rows, COLS], [COLS, 1], [4, 4])
    for i in range(0, trips):
        value = source.load([length_of(rows_of + i) * 4, 0])
        row = length_of(rows_of + i)
        target.store([row * 4 - 2, i * 4], value)


def rows_of_helpers(trips, rows, seed):
    chosen = integers(seed, -1, 4, trips).tolist()
    loads = sum(4 * interval(rows, 4 * one, 4 * one + 4) for one in chosen)
    stores = sum(4 * interval(rows, 4 * one - 2, 4 * one + 2) for one in chosen[:4])  # the fifth is beside the columns
    return Tally(4 * (2 * trips + loads), 4 * stores)


@specimen(helpers_row_kernel, rows_of_helpers, trips=small(0, 5), rows=small(1, 12))
def descriptor_at_a_row_from_a_helper(kernel, trips, rows, seed):
    x, out = normal(seed, rows, 16), blank(rows, 16)
    kernel[(1,)](integers(seed, -1, 4, trips), x, out, trips, rows, COLS=16)
    return (out,)


# --- products of values that move -------------------------------------------------------------------------------------


@triton.jit
def moving_products_kernel(out, n, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    for i in range(0, n):
        tl.store(out + offs, 1.0, mask=offs < i * i)
        tl.store(out + offs, 2.0, mask=offs < (i + 1) * (i + 2))
        tl.store(out + offs, 3.0, mask=offs < n * (i - 1))
        tl.store(out + offs, 4.0, mask=(offs < 9 - i * i) & (offs >= i))


def moving_products(n, **_):
    lanes = 0
    for i in range(n):
        lanes += interval(16, 0, i * i) + interval(16, 0, (i + 1) * (i + 2))
        lanes += interval(16, 0, n * (i - 1)) + interval(16, i, 9 - i * i)
    return Tally(0, 4 * lanes)


@specimen(moving_products_kernel, moving_products, n=small(0, 8))
def products_of_the_loop_variable_with_itself(kernel, n, seed):
    out = blank(16)
    kernel[(1,)](out, n, BLOCK=16)
    return (out,)


# --- loads in the tests and ranges of loops ---------------------------------------------------------------------------


@triton.jit
def while_in_for_kernel(flags, out, n):
    for i in range(0, n):
        j = i
        while tl.load(flags + j) != 0:
            j += 1
        p = flags + i
        while (tl.load(p) != 0) & (tl.load(p + 1) != 0):
            p += 1
        tl.store(out + i, j)


def flags_before_two_zeros(seed: int, n: int) -> torch.Tensor:
    return torch.cat([integers(seed, 0, 4, n), torch.zeros(2, dtype=torch.int32)])


def whiles_in_for(n, seed):
    flags = flags_before_two_zeros(seed, n).tolist()
    loads = 0
    for i in range(n):
        first = flags.index(0, i)
        loads += first - i + 1
        loads += 2 * (max(first - 1, i) - i + 1)
    return Tally(4 * loads, 4 * n)


@specimen(while_in_for_kernel, whiles_in_for, n=small(0, 7))
def loads_in_the_test_of_a_while_in_a_for(kernel, n, seed):
    out = blank(n, dtype=torch.int32)
    kernel[(1,)](flags_before_two_zeros(seed, n), out, n)
    return (out,)


@triton.jit
def helper_in_range_kernel(lengths, x, out, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK,), tl.float32)
    for i in range(0, length_of(lengths)):
        acc += tl.load(x + offs, mask=offs < i, other=0.0)
    for i in tl.range(length_of(lengths + 1), length_of(lengths), 2):
        acc += tl.load(x + offs, mask=offs < i, other=0.0)
    tl.store(out + offs, acc)


@specimen(
    helper_in_range_kernel,
    lambda start, stop, **_: Tally(4 * (3 + sum(min(i, 8) for i in (*range(stop), *range(start, stop, 2)))), 32),
    start=small(0, 9),
    stop=small(0, 12),
)
def helpers_that_load_in_a_range(kernel, start, stop, seed):
    x, out = normal(seed, 8), blank(8)
    kernel[(1,)](torch.tensor([stop, start], dtype=torch.int32), x, out, BLOCK=8)
    return (out,)


# --- tests ------------------------------------------------------------------------------------------------------------


@triton.jit
def last_program_kernel(x, out, n, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if tl.program_id(0) == tl.num_programs(0) - 1:
        mask = offs < n
    else:
        mask = offs < 4
    tl.store(out + offs, tl.load(x + offs, mask=mask, other=0.0), mask=mask)


def last_program(n, programs, **_):
    lanes = sum(interval(8, 0, (n if one == programs - 1 else 4) - 8 * one) for one in range(programs))
    return Tally(4 * lanes, 4 * lanes)


@specimen(last_program_kernel, last_program, n=small(0, 30), programs=small(1, 3))
def mask_chosen_by_a_test_without_names(kernel, n, programs, seed):
    x, out = normal(seed, 24), blank(24)
    kernel[(programs,)](x, out, n, BLOCK=8)
    return (out,)


@triton.jit
def chosen_in_place_kernel(out, n, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    tl.store(
        out + tl.program_id(0) * BLOCK + offs, 1.0, mask=(offs < n) if tl.program_id(0) == 0 else (offs < BLOCK // 2)
    )


@specimen(
    chosen_in_place_kernel,
    lambda n, programs, **_: Tally(0, 4 * (min(n, 8) + 4 * (programs - 1))),
    n=small(0, 12),
    programs=small(1, 3),
)
def mask_chosen_in_place_by_a_test_without_names(kernel, n, programs, seed):
    out = blank(24)
    kernel[(programs,)](out, n, BLOCK=8)
    return (out,)


@triton.jit
def reassigned_constant_kernel(out, n, FIRST: tl.constexpr, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    if FIRST:
        mask = offs < n
    else:
        mask = offs < 2
    FIRST = not FIRST
    tl.store(out + offs, 1.0, mask=mask)


@specimen(
    reassigned_constant_kernel,
    lambda n, first, **_: Tally(0, 4 * (min(n, 8) if first else 2)),
    n=small(0, 12),
    first=st.booleans(),
)
def constant_parameter_given_another_value(kernel, n, first, seed):
    out = blank(8)
    kernel[(1,)](out, n, FIRST=first, BLOCK=8)
    return (out,)


@triton.jit
def bumped(p):
    return tl.atomic_add(p, 1)


@triton.jit
def helper_in_choice_kernel(f, out):
    chosen = tl.load(f) if length_of(f + 1) > 1 else tl.load(f + 2) + tl.load(f + 3)
    tl.store(out, chosen)


@specimen(
    helper_in_choice_kernel,
    lambda seed: Tally(4 * (2 if int(integers(seed, 0, 4, 4)[1]) > 1 else 3), 4),
)
def helper_in_the_test_of_a_conditional_expression(kernel, seed):
    out = blank(1, dtype=torch.int32)
    kernel[(1,)](integers(seed, 0, 4, 4), out)
    return (out,)


@triton.jit
def atomic_in_choice_kernel(f, out):
    chosen = tl.load(f) if bumped(f) > 1 else tl.load(f + 1)
    tl.store(out, chosen)
    other = tl.load(f) if tl.atomic_add(f, 1) > 2 else tl.load(f + 1) * tl.load(f + 2)
    tl.store(out + 1, other)


@specimen(
    atomic_in_choice_kernel,
    lambda seed: Tally(4 * (2 if int(integers(seed, 0, 4, 4)[0]) > 1 else 3), 8, 8),
)
def atomic_in_the_test_of_a_conditional_expression(kernel, seed):
    f, out = integers(seed, 0, 4, 4), blank(2, dtype=torch.int32)
    kernel[(1,)](f, out)
    return f, out
