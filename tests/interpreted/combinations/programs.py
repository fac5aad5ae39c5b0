"""Kernels that combine the zoo's constructs: helpers in loops in branches, early returns in both, masks handed on.

The compiler joins what the counters hold at every branch and loop, the interpreter is plain Python; so each kernel is
compiled (``test_counting_compiles``) and, where Triton's interpreter can run it, compared with the oracle.
"""

# Kernels are written the ways people write them, not only the way the linter would.
# ruff: noqa: B007, PIE808

import triton
import triton.language as tl

from roofline_policies.counting.triton_versions import HAS_BLOCK_POINTERS
from tests.interpreted.combinations.combining import COMBINATIONS, Combination, below_three, combination, floats
from tests.interpreted.combinations.of_helpers import early_values

__all__ = ["COMBINATIONS", "Combination"]

# --- loops ------------------------------------------------------------------------------------------------------------


@combination(below_three, floats, 37)
@triton.jit
def loads_in_tests_of_while_loops(flags, out, n):
    i = 0
    while (i < n) & (tl.load(flags + i) < 2):
        j = i
        while j < 5:
            tl.store(out + j, 1.0)
            j += 1
        if i % 2 == 0:
            i += 1
        else:
            i += tl.load(flags + i) + 1
    tl.store(out, i)


@combination(below_three, below_three, 37, BLOCK=16)
@triton.jit
def results_of_atomics_decide(counter, out, n, BLOCK: tl.constexpr):
    for i in range(0, n):
        ticket = tl.atomic_add(counter, 1)
        if ticket % 2 == 0:
            offs = tl.arange(0, BLOCK)
            mask = offs < n - i
            old = tl.where(mask, tl.atomic_max(counter + 1 + offs, ticket + offs, mask=mask), 0)
            tl.store(out + offs, old, mask=mask)


@combination(floats, floats, 37, BLOCK=16)
@triton.jit
def static_ranges_inside_a_loop(x, out, n, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, n, BLOCK):
        for i in tl.static_range(3):
            for j in tl.static_range(0, 4, 2):
                if i > 0:
                    acc += tl.load(x + start + offs + i, mask=start + offs + i + j < n, other=0.0)
                if j == i:
                    acc += tl.load(x)
    tl.store(out + offs, acc)


@combination(floats, floats, 1, BLOCK=16)
@triton.jit
def bounds_that_are_one(x, out, n, BLOCK: tl.constexpr):
    """Triton compiles an argument that is 1 as a constant."""
    offs = tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK,), tl.float32)
    for i in range(0, n):
        acc += tl.load(x + offs, mask=offs + i < n, other=0.0)
    for i in range(n, 10, n):
        acc += tl.load(x + offs, mask=offs + i < 8, other=0.0)
    for i in range(0, 40, BLOCK):
        acc += tl.load(x + offs, mask=offs + i < 40, other=0.0)
    if n > 0:
        acc += tl.load(x)
    tl.store(out + offs, acc, mask=offs < n)


@combination(floats, floats, 37, 2**33, BLOCK=16, interpretable=False)
@triton.jit
def loops_in_other_integer_types(x, out, n, big, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK,), tl.float32)
    for i in range(big, big + n, BLOCK):
        acc += tl.load(x + offs, mask=offs + i < big + n, other=0.0)
        if n > 3:
            acc += tl.load(x + offs, mask=offs + i < big + n, other=0.0)
    for i in range(n.to(tl.int64), tl.cast(n, tl.int64) + 9):
        acc += tl.load(x + offs, mask=(offs + i < n + 9) & (offs < n), other=0.0)
    for i in range(tl.program_id(0).to(tl.uint32), 5):
        acc += tl.load(x + i + offs, mask=offs + i < 7, other=0.0)
    tl.store(out + offs, acc)


@combination(floats, floats, 37, BLOCK=16)
@triton.jit
def ranges_with_options(x, out, n, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK,), tl.float32)
    for i in tl.range(0, n, BLOCK, num_stages=3):
        acc += tl.load(x + offs + i, mask=offs + i < n, other=0.0)
    for i in tl.range(0, n, BLOCK, loop_unroll_factor=2):
        acc += tl.load(x + offs + i, mask=offs + i < n, other=0.0)
    for i in tl.range(0, n, step=BLOCK, flatten=True):
        for j in tl.range(i, n):
            acc += tl.load(x + offs + i, mask=offs + i < j, other=0.0)
    for i in tl.range(n):
        acc += tl.load(x)
    tl.store(out + offs, acc)


@combination(floats, below_three, floats, 37, BLOCK=16)
@triton.jit
def loops_counted_in_loops(x, lengths, out, n, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK,), tl.float32)
    for i in range(0, n):
        length = tl.load(lengths + i)
        m = tl.load(lengths + i + 1)
        for j in range(i, n + i, 8):
            at = j + offs
            acc += tl.load(x + at, mask=(at < n + i) & (at >= i), other=0.0)
            for k in range(0, length):
                acc += tl.load(x + k, mask=j < n)
                acc += tl.load(x + offs, mask=(offs < m) & (k + offs < length), other=0.0)
    tl.store(out + offs, acc)


