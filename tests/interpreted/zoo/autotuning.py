"""Kernels in wrappers: autotune and heuristics."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

import triton
import triton.language as tl

from tests.interpreted.oracle import Tally
from tests.interpreted.zoo.specimen import blank, normal, small, specimen


def once(kernel_call: Callable[[], object], quantiles: object = None) -> list[float]:
    """A benchmark that needs no device: runs the candidate and calls every one equally fast."""
    kernel_call()
    return [1.0, 1.0, 1.0]


CONFIGS = [triton.Config({"BLOCK": block}, num_warps=1) for block in (8, 16)]


@triton.autotune(configs=CONFIGS, key=["n"], do_bench=once)
@triton.jit
def autotuned_kernel(x, out, n, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + offs, tl.load(x + offs), mask=offs < n)  # how much is loaded tells the configuration


@specimen(autotuned_kernel, lambda n, **_: Tally(4 * 8 * ceil(n / 8), 4 * n), n=small())
def autotuned(kernel, n, seed):
    x, out = normal(seed, n + 16), blank(n + 16)
    kernel[lambda meta: (triton.cdiv(n, meta["BLOCK"]),)](x, out, n)
    return (out,)


@triton.heuristics({"EVEN": lambda args: args["n"] % args["BLOCK"] == 0})
@triton.jit(do_not_specialize=["n"])
def heuristic_kernel(x, out, n, BLOCK: tl.constexpr, EVEN: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + offs) if EVEN else tl.load(x + offs, mask=offs < n)
    tl.store(out + offs, value, mask=None if EVEN else offs < n)


@specimen(heuristic_kernel, lambda n, **_: Tally(4 * n, 4 * n), n=small())
def heuristics(kernel, n, seed):
    x, out = normal(seed, n), blank(n)
    kernel[(triton.cdiv(n, 8),)](x, out, n, BLOCK=8)
    return (out,)


@triton.autotune(configs=[triton.Config({"BLOCK": 16}, num_warps=2)], key=[])
@triton.heuristics({"EVEN": lambda args: args["n"] % args["BLOCK"] == 0})
@triton.jit
def wrapped_twice_kernel(x, out, n, BLOCK: tl.constexpr, EVEN: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if EVEN:
        tl.store(out + offs, tl.load(x + offs))
    else:
        tl.store(out + offs, tl.load(x + offs, mask=offs < n), mask=offs < n)


@specimen(wrapped_twice_kernel, lambda n, **_: Tally(4 * n, 4 * n), n=small())
def autotune_over_heuristics(kernel, n, seed):
    x, out = normal(seed, n), blank(n)
    kernel[lambda meta: (triton.cdiv(n, meta["BLOCK"]),)](x, out, n)
    return (out,)
