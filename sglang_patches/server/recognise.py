"""What a module of a model is, where its class alone does not say it."""

from __future__ import annotations

from typing import Any

from sglang.srt.layers.radix_attention import RadixAttention
from torch import nn


def is_latent(module: Any) -> bool:
    """Latent attention with both of its halves."""
    return isinstance(getattr(module, "attn_mqa", None), RadixAttention) and hasattr(module, "kv_lora_rank")


def is_mamba(module: nn.Module) -> bool:
    """By name: its module imports kernels that not every build of SGLang has."""
    return any(kind.__name__ == "MambaMixer2" for kind in type(module).__mro__)


def routes(name: str, module: nn.Module) -> bool:
    """A router of experts, by the name of the module or of its class."""
    told = f"{name.rpartition('.')[2]} {type(module).__name__}".lower()
    return "gate" in told or "router" in told


def is_convolution(name: str, module: nn.Module) -> bool:
    """A convolution, by the name of the module or of its class."""
    return "conv" in f"{name} {type(module).__name__}".lower()
