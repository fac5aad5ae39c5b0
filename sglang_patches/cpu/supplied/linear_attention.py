"""Linear attention with a gated delta rule (Qwen3-Next, Qwen3.5) in plain torch: its states live in SGLang's pool.

Each value head keeps a matrix S [value size, key size] per request. A token decays it, and corrects what it answers to
the token's key:  S <- e^g S;  S <- S + beta (v - S k) k^T;  o = S q / sqrt(key size).
Source: https://arxiv.org/abs/2412.06464, equation 10, with q and k of length one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.functional import conv1d, silu, softplus

_EPSILON = 1e-6


def step(
    state: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    decay: torch.Tensor,
    rate: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token of each of N requests: its output [N, heads, value size] and the state after it, all float32.

    state: [N, heads, value size, key size]. query, key: [N, heads, key size], value: [N, heads, value size], decay (g)
    and rate (beta): [N, heads].
    """
    state = state * decay.exp()[..., None, None]
    missing = value - (state @ key[..., None])[..., 0]
    state = state + (rate[..., None] * missing)[..., None] * key[..., None, :]
    return (state @ query[..., None])[..., 0] * key.shape[-1] ** -0.5, state


def _directions(x: torch.Tensor, heads: int, normalized: bool) -> torch.Tensor:
    """Queries or keys [..., their heads, key size] in float32 for every value head, of length one if asked to."""
    x = x.float()
    if normalized:
        x = x * (x.square().sum(-1, keepdim=True) + _EPSILON).rsqrt()
    return x.repeat_interleave(heads // x.shape[-2], dim=-2)


def fused_gdn_gating_cpu(
    A_log: torch.Tensor, a: torch.Tensor, b: torch.Tensor, dt_bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Decay g = -e^A softplus(a + bias) and rate beta = sigmoid(b), both float32 [1, tokens, heads]."""
    decay = -A_log.float().exp() * softplus(a.float() + dt_bias.float())
    return decay[None], b.float().sigmoid()[None]


def fused_sigmoid_gating_delta_rule_update_cpu(
    A_log: torch.Tensor,
    dt_bias: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    initial_state_source: torch.Tensor,
    initial_state_indices: torch.Tensor,
    cu_seqlens: torch.Tensor,
    use_qk_l2norm_in_kernel: bool,
    softplus_beta: float = 1.0,
    softplus_threshold: float = 20.0,
) -> torch.Tensor:
    """A decode step: [1, requests, heads, value size] in v's dtype; the states are changed in place.

    q, k, v: [1, requests, heads, size]; a, b: [requests, heads]. initial_state_source: [slots, heads, value size, key
    size]; initial_state_indices: int [requests], below zero for a padded row, whose output is zero.
    """
    slots = initial_state_indices[: v.shape[1]].long()
    held = slots >= 0
    heads = v.shape[2]
    decay, rate = fused_gdn_gating_cpu(A_log, a, b, dt_bias)
    output, state = step(
        initial_state_source[slots[held]].float(),
        _directions(q[0][held], heads, use_qk_l2norm_in_kernel),
        _directions(k[0][held], heads, use_qk_l2norm_in_kernel),
        v[0][held].float(),
        decay[0][held],
        rate[0][held],
    )
    initial_state_source[slots[held]] = state.to(initial_state_source.dtype)
    whole = torch.zeros_like(v)
    whole[0, held] = output.to(v.dtype)
    return whole


def chunk_gated_delta_rule_cpu(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    initial_state: torch.Tensor,
    cu_seqlens: torch.Tensor,
    head_first: bool,
    use_qk_l2norm_in_kernel: bool,
    initial_state_indices: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, None]:
    """Prefill, token by token: outputs [1, tokens, heads, value size], the states, and None for those in between.

    q, k, v: [1, tokens of all requests, heads, size]; g, beta: [1, tokens, heads]. initial_state: [slots, heads, value
    size, key size], changed in place; a request's state is zero before its first chunk, as SGLang leaves a fresh slot.
    cu_seqlens: int [requests + 1], where each request begins.
    """
    assert not head_first
    heads = v.shape[2]
    query = _directions(q[0], heads, use_qk_l2norm_in_kernel)
    key = _directions(k[0], heads, use_qk_l2norm_in_kernel)
    value, decay, rate = v[0].float(), g[0].float(), beta[0].float()
    output = torch.zeros_like(v)
    for slot, begin, end in _requests(initial_state_indices, cu_seqlens):
        state = initial_state[slot, None].float()
        for t in range(begin, end):
            one = slice(t, t + 1)
            row, state = step(state, query[one], key[one], value[one], decay[one], rate[one])
            output[0, one] = row.to(v.dtype)
        initial_state[slot] = state[0].to(initial_state.dtype)
    return output, initial_state, None


def causal_conv1d_fn_cpu(
    mixed_qkv_transposed: torch.Tensor,
    conv_weights: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str | None,
    conv_states: torch.Tensor,
    has_initial_state: torch.Tensor,
    cache_indices: torch.Tensor,
    query_start_loc: torch.Tensor,
    seq_lens_cpu: Sequence[int],
) -> torch.Tensor:
    """Each channel's convolution with its own past, over the new tokens of every request: [channels, tokens].

    mixed_qkv_transposed: [channels, tokens]. conv_weights: [channels, width]. conv_states: [slots, channels, width - 1]
    has the last inputs of each request, changed in place; not read where has_initial_state (bool [requests]) is false.
    """
    x, width = mixed_qkv_transposed, conv_weights.shape[1]
    output, fresh = torch.zeros_like(x), (~has_initial_state).tolist()
    for request, (slot, begin, end) in enumerate(_requests(cache_indices, query_start_loc)):
        before = conv_states[slot, :, -(width - 1) :].to(x.dtype)
        if slot < 0 or end == begin:
            continue
        if fresh[request]:
            before = torch.zeros_like(before)
        inputs = torch.cat([before, x[:, begin:end]], dim=1)
        mixed = conv1d(inputs[None], conv_weights[:, None].to(x.dtype), bias, groups=x.shape[0])[0]
        output[:, begin:end] = silu(mixed) if activation in ("silu", "swish") else mixed
        conv_states[slot, :, -(width - 1) :] = inputs[:, -(width - 1) :].to(conv_states.dtype)
    return output


def causal_conv1d_update_cpu(
    mixed_qkv: torch.Tensor,
    conv_states: torch.Tensor,
    conv_weights: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str | None,
    conv_state_indices: torch.Tensor,
) -> torch.Tensor:
    """The same for one token of each request: [requests, channels]."""
    requests = mixed_qkv.shape[0]
    return causal_conv1d_fn_cpu(
        mixed_qkv.transpose(0, 1),
        conv_weights,
        bias,
        activation,
        conv_states,
        torch.ones(requests, dtype=torch.bool),
        conv_state_indices[:requests],
        torch.arange(requests + 1),
        [1] * requests,
    ).transpose(0, 1)


def _requests(slots: torch.Tensor, starts: torch.Tensor) -> list[tuple[int, int, int]]:
    """(slot, first token, end) of each request; a padded one has a slot below zero."""
    bounds = starts.tolist()
    return [(s, b, e) for s, b, e in zip(slots.tolist(), bounds, bounds[1:], strict=False)]


def fused_rmsnorm_gated_cpu(x: torch.Tensor, weight: torch.Tensor, gate: torch.Tensor, eps: float) -> torch.Tensor:
    """RMS norm of x [rows, size] times weight [size] times silu of the gate [rows, size], in x's dtype."""
    normed = x.float() * (x.float().square().mean(-1, keepdim=True) + eps).rsqrt()
    return (normed * weight.float() * silu(gate.float())).to(x.dtype)


KERNELS: dict[str, Callable[..., Any]] = {
    kernel.__name__: kernel for kernel in (causal_conv1d_fn_cpu, causal_conv1d_update_cpu, chunk_gated_delta_rule_cpu)
}
"""What `sgl_kernel.mamba` has, by name."""

OPERATIONS: dict[str, Callable[..., Any]] = {
    operation.__name__: operation
    for operation in (fused_gdn_gating_cpu, fused_rmsnorm_gated_cpu, fused_sigmoid_gating_delta_rule_update_cpu)
}
"""What torch finds in the `sgl_kernel` namespace of its operations, by name."""
