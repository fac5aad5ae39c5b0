"""Layers of experts in plain torch, with weights of 8 and 4 bits: each expert with the rows that chose it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import gelu, linear, silu

from sglang_patches.cpu.supplied.quantized import by_blocks, by_groups, by_powers

_UNQUANTIZED, _FP8, _INT4, _MXFP4 = 0, 2, 3, 4
"""How weights are stored, as SGLang numbers it (``CPUQuantMethod``)."""

_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"silu": silu, "gelu": gelu}


def fused_experts_cpu(
    hidden_states: torch.Tensor,
    w1: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    inplace: bool,
    method: int,
    w1_scale: torch.Tensor | None,
    w2_scale: torch.Tensor | None,
    w1_zp: torch.Tensor | None,
    w2_zp: torch.Tensor | None,
    block_size: list[int] | None,
    w1_bias: torch.Tensor | None,
    w2_bias: torch.Tensor | None,
    alpha: float | None,
    limit: float | None,
    is_vnni: bool,
    activation: str = "silu",
) -> torch.Tensor:
    """The weighted sum of what its experts make of each row: [rows, hidden], in the rows' dtype.

    hidden_states: [rows, hidden]. topk_weights float32, topk_ids int: [rows, experts of a row], an id below zero for
    none. w1: gate and up of each expert, [experts, 2 x intermediate, hidden]; w2: [experts, hidden, intermediate];
    with 4 bits in the layout of ``convert_weight_packed_scale_zp`` or MXFP4's. block_size: of fp8 scales; None: one an
    expert. alpha, limit: those of gpt-oss's activation, whose gate and up lie in turns; None: `activation` instead.

    Raises:
        NotImplementedError: weights or an activation that are not supplied here; the message names them.
    """
    if method not in (_UNQUANTIZED, _FP8, _INT4, _MXFP4) or activation not in _ACTIVATIONS:
        raise NotImplementedError(
            f"fused_experts_cpu with method={method}, activation={activation} is not supplied by "
            f"sglang_patches.cpu.supplied.experts"
        )
    combine = _in_halves(_ACTIVATIONS[activation]) if alpha is None else _in_turns(alpha, limit)
    output = torch.zeros(hidden_states.shape, dtype=torch.float32)
    for expert in topk_ids.unique().tolist():
        if expert < 0:
            continue
        rows, places = torch.where(topk_ids == expert)
        gate_up = _stored(w1, w1_scale, w1_zp, expert, method, block_size, hidden_states.dtype)
        down = _stored(w2, w2_scale, w2_zp, expert, method, block_size, hidden_states.dtype)
        made = _expert(hidden_states[rows], gate_up, down, w1_bias, w2_bias, expert, combine)
        output.index_add_(0, rows, made.float() * topk_weights[rows, places, None].float())
    return output.to(hidden_states.dtype)


def _expert(
    x: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    gate_up_bias: torch.Tensor | None,
    down_bias: torch.Tensor | None,
    expert: int,
    combine: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    biases = [None if bias is None else bias[expert].to(x.dtype) for bias in (gate_up_bias, down_bias)]
    return linear(combine(linear(x, gate_up, biases[0])), down, biases[1])


def _in_halves(activation: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """Gate and up are the halves of a row."""

    def combine(gate_up: torch.Tensor) -> torch.Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return activation(gate) * up

    return combine


def _in_turns(alpha: float, limit: float | None) -> Callable[[torch.Tensor], torch.Tensor]:
    """Gate and up take turns in a row, as gpt-oss has them.

    Source: https://github.com/openai/gpt-oss, ``swiglu`` of its torch model: both are clamped, and (up + 1) times gate
    times the sigmoid of alpha times gate.
    """

    def combine(gate_up: torch.Tensor) -> torch.Tensor:
        gate, up = gate_up[..., 0::2].float(), gate_up[..., 1::2].float()
        if limit is not None:
            gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
        return ((up + 1) * gate * torch.sigmoid(alpha * gate)).to(gate_up.dtype)

    return combine


def _stored(
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    zeros: torch.Tensor | None,
    expert: int,
    method: int,
    block: list[int] | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """One expert's weight [out, in] in `dtype`."""
    if method == _UNQUANTIZED or scale is None:
        return weight[expert].to(dtype)
    if method == _INT4:
        assert zeros is not None
        return by_groups(weight[expert], zeros[expert], scale[expert], dtype)
    if method == _MXFP4:
        return by_powers(weight[expert], scale[expert], dtype)
    if block is None:
        return (weight[expert].float() * scale[expert].float().reshape(-1, 1)).to(dtype)
    return by_blocks(weight[expert], scale[expert], block, dtype)


def shared_expert_cpu(
    hidden_states: torch.Tensor,
    w1: torch.Tensor,
    w2: torch.Tensor,
    fused_experts_out: torch.Tensor,
    routed_scaling_factor: float,
    inplace: bool,
    use_int8_w8a8: bool,
    use_fp8_w8a16: bool,
    w1_scale: torch.Tensor | None,
    w2_scale: torch.Tensor | None,
    block_size: list[int] | None,
    is_vnni: bool,
) -> torch.Tensor:
    """What the expert of all rows makes of them, and `routed_scaling_factor` times what the chosen ones did.

    Both are [rows, hidden]; weights as of ``fused_experts_cpu``, for the one expert.

    Raises:
        NotImplementedError: weights of int8.
    """
    if use_int8_w8a8:
        raise NotImplementedError(
            "shared_expert_cpu with int8 weights is not supplied by sglang_patches.cpu.supplied.experts"
        )
    method = _FP8 if use_fp8_w8a16 else _UNQUANTIZED
    scales = [None if scale is None else scale[None] for scale in (w1_scale, w2_scale)]
    gate_up = _stored(w1[None], scales[0], None, 0, method, block_size, hidden_states.dtype)
    down = _stored(w2[None], scales[1], None, 0, method, block_size, hidden_states.dtype)
    shared = _expert(hidden_states, gate_up, down, None, None, 0, _in_halves(silu))
    return shared + fused_experts_out * routed_scaling_factor


def gate_shared_expert(
    original: Callable[..., None],
    hidden_states: torch.Tensor,
    gate_weight: torch.Tensor,
    shared_output: torch.Tensor,
    output: torch.Tensor,
    *,
    do_add: bool,
) -> None:
    """Write shared_output [rows, hidden] times the sigmoid of each row's gate to `output`, or add it there.

    gate_weight: [hidden]. SGLang has a Triton kernel for it.
    """
    gate = (hidden_states @ gate_weight[:, None]).float().sigmoid()
    gated = (gate * shared_output.float()).to(output.dtype)
    output.copy_(output + gated if do_add else gated)


OPERATIONS: dict[str, Callable[..., Any]] = {
    operation.__name__: operation for operation in (fused_experts_cpu, shared_expert_cpu)
}
"""What torch finds in the `sgl_kernel` namespace of its operations, by name."""