@combination(floats, floats, 12, BLOCK=16)
@triton.jit
def branches_and_loops_four_deep(x, out, n, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    for i in range(0, n):
        for j in range(0, i):
            if j > 2:
                if i > 5:
                    tl.store(out + offs, 1.0, mask=offs < j)
                else:
                    k = 0
                    while k < 2:
                        tl.atomic_add(out + offs, 1.0, mask=offs < k)
                        k += 1


@combination(floats, floats, 24, 20, available=HAS_BLOCK_POINTERS, BM=8, BN=16)
@triton.jit
def block_pointers_and_descriptors_in_two_loops(x, out, rows, cols, BM: tl.constexpr, BN: tl.constexpr):
    source = tl.make_tensor_descriptor(x, [rows, cols], [cols, 1], [BM, BN])
    pointer = tl.make_block_ptr(x, (rows, cols), (cols, 1), (0, 0), (BM, BN), (1, 0))
    for i in range(0, rows, BM):
        along = pointer
        for j in range(0, cols, BN):
            value = source.load([i, j]) + tl.load(along, boundary_check=(0, 1), padding_option="zero")
            target = tl.make_block_ptr(out, (rows, cols), (cols, 1), (i, j), (BM, BN), (1, 0))
            tl.store(target, value, boundary_check=(0, 1))
            along = tl.advance(along, (0, BN))
        pointer = tl.advance(pointer, (BM, 0))


# --- conditions -------------------------------------------------------------------------------------------------------


@combination(floats, below_three, floats, 37, MASKED=True, BLOCK=16)
@combination(floats, below_three, floats, 37, MASKED=False, BLOCK=16)
@triton.jit
def tiles_skipped_where_masked(x, flags, out, n, MASKED: tl.constexpr, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK,), tl.float32)
    for i in range(0, n, BLOCK):
        skip = False
        if MASKED:
            skip = tl.load(flags + i) > 1
        if not skip:
            acc += tl.load(x + offs + i, mask=offs + i < n, other=0.0)
    tl.store(out + offs, acc)


@combination(floats, floats, 37, BLOCK=16)
@combination(floats, floats, 3, BLOCK=16)
@triton.jit
def conditional_expressions(x, out, n, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    a = early_values(x, n, 3) if n > 5 else 0.0
    b = tl.load(x) if n > 5 else tl.load(x + 1)
    c = tl.load(x + offs, mask=offs < n, other=0.0) if BLOCK > 8 else 0.0
    bound = n if n < 10 else 10
    low = 0 if BLOCK > 8 else n
    tl.store(out + offs, a + b + c, mask=(offs < bound) & (offs >= low))
    tl.store(out + offs, 1.0, mask=(offs < 5) if n == 3 else (offs < 6))


@combination(floats, floats, -1, BLOCK=16)
@triton.jit
def scalar_masks(x, out, n, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    some = tl.program_id(0) > 0
    v = tl.load(x, mask=some, other=0.0)
    v += tl.load(x + offs, mask=some, other=0.0)
    v += tl.load(x + offs, mask=some & (offs < n) & (n > -5), other=0.0)
    v += tl.load(x + offs, mask=some and n > -5, other=0.0)
    v += tl.load(x + offs, mask=not some, other=0.0)
    v += tl.load(x + offs, mask=(n != 0) & (offs == 3), other=0.0)
    v += tl.load(x + offs, mask=(offs < 4).to(tl.int1), other=0.0)
    tl.store(out + offs, v, mask=True)


@combination(floats, floats, 37, BLOCK=16, ACTIVATION="relu")
@combination(floats, floats, 37, BLOCK=16, ACTIVATION=None)
@triton.jit
def strings_choose(x, out, n, BLOCK: tl.constexpr, ACTIVATION: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    if ACTIVATION == "relu":
        value = tl.load(x + offs)
    elif ACTIVATION is None:
        value = tl.load(x)
    else:
        value = tl.zeros((BLOCK,), tl.float32)
    tl.store(out + offs, value, mask=None)


# --- what else a kernel may contain -----------------------------------------------------------------------------------


@triton.constexpr_function
def half(n):
    return n // 2


@triton.jit
def plus_one(a):
    return a + 1


@combination(floats, floats, 37, BLOCK=16)
@triton.jit
def functions_of_constants(x, out, n, BLOCK: tl.constexpr):
    offs = tl.arange(0, half(BLOCK))
    HALF: tl.constexpr = half(BLOCK)
    for i in range(0, n, HALF):
        tl.store(out + i + offs, tl.load(x + i + offs, mask=i + offs < n), mask=i + offs < n)


@combination(floats, floats, 37, BLOCK=16, interpretable=False)
@triton.jit
def assembly_maps_and_asserts(x, out, n, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    value = tl.load(x + offs)
    value = tl.inline_asm_elementwise("add.f32 $0, $1, $1;", "=f,f", [value], dtype=tl.float32, is_pure=True, pack=1)
    value = tl.map_elementwise(plus_one, value)
    tl.device_assert(n > 0, "n")
    tl.debug_barrier()
    assert BLOCK > 2
    tl.store(out + offs, value)


@combination(floats, floats, 37, BLOCK=16)
@triton.jit
def forms_of_assignment(x, out, n, BLOCK: tl.constexpr):
    a = tl.load(x)
    c: tl.float32 = tl.load(x + 1)
    (d, e), f = (tl.load(x + 2), a), tl.load(x + 3)
    offs, m = tl.arange(0, BLOCK), n
    tl.store(out + offs, a + c + d + e + f, mask=offs < m)
