"""How checkpoints store weights in fewer bits: fp8 by blocks or whole, GPTQ, AWQ and MXFP4 by groups of inputs.

Each format turns a weight [out, in] into the tensors of a checkpoint, and into the weight that those stand for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

BLOCK, GROUP = 32, 32
_LARGEST = torch.finfo(torch.float8_e4m3fn).max
_PER_INT32 = 8

Stored = tuple[dict[str, torch.Tensor], torch.Tensor]
"""Tensors by the end of their name, and the float32 weight that they stand for."""

_LINEAR = r"(.*_proj\.)weight"
"""Embeddings, head, norms and routers stay as they are."""


@dataclass(frozen=True)
class Format:
    """One format.

    config: what config.json says of it. store: how a weight is stored. weights: a pattern of the names of those that
    are; its group is what the names of the stored tensors begin with.
    """

    config: Mapping[str, Any]
    store: Callable[[torch.Tensor], Stored]
    weights: str = _LINEAR


def fp8_blocks(weight: torch.Tensor) -> Stored:
    """A scale for each block of BLOCK x BLOCK, so that its largest element is the largest of fp8."""
    rows, columns = weight.shape
    blocks = weight.float().reshape(rows // BLOCK, BLOCK, columns // BLOCK, BLOCK)
    scales = blocks.abs().amax((1, 3)) / _LARGEST
    eight = (blocks / scales[:, None, :, None]).to(torch.float8_e4m3fn)
    stands_for = (eight.float() * scales[:, None, :, None]).reshape(rows, columns)
    return {"weight": eight.reshape(rows, columns), "weight_scale_inv": scales}, stands_for


def fp8_whole(weight: torch.Tensor) -> Stored:
    """One scale for the whole weight."""
    scale = weight.float().abs().max() / _LARGEST
    eight = (weight.float() / scale).to(torch.float8_e4m3fn)
    return {"weight": eight, "weight_scale": scale}, eight.float() * scale


def _by_groups(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Numbers [in, out] and zero points [groups, out] of 0..15, scales [groups, out], the weight [out, in]."""
    columns = weight.float().t().reshape(-1, GROUP, weight.shape[0])
    low, high = columns.amin(1), columns.amax(1)
    scales = ((high - low) / 15).to(torch.float16).float()
    zeros = (-low / scales).round().clamp(1, 15)
    numbers = (columns / scales[:, None] + zeros[:, None]).round().clamp(0, 15)
    stands_for = ((numbers - zeros[:, None]) * scales[:, None]).flatten(0, 1).t()
    return numbers.flatten(0, 1).long(), zeros.long(), scales, stands_for


def _packed(numbers: torch.Tensor, order: tuple[int, ...]) -> torch.Tensor:
    """Eight numbers of 4 bits of each row in one int32: the one of `order[i]` lies i times 4 bits up."""
    eights = numbers.unflatten(-1, (-1, _PER_INT32))[..., list(order)]
    joined = sum(eights[..., i] << (4 * i) for i in range(_PER_INT32))
    return torch.where(joined >= 2**31, joined - 2**32, joined).to(torch.int32)


def gptq(weight: torch.Tensor) -> Stored:
    """Packed along the inputs; zero points are stored as one less."""
    numbers, zeros, scales, stands_for = _by_groups(weight)
    in_order = tuple(range(_PER_INT32))
    tensors = {
        "qweight": _packed(numbers.t(), in_order).t(),
        "qzeros": _packed(zeros - 1, in_order),
        "scales": scales.to(torch.float16),
        "g_idx": torch.arange(numbers.shape[0], dtype=torch.int32) // GROUP,
    }
    return tensors, stands_for


def awq(weight: torch.Tensor) -> Stored:
    """Packed along the outputs, the even ones first."""
    numbers, zeros, scales, stands_for = _by_groups(weight)
    interleaved = (0, 2, 4, 6, 1, 3, 5, 7)
    tensors = {
        "qweight": _packed(numbers, interleaved),
        "qzeros": _packed(zeros, interleaved),
        "scales": scales.to(torch.float16),
    }
    return tensors, stands_for


_STEPS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""What the three lower bits of e2m1 stand for; the fourth is the sign.

Source: Open Compute Project, Microscaling Formats (MX) Specification 1.0, section 5.3.3.
"""


def mxfp4(weight: torch.Tensor) -> Stored:
    """All experts' weights [experts, in, out], a power of two for each GROUP of inputs, two numbers in a byte."""
    rows = weight.float().transpose(1, 2).unflatten(-1, (-1, GROUP))
    exponents = (rows.abs().amax(-1) / _STEPS[-1]).log2().ceil()
    scaled = rows / exponents.exp2()[..., None]
    steps = torch.tensor(_STEPS)
    nearest = (scaled.abs()[..., None] - steps).abs().argmin(-1)
    stands_for = (steps[nearest] * scaled.sign() * exponents.exp2()[..., None]).flatten(-2).transpose(1, 2)
    fours = nearest + 8 * (scaled < 0)
    blocks = (fours[..., 0::2] + 16 * fours[..., 1::2]).to(torch.uint8)
    return {"_blocks": blocks, "_scales": (exponents + 127).to(torch.uint8)}, stands_for


FORMATS: Mapping[str, Format] = {
    "fp8_blocks": Format(
        {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [BLOCK, BLOCK]},
        fp8_blocks,
    ),
    "fp8_whole": Format({"quant_method": "fp8", "activation_scheme": "dynamic"}, fp8_whole),
    "gptq": Format(
        {
            "quant_method": "gptq",
            "bits": 4,
            "group_size": GROUP,
            "desc_act": False,
            "sym": False,
            "true_sequential": True,
            "static_groups": True,
            "checkpoint_format": "gptq",
        },
        gptq,
    ),
    "mxfp4": Format(
        {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router"]},
        mxfp4,
        r"(.*\.experts\.(?:gate_up|down)_proj)",
    ),
    "awq": Format({"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}, awq),
}
