"""What a module of a model is, where its class alone does not say it."""

from __future__ import annotations

import re
from typing import Any

from sglang.srt.layers.radix_attention import RadixAttention
from torch import nn

OTHER_MODALITIES = frozenset({"visual", "vision", "audio", "image", "images", "video", "speech", "talker"})
"""Words in the names of what a text never runs. Used where nothing has run yet; afterwards what ran decides."""

PROJECTORS = ("mm_projector", "multi_modal", "multimodal")
"""The same, for names of several words."""


def is_of_other_modality(name: str) -> bool:
    """Whether a module's name says that it is for images, sound or video: by whole words, so not ``imagenet_head``."""
    lowered = name.lower()
    return not OTHER_MODALITIES.isdisjoint(re.split(r"[._]", lowered)) or any(word in lowered for word in PROJECTORS)


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


def convolution_kind(name: str) -> str | None:
    """Of the convolution before a recurrence, see ``State``: Kimi delta attention has one each for queries, keys and
    values, a gated delta rule one for all."""
    last = name.rpartition(".")[2]
    if last in ("q_conv1d", "k_conv1d", "v_conv1d"):
        return "kda_conv"
    return "gdn_conv" if last == "conv1d" else None
