"""What is supplied of `sgl_kernel` without a CUDA driver: functions by name, and operations that torch knows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from sglang_patches.cpu.supplied import experts, gates, kernels, linear_attention, quantized, trees

KERNELS: dict[str, Callable[..., Any]] = kernels.KERNELS | linear_attention.KERNELS | trees.KERNELS
"""Functions of the package and its submodules."""

OPERATIONS: dict[str, Callable[..., Any]] = {
    **linear_attention.OPERATIONS,
    **gates.OPERATIONS,
    **quantized.OPERATIONS,
    **experts.OPERATIONS,
}
"""Operations of `torch.ops.sgl_kernel`."""

_MUTATED = {"fused_sigmoid_gating_delta_rule_update_cpu": ("initial_state_source",), "fused_sigmoid_mul_cpu": ("x",)}
"""Parameters that an operation changes in place."""

_LIBRARY = torch.library.Library("sgl_kernel", "FRAGMENT")


def register() -> None:
    """Make the operations known to torch, once per process; those that are there already stay.

    They are composites of torch's own, so what counts FLOPs counts the products inside them.
    """
    for name, operation in OPERATIONS.items():
        if hasattr(torch.ops.sgl_kernel, name):
            continue
        schema = torch.library.infer_schema(operation, mutates_args=_MUTATED.get(name, ()))
        _LIBRARY.define(name + schema)
        _LIBRARY.impl(name, operation, "CompositeImplicitAutograd")
