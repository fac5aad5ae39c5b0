"""Defaults of kernels and helpers are the values they had when the function was defined."""

import inspect
from typing import Any

import pytest
import torch
import triton
import triton.language as tl

from roofline_policies.counting import Ledger, counted

LANES = 4
LANES_OF_HELPER = tl.constexpr(2)


@triton.jit
def kernel_with_default(out, BLOCK: tl.constexpr = LANES):
    tl.store(out + tl.arange(0, BLOCK), 1.0)


@triton.jit
def helper_with_default(out, BLOCK: tl.constexpr = LANES_OF_HELPER):
    tl.store(out + tl.arange(0, BLOCK), 1.0)


@triton.jit
def kernel_of_a_helper_with_default(out):
    helper_with_default(out)
    helper_with_default(out + 8, BLOCK=4)


@triton.jit
def no_load(pointer):
    return 3.0


@triton.jit
def load_half(pointer):
    return tl.load(pointer) * 0.5


TRANSFORM_OF_MODULE = load_half


@triton.jit
def kernel_with_a_function(out, TRANSFORM: tl.constexpr = TRANSFORM_OF_MODULE):
    tl.store(out, TRANSFORM(out + 12))


def kernel_inside(lanes: tl.constexpr, transform: Any) -> Any:
    """The names of its defaults are this function's; Triton needs them in its body too."""

    @triton.jit
    def kernel(out, BLOCK: tl.constexpr = 2 * lanes, TRANSFORM: tl.constexpr = transform):
        tl.static_assert(2 * lanes == BLOCK)
        tl.store(out + tl.arange(0, BLOCK), TRANSFORM(out + 12) + transform(out + 13))

    return kernel


KERNELS = {
    "kernel": (kernel_with_default, 0, 16),
    "helper": (kernel_of_a_helper_with_default, 0, 24),
    "function": (kernel_with_a_function, 4, 4),
    "enclosing function": (kernel_inside(tl.constexpr(2), no_load), 0, 16),
    "enclosing function, helper that loads": (kernel_inside(tl.constexpr(4), load_half), 8, 32),
}

TRANSFORM_OF_MODULE = no_load
LANES = 8
LANES_OF_HELPER = tl.constexpr(8)


@pytest.mark.parametrize("name", list(KERNELS))
def test_a_default_is_evaluated_once(name: str) -> None:
    """By the twin; Triton's interpreter evaluates those of the original anew, where it can."""
    original, loaded, stored = KERNELS[name]
    kernel = counted(original, ledger=Ledger("cpu", rows=1))
    kernel[(1,)](torch.zeros(16))
    assert (kernel.counts().load_bytes, kernel.counts().store_bytes) == (loaded, stored)
    of_original = inspect.signature(original.fn).parameters
    of_twin = inspect.signature(kernel.twin.fn).parameters
    for parameter in of_original.keys() - {"TRANSFORM"}:
        assert of_twin[parameter].default == of_original[parameter].default


def test_an_argument_takes_the_place_of_a_default() -> None:
    kernel = counted(kernel_with_default, ledger=Ledger("cpu", rows=1))
    kernel[(1,)](torch.zeros(16), BLOCK=16)
    assert kernel.counts().store_bytes == 64
