"""Norms and gates around attention that SGLang's Qwen3.5 asks for as one operation each, in plain torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def _normed(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMS norm of each row of x [rows, size] times one plus the weight [size], in x's dtype."""
    rows = x.float()
    return (rows * (rows.square().mean(-1, keepdim=True) + eps).rsqrt() * (1 + weight.float())).to(x.dtype)


def fused_qk_gemma_rmsnorm_cpu(
    q: torch.Tensor, k: torch.Tensor, q_weight: torch.Tensor, k_weight: torch.Tensor, eps: float, head_dim: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys [tokens, heads x size], each head normed: [tokens x heads, size]."""
    return _normed(q.reshape(-1, head_dim), q_weight, eps), _normed(k.reshape(-1, head_dim), k_weight, eps)


def fused_qk_gemma_rmsnorm_with_gate_cpu(
    q_gate: torch.Tensor,
    k: torch.Tensor,
    q_weight: torch.Tensor,
    k_weight: torch.Tensor,
    eps: float,
    head_dim: int,
    num_heads: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same where each head of q_gate is a query and its gate, which is the third of the results."""
    q, gate = q_gate.reshape(-1, num_heads, 2 * head_dim).chunk(2, dim=-1)
    return *fused_qk_gemma_rmsnorm_cpu(q, k, q_weight, k_weight, eps, head_dim), gate.reshape(-1, head_dim).contiguous()


def fused_sigmoid_mul_cpu(x: torch.Tensor, gate: torch.Tensor) -> None:
    """Multiply x [tokens, heads x size] by the sigmoid of its gate, in place; gate: as x, or [tokens, heads, size]."""
    x.mul_(gate.reshape(x.shape).float().sigmoid().to(x.dtype))


def fused_qkvzba_split_reshape_cat_contiguous_cpu(
    mixed_qkvz: torch.Tensor, mixed_ba: torch.Tensor, num_heads_qk: int, num_heads_v: int, head_qk: int, head_v: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """What linear attention's projections hold side by side: q k v [tokens, sum], z [tokens, heads, size], b and a.

    mixed_qkvz: [tokens, all q, all k, all v, all z]; mixed_ba: [tokens, 2 x value heads].
    """
    qkv, z = mixed_qkvz.split([2 * num_heads_qk * head_qk + num_heads_v * head_v, num_heads_v * head_v], dim=-1)
    b, a = mixed_ba.split(num_heads_v, dim=-1)
    return qkv.contiguous(), z.reshape(-1, num_heads_v, head_v).clone(), b.contiguous(), a.contiguous()


OPERATIONS: dict[str, Callable[..., Any]] = {
    operation.__name__: operation
    for operation in (
        fused_qk_gemma_rmsnorm_cpu,
        fused_qk_gemma_rmsnorm_with_gate_cpu,
        fused_qkvzba_split_reshape_cat_contiguous_cpu,
        fused_sigmoid_mul_cpu,
    )
}
"""What torch finds in the `sgl_kernel` namespace of its operations, by name."""
