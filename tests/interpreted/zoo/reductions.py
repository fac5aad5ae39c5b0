"""Reductions and scans with functions of the kernel's own."""

from __future__ import annotations

import triton
import triton.language as tl

from tests.interpreted.oracle import Tally
from tests.interpreted.zoo.specimen import blank, normal, small, specimen


@triton.jit
def larger(a, b):
    return tl.maximum(a, b)


@triton.jit
def linear(scale_a, shift_a, scale_b, shift_b):
    return scale_a * scale_b, shift_a * scale_b + shift_b


@triton.jit
def scan_kernel(x, y, out, n, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    mask = offs < n
    a = tl.load(x + offs, mask=mask, other=1.0)
    b = tl.load(y + offs, mask=mask, other=0.0)
    peak = tl.reduce(a, 0, larger)
    _, state = tl.associative_scan((a, b), 0, linear)
    count = tl.cumsum(mask.to(tl.int32), 0)
    tl.store(out + offs, state + peak + tl.reduce(tl.load(x + offs), axis=0, combine_fn=larger), mask=count < n)


@specimen(
    scan_kernel,
    lambda n, **_: Tally(4 * (2 * min(n, 8) + 8), 4 * min(n - 1, 8)),
    n=small(1, 8),
)
def reduce_and_scan_with_own_functions(kernel, n, seed):
    x, y, out = normal(seed, 8), normal(seed + 1, 8), blank(8)
    kernel[(1,)](x, y, out, n, BLOCK=8)
    return (out,)
