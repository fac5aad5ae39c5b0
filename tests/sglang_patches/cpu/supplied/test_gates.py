"""Norms and gates of Qwen3.5 against transformers' norm and the formulas written out head by head."""

import pytest
import torch
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5RMSNorm

from sglang_patches.cpu.supplied import gates

TOKENS, HEADS, KV_HEADS, SIZE = 3, 4, 2, 6


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def norm(weight):
    module = Qwen3_5RMSNorm(SIZE, eps=1e-5)
    module.weight.data = weight
    return module


Q_WEIGHT, K_WEIGHT = drawn(SIZE, seed=1), drawn(SIZE, seed=2)


def test_each_head_is_normed():
    qkv = drawn(TOKENS, (HEADS + 2 * KV_HEADS) * SIZE)  # a view of it is not contiguous
    q, k, _ = qkv.split([HEADS * SIZE, KV_HEADS * SIZE, KV_HEADS * SIZE], dim=-1)
    normed_q, normed_k = gates.fused_qk_gemma_rmsnorm_cpu(q, k, Q_WEIGHT, K_WEIGHT, 1e-5, SIZE)
    torch.testing.assert_close(normed_q, norm(Q_WEIGHT)(q.reshape(-1, SIZE)))
    torch.testing.assert_close(normed_k, norm(K_WEIGHT)(k.reshape(-1, SIZE)))


def test_a_gate_lies_behind_each_query():
    q_gate, k = drawn(TOKENS, HEADS * 2 * SIZE), drawn(TOKENS, KV_HEADS * SIZE)
    q, normed_k, gate = gates.fused_qk_gemma_rmsnorm_with_gate_cpu(q_gate, k, Q_WEIGHT, K_WEIGHT, 1e-5, SIZE, HEADS)
    for token in range(TOKENS):
        for head in range(HEADS):
            begin = head * 2 * SIZE
            own = q_gate[token, begin : begin + SIZE]
            torch.testing.assert_close(q[token * HEADS + head], norm(Q_WEIGHT)(own))
            assert torch.equal(gate[token * HEADS + head], q_gate[token, begin + SIZE : begin + 2 * SIZE])
    torch.testing.assert_close(normed_k, norm(K_WEIGHT)(k.reshape(-1, SIZE)))


def test_what_attention_made_is_multiplied_in_place():
    made, q_gate = drawn(TOKENS, HEADS * SIZE), drawn(TOKENS, HEADS, 2 * SIZE)
    gate = q_gate[..., SIZE:]  # every second part, as the model hands it
    expected = made * torch.sigmoid(torch.stack([gate[:, head] for head in range(HEADS)], dim=1)).flatten(1)
    gates.fused_sigmoid_mul_cpu(made, gate)
    torch.testing.assert_close(made, expected)


def test_projections_are_told_apart():
    tokens, qk_heads, v_heads, qk, v = 2, 2, 4, 3, 5
    widths = [qk_heads * qk, qk_heads * qk, v_heads * v, v_heads * v, v_heads, v_heads]
    parts = [torch.full((tokens, width), float(number)) for number, width in enumerate(widths)]
    qkv, z, b, a = gates.fused_qkvzba_split_reshape_cat_contiguous_cpu(
        torch.cat(parts[:4], dim=1), torch.cat(parts[4:], dim=1), qk_heads, v_heads, qk, v
    )
    assert torch.equal(qkv, torch.cat(parts[:3], dim=1))
    assert torch.equal(z, parts[3].reshape(tokens, v_heads, v))
    assert torch.equal(b, parts[4])
    assert torch.equal(a, parts[5])


@pytest.mark.parametrize("tokens", [1, 3])
def test_the_gate_of_a_single_token_can_be_seen_as_a_row(tokens: int) -> None:
    """SGLang views it as [tokens, heads x size]; of one token a slice of every head would be no such row."""
    q_gate, k = torch.randn(tokens, 4 * 2 * 8), torch.randn(tokens, 2 * 8)
    _, _, gate = gates.fused_qk_gemma_rmsnorm_with_gate_cpu(q_gate, k, torch.ones(8), torch.ones(8), 1e-6, 8, 4)
    expected = torch.cat([q_gate[:, head * 16 + 8 : head * 16 + 16] for head in range(4)], dim=-1)
    assert torch.equal(gate.view(tokens, -1), expected)
