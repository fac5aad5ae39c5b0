"""Attention of one request's new rows over its context in plain torch; with a window, sinks or capped scores."""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention


def attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    scale: float,
    window: int | None = None,
    cap: float = 0.0,
    sinks: torch.Tensor | None = None,
    tree: torch.Tensor | None = None,
) -> torch.Tensor:
    """What the last rows of a context attend to: [new, heads, value size], in the query's dtype.

    query: [new, heads, head size]. keys: [context, KV heads, head size] and values: [context, KV heads, value size],
    the new rows last; heads are a multiple of KV heads. window: how many rows before itself a row sees; None: all. cap:
    scores are squeezed smoothly into -cap..cap; 0: they are not. sinks: [heads], a score that takes its share of every
    row's softmax and adds nothing (source: https://arxiv.org/abs/2309.17453, learned as in gpt-oss). tree: which of the
    new rows each of them sees, as of ``visible``; None: itself and those before it.
    """
    new, context = query.shape[0], keys.shape[0]
    q, k, v = query.transpose(0, 1), keys.transpose(0, 1).to(query.dtype), values.transpose(0, 1).to(query.dtype)
    sees_all = new == 1 and (window is None or context <= window + 1)
    if cap or sinks is not None:
        mask = None if sees_all else visible(new, context - new, window, tree)
        return _weighted(q, k, v, mask, scale, cap, sinks).transpose(0, 1)
    # Of a whole prompt torch needs no mask to know what is seen.
    causal = new == context and window is None and tree is None and not sees_all
    attended = scaled_dot_product_attention(
        q[None],
        k[None],
        v[None],
        attn_mask=None if sees_all or causal else visible(new, context - new, window, tree),
        is_causal=causal,
        scale=scale,
        enable_gqa=q.shape[0] != k.shape[0],
    )
    return attended[0].transpose(0, 1)


def _weighted(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
    cap: float,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """The same with the softmax written out, heads first; its weights are float32."""
    groups = query.shape[0] // keys.shape[0]
    keys, values = keys.repeat_interleave(groups, dim=0), values.repeat_interleave(groups, dim=0)
    scores = (query @ keys.transpose(1, 2)).float() * scale
    if cap:
        scores = cap * torch.tanh(scores / cap)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    if sinks is not None:
        column = sinks.float()[:, None, None].expand(-1, scores.shape[1], 1)
        scores = torch.cat([scores, column], dim=-1)
    weights = scores.softmax(dim=-1)[..., : keys.shape[1]]
    return weights.to(values.dtype) @ values


def visible(new: int, prefix: int, window: int | None = None, tree: torch.Tensor | None = None) -> torch.Tensor:
    """[new, prefix + new] booleans: row i sees itself and what is before it, at most `window` rows of that.

    tree: bool [new, new], for each of the new rows itself and those of the new rows that are before it; the others are
    other continuations of the same prefix. None: all that come before it.
    """
    block = torch.ones(new, new, dtype=torch.bool).tril_() if tree is None else tree
    mask = torch.cat([block.new_ones(new, prefix), block], dim=1)
    if window is None:
        return mask
    places = prefix + block.sum(1) - 1
    return mask & (torch.cat([torch.arange(prefix), places]) >= places[:, None] - window)
