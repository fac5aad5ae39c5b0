"""Which way SGLang's layers take on a CPU without AMX: to the operations that are supplied here.

SGLang 0.5.23 asks for AMX where it has compiled CPU operations: without, it refuses fp8 and MXFP4, takes AWQ for a
GPU's, and runs the gated norm of linear attention as a Triton kernel. What it needs AMX for is a packed layout of
weights; those here are read as they are stored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

import torch
from sglang.srt.plugins.hook_registry import HookType

from sglang_patches.cpu.supplied.experts import gate_shared_expert
from sglang_patches.needs.attributes import find
from sglang_patches.needs.hook import Hook
from sglang_patches.needs.layers import QuantizedLayer


def as_stored(layer: QuantizedLayer, weight_names: Sequence[str], *packing: object) -> None:
    """Instead of packing its weights: the layer asks for the CPU's operations, which read them as they are."""
    layer.use_intel_amx_backend = True


def with_their_scales(
    weight: torch.Tensor, weight_scale: torch.Tensor, logical_widths: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Instead of rounding the parts of a fused weight [out, in] again to one scale: a scale for each row.

    weight_scale: one for each part; logical_widths: rows of each part. The scales are float32 [out, 1].
    """
    widths = torch.tensor(logical_widths, device=weight_scale.device)
    return weight_scale.reshape(-1).repeat_interleave(widths)[:, None], weight


def get_rope_cpu(
    original: Callable[..., Any],
    head_size: int,
    rotary_dim: int,
    max_position: int,
    base: int,
    is_neox_style: bool = True,
    rope_scaling: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    partial_rotary_factor: float = 1.0,
    device: str | None = None,
) -> Any:
    """What turns queries and keys of latent attention by their positions.

    SGLang makes only that of DeepSeek's own scaling there; for any other its general module serves.
    """
    from sglang.srt.layers.rotary_embedding.factory import get_rope

    common = (head_size, rotary_dim, max_position, base, is_neox_style, rope_scaling, dtype, partial_rotary_factor)
    if rope_scaling is not None and rope_scaling.get("rope_type") == "deepseek_yarn":
        return original(*common, device)
    return get_rope(*common)


def without_snapshots(view: object, hf_config: object) -> bool:
    """Whether a prefix cache of states may take snapshots of them: SGLang refuses that on a CPU after choosing it."""
    return False


FP8 = "sglang.srt.layers.quantization.fp8"
MXFP4 = "sglang.srt.layers.quantization.mxfp4"
_FUSED_NORMS = "sglang.kernels.ops.attention.fla"
_ROTARY = "sglang.srt.layers.rotary_embedding.factory"
_ELEMENTWISE = "sglang.kernels.ops.elementwise.elementwise"

REPLACED: Mapping[str, object] = {
    f"{FP8}._is_cpu_amx_available": True,
    f"{FP8}._amx_process_weight_after_loading": as_stored,
    f"{FP8}.requantize_with_max_scale": with_their_scales,
    f"{MXFP4}._is_cpu_amx_available": True,
    f"{MXFP4}._amx_process_weight_after_loading": as_stored,
    "sglang.srt.arg_groups.overrides.supports_mamba_cache_extra_buffer": without_snapshots,
    f"{_FUSED_NORMS}.fused_norm_gate._use_cpu": True,
    f"{_FUSED_NORMS}.layernorm_gated._use_cpu": True,
}
"""Names in modules of SGLang's by which they choose, and what they are here."""

HOOKS = (
    Hook(
        f"{_ROTARY}.get_rope_cpu",
        HookType.AROUND,
        get_rope_cpu,
        (
            "head_size",
            "rotary_dim",
            "max_position",
            "base",
            "is_neox_style",
            "rope_scaling",
            "dtype",
            "partial_rotary_factor",
            "device",
        ),
    ),
    Hook(
        f"{_ELEMENTWISE}._launch_fused_gate_sigmoid_mul",
        HookType.AROUND,
        gate_shared_expert,
        ("hidden_states", "gate_weight", "shared_output", "output", "do_add"),
    ),
)


def choose() -> None:
    """Have this process take those branches.

    Raises:
        IncompatibleServer: SGLang no longer has a name.
    """
    from sglang.srt.layers import quantization

    for target in REPLACED:
        find(target)
    for target, value in REPLACED.items():
        module, _, name = target.rpartition(".")
        setattr(import_module(module), name, value)
    quantization.QUANTIZATION_METHODS["awq"] = quantization.CPU_QUANTIZATION_METHODS["awq"]
