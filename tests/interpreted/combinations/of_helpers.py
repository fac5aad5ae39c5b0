"""Kernels that combine helpers with loops, branches and early returns: see ``combinations``."""

# Kernels are written the ways people write them, not only the way the linter would.
# ruff: noqa: PIE808, RET505

from typing import Any

import triton
import triton.language as tl

from tests.interpreted.combinations.combining import combination, floats, halves


@triton.jit
def value_and_pair(x, offs, mask):
    return tl.load(x + offs, mask=mask, other=0.0), (tl.load(x), 3)


@combination(floats, floats, 37, BLOCK=16)
@triton.jit
def tuples_from_a_helper_in_a_loop(x, out, n, BLOCK: tl.constexpr):
    acc = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, n, BLOCK):
        offs = start + tl.arange(0, BLOCK)
        a, (b, c) = value_and_pair(x, offs, offs < n)
        acc += a * b + c
    tl.store(out + tl.arange(0, BLOCK), acc)


@triton.jit
def void(out, i, n):
    """Returns nothing, and stores in either branch."""
    if i < n:
        tl.store(out + i, 1.0)
    else:
        tl.store(out + i, 2.0)


@combination(floats, floats, 37)
@triton.jit
def void_helpers_in_both_branches(x, out, n):
    for i in range(0, n):
        if i % 2 == 0:
            void(out, i, n)
        else:
            void(out, 0, i)
    _ = void(out, 1, n)


@combination(floats, floats, 37)
@triton.jit
def stores_in_both_branches(x, out, n):
    if n > 2:
        tl.store(out, 1.0)
    else:
        tl.store(out, 2.0)
    i = 0
    while i < n:
        if i % 3 == 0:
            tl.store(out + i, tl.load(x))
        elif i % 3 == 1:
            tl.store(out + i, 2.0)
        i += 1


@triton.jit
def early_values(x, i, n):
    if i > 3:
        if n > 5:
            return tl.load(x + i)
        else:
            return tl.load(x + i) + tl.load(x)
    return 0.0


@triton.jit
def early_nothing(x, out, i):
    if i > 3:
        tl.store(out, 1.0)
        return
    if i > 1:
        return
    tl.store(out + 1, tl.load(x))


@combination(floats, floats, 37)
@combination(floats, floats, 3)
@triton.jit
def early_returns_in_kernel_and_helpers(x, out, n):
    pid = tl.program_id(0)
    if pid == 0:
        return
    if n < 5:
        tl.store(out, 1.0)
        return
    elif pid > 1:
        early_nothing(x, out, pid)
        return
    else:
        tl.store(out + 9, early_values(x, pid, n))
    tl.store(out, early_values(x, n, pid))


@triton.jit(noinline=True)
def far_value(x, i):
    if i > 2:
        return tl.load(x + i), 1
    return 0.0, i


@triton.jit(noinline=True)
def far_store(out, i):
    tl.store(out + i, 1.0)


@combination(floats, floats, 37)
@triton.jit
def helpers_that_are_not_inlined(x, out, n):
    acc = 0.0
    for i in range(0, n):
        a, b = far_value(x, i)
        acc += a * b
        far_store(out, i)
    tl.store(out, acc)


@triton.jit
def masked_loop(x, offs, mask, n, flag):
    acc = tl.zeros(offs.shape, tl.float32)
    for i in range(0, n):
        acc += tl.load(x + offs, mask=mask & flag, other=0.0)
        acc += tl.load(x + offs, mask=mask & (offs < n - i), other=0.0)
    return acc


@combination(floats, floats, 5, 0, BLOCK=16)
@triton.jit
def helpers_whose_loops_do_not_run(x, out, n, m, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    acc = masked_loop(x, offs, offs < n, n, True) + masked_loop(x, offs, offs % 2 == 0, m, True)
    tl.store(out + offs, acc)


@triton.jit
def masked_twice(x, offs, mask, n, flag):
    return masked_loop(x, offs, mask & (offs >= 2), n, flag)


@combination(floats, floats, 9, BM=8, BN=16)
@triton.jit
def masks_handed_on_in_loops(x, out, n, BM: tl.constexpr, BN: tl.constexpr):
    rows = tl.arange(0, BM)
    cols = tl.arange(0, BN)
    acc = tl.zeros((BN,), tl.float32)
    for i in range(0, n):
        offs = i + cols
        acc += masked_twice(x, offs, offs < n, n, i > 3)
        if i > 2:
            acc += masked_twice(x, offs, (offs < n) & (offs > 1), n, n > i)
    at = rows[:, None] * BN + cols[None, :]
    tile = masked_loop(x, at, (rows < n)[:, None] & (cols < n)[None, :], n, (rows > 1)[:, None])
    tl.store(out + cols, acc + tl.sum(tile, 0))


@triton.jit
def step_of_a_product(a, b, acc, i, n, BLOCK: tl.constexpr):
    r = tl.arange(0, BLOCK)
    at = r[:, None] * BLOCK + r[None, :] + i
    x = tl.load(a + at, mask=(r + i < n)[None, :], other=0.0)
    y = tl.load(b + at, mask=(r + i < n)[:, None], other=0.0)
    return tl.dot(x, y, acc)


@combination(halves, halves, floats, 37, BLOCK=16)
@triton.jit
def dots_in_a_helper(a, b, out, n, BLOCK: tl.constexpr):
    acc = tl.zeros((BLOCK, BLOCK), tl.float32)
    for i in range(0, n, BLOCK):
        acc = step_of_a_product(a, b, acc, i, n, BLOCK)
    for i in tl.static_range(2):
        acc = step_of_a_product(a, b, acc, i, n, BLOCK)
    r = tl.arange(0, BLOCK)
    tl.store(out + r[:, None] * BLOCK + r[None, :], acc)


def made_inside_a_function() -> Any:
    factor = tl.constexpr(2)

    @triton.jit
    def inner(x, offs):
        return tl.load(x + offs) * factor

    @triton.jit
    def closure(x, out, n, BLOCK: tl.constexpr):
        offs = tl.arange(0, BLOCK)
        tl.store(out + offs, inner(x, offs) * factor, mask=offs < n)

    return closure


combination(floats, floats, 37, BLOCK=16, interpretable=False)(made_inside_a_function())
