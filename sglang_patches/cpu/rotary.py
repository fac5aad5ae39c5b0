"""Rotary positions of latent attention on a CPU, where SGLang 0.5.23 makes those of DeepSeek's own scaling alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from sglang.srt.plugins.hook_registry import HookType

from sglang_patches.needs.hook import Hook


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
    """What turns queries and keys by their positions: SGLang's general module where its CPU one does not serve."""
    from sglang.srt.layers.rotary_embedding.factory import get_rope

    common = (head_size, rotary_dim, max_position, base, is_neox_style, rope_scaling, dtype, partial_rotary_factor)
    if rope_scaling is not None and rope_scaling.get("rope_type") == "deepseek_yarn":
        return original(*common, device)
    return get_rope(*common)


FACTORY = "sglang.srt.layers.rotary_embedding.factory"

HOOKS = (
    Hook(
        f"{FACTORY}.get_rope_cpu",
        HookType.AROUND,
        get_rope_cpu,
        (
            "head_size", "rotary_dim", "max_position", "base", "is_neox_style", "rope_scaling", "dtype",
            "partial_rotary_factor", "device",
        ),
    ),
)  # fmt: skip
