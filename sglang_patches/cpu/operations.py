"""What is supplied of `sgl_kernel` without a CUDA driver: functions by name, and operations that torch knows."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from sglang_patches.cpu import experts, kernels, linear_attention, quantized

KERNELS: dict[str, Callable[..., Any]] = kernels.KERNELS | linear_attention.KERNELS
"""Functions of the package and its submodules."""

OPERATIONS: dict[str, Callable[..., Any]] = linear_attention.OPERATIONS | quantized.OPERATIONS | experts.OPERATIONS
"""Operations of `torch.ops.sgl_kernel`."""

_MUTATED = {"initial_state_source"}
"""Parameters that an operation changes in place."""

_LIBRARY = torch.library.Library("sgl_kernel", "FRAGMENT")


def register() -> None:
    """Make the operations known to torch, once per process; those that are there already stay.

    They are composites of torch's own, so what counts FLOPs counts the products inside them.
    """
    for name, operation in OPERATIONS.items():
        if hasattr(torch.ops.sgl_kernel, name):
            continue
        mutated = tuple(_MUTATED.intersection(inspect.signature(operation).parameters))
        schema = torch.library.infer_schema(operation, mutates_args=mutated)
        _LIBRARY.define(name + schema)
        _LIBRARY.impl(name, operation, "CompositeImplicitAutograd")
