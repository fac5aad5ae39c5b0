"""Sizes of a module as one rank has it, whatever its weights are packed in."""

from __future__ import annotations

from typing import Any

from sglang.srt.layers.linear import LinearBase
from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE
from sglang.srt.layers.radix_attention import RadixAttention
from torch import nn


def out_in(module: Any) -> tuple[int, int]:
    """Outputs and inputs of this rank's part of a linear layer."""
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    outputs = getattr(module, "output_size_per_partition", None) or sum(
        getattr(module, "output_partition_sizes", ()) or (module.output_size,)
    )
    return int(outputs), int(getattr(module, "input_size_per_partition", None) or module.input_size)


def elements(name: str, module: Any, own: list[nn.Parameter]) -> int:
    """Parameters of a module: its matrices' sizes, as packed weights hold several in one element; without scales."""
    if isinstance(module, RadixAttention):
        return 0  # scales of the KV cache
    biases = int(sum(one.numel() for key, one in module.named_parameters(recurse=False) if "bias" in key))
    if own and isinstance(module, FusedMoE):
        runner = module.moe_runner_config
        width, up = runner.intermediate_size_per_partition, 2 if runner.is_gated else 1
        return int(module.num_local_experts * runner.hidden_size * width * (up + 1)) + biases
    if own and isinstance(module, LinearBase) and not name.endswith("conv1d"):
        outputs, inputs = out_in(module)
        return int(outputs * inputs + biases)
    return int(sum(one.numel() for one in own))


def stack(own: list[nn.Parameter]) -> tuple[int, int, int, int] | None:
    """Count, outputs that go up, hidden size and width of experts whose weights are two tensors and no more."""
    if len(own) != 2 or any(len(one.shape) != 3 for one in own):
        return None
    (count, up, hidden), (others, down, width) = (tuple(int(size) for size in one.shape) for one in own)
    fits = count == others and hidden == down and up in (width, 2 * width)
    return (count, up, hidden, width) if fits else None
