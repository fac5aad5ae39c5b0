"""Prefill attention on a CPU that computes the new rows alone.

SGLang's ``torch_native`` backend pads the queries of a chunk to the whole context: a late chunk of a prompt costs as
much as the prompt up to there, and FLOPs counted from shapes would be wrong. Here a chunk of n tokens behind a prefix
of p costs n x (p + n) scores. Encoder-decoder models, sliding windows and unmasked attention keep SGLang's own path.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from sglang.srt.plugins.hook_registry import HookType
from torch.nn.functional import scaled_dot_product_attention

from sglang_patches.needs.hook import Hook


def extend(
    original: Callable[..., torch.Tensor],
    backend: object,
    query: torch.Tensor,
    output: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    req_to_token: torch.Tensor,
    req_pool_indices: torch.Tensor,
    seq_lens: torch.Tensor,
    extend_prefix_lens: torch.Tensor,
    extend_seq_lens: torch.Tensor,
    encoder_lens: torch.Tensor | None = None,
    scaling: float | None = None,
    enable_gqa: bool = False,
    causal: bool = False,
    is_cross_attn: bool = False,
    sliding_window_size: int | None = None,
) -> torch.Tensor:
    """Causal attention of each request's new rows over its whole context, into ``output``.

    query, output: [new tokens of all requests, heads, head size]. k_cache, v_cache: [slots, KV heads, head size].
    req_to_token: [requests, context], the slot of each token. The lengths and indices: [requests].
    """
    windowed = sliding_window_size is not None and sliding_window_size > -1
    if encoder_lens is not None or is_cross_attn or windowed or not causal:
        return original(
            backend, query, output, k_cache, v_cache, req_to_token, req_pool_indices, seq_lens, extend_prefix_lens,
            extend_seq_lens, encoder_lens, scaling, enable_gqa, causal, is_cross_attn, sliding_window_size,
        )  # fmt: skip
    start = 0
    rows = zip(req_pool_indices.tolist(), extend_prefix_lens.tolist(), extend_seq_lens.tolist(), strict=True)
    for row, prefix, new in rows:
        slots = req_to_token[row, : prefix + new]
        q, k, v = (x.transpose(0, 1) for x in (query[start : start + new], k_cache[slots], v_cache[slots]))
        mask = visible(new, prefix) if prefix else None
        attended = scaled_dot_product_attention(
            q[None],
            k.to(q.dtype)[None],
            v.to(q.dtype)[None],
            attn_mask=mask,
            is_causal=mask is None,
            scale=scaling,
            enable_gqa=enable_gqa,
        )
        output[start : start + new] = attended[0].transpose(0, 1)
        start += new
    return output


def visible(new: int, prefix: int) -> torch.Tensor:
    """[new, prefix + new] booleans: row i sees the prefix and the new tokens up to itself."""
    return torch.ones(new, prefix + new, dtype=torch.bool).tril_(diagonal=prefix)


BACKEND = "sglang.srt.layers.attention.torch_native_backend.TorchNativeAttnBackend"

HOOK = Hook(
    f"{BACKEND}._run_sdpa_forward_extend",
    HookType.AROUND,
    extend,
    (
        "query", "output", "k_cache", "v_cache", "req_to_token", "req_pool_indices", "seq_lens", "extend_prefix_lens",
        "extend_seq_lens", "encoder_lens", "scaling", "enable_gqa", "causal", "is_cross_attn", "sliding_window_size",
    ),
)  # fmt: skip
