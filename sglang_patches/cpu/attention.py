"""SGLang's attention in plain torch, made to serve what it leaves out and to compute no more than it must.

SGLang's ``torch_native`` backend knows no sinks and no capped scores, looks for a windowed layer's rows in the slots of
the others, and for the rows of a latent cache's first prefill in the cache, where they are latents. It also pads the
queries of a chunk to the whole context: a late chunk of a prompt costs as much as the prompt up to there, and FLOPs
counted from shapes would be wrong. Here n new rows behind a prefix of p cost n x (p + n) scores; with a window of w,
what lies more than w before the first of them is left out. Drafts are verified as rows of one tree per request, which
see the prefix and their ancestors. Encoders and cross attention keep SGLang's own path.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from sglang.srt.plugins.hook_registry import HookType

from sglang_patches.cpu.supplied.scores import attend
from sglang_patches.needs.attributes import find
from sglang_patches.needs.hook import Hook
from sglang_patches.needs.layers import AttentionLayer, ForwardBatch, NativeBackend


def forward_extend(
    original: Callable[..., torch.Tensor],
    backend: NativeBackend,
    q: torch.Tensor,
    k: torch.Tensor | None,
    v: torch.Tensor | None,
    layer: AttentionLayer,
    forward_batch: ForwardBatch,
    save_kv_cache: bool = True,
    sinks: torch.Tensor | None = None,
    **unknown: object,
) -> torch.Tensor:
    """Attention of new rows of prompts, and of decode rows that ride along: [new rows of all requests, heads x size].

    q: [rows, heads x key size]. k, v: [rows, KV heads, size] of the new rows, None where another layer stored them.

    Raises:
        NotImplementedError: the layer asks for something that is not supplied here; the message names it.
    """
    if _of_an_encoder(layer, forward_batch):
        return original(backend, q, k, v, layer, forward_batch, save_kv_cache)
    _refuse(layer, unknown)
    verifies = forward_batch.forward_mode.is_target_verify()
    contexts = (_verified if verifies else _extended)(backend, forward_batch)
    return _attention(backend, q, k, v, layer, forward_batch, save_kv_cache, sinks, contexts)


def forward_decode(
    original: Callable[..., torch.Tensor],
    backend: NativeBackend,
    q: torch.Tensor,
    k: torch.Tensor | None,
    v: torch.Tensor | None,
    layer: AttentionLayer,
    forward_batch: ForwardBatch,
    save_kv_cache: bool = True,
    sinks: torch.Tensor | None = None,
    **unknown: object,
) -> torch.Tensor:
    """Attention of one new row of each request; the rest as of ``forward_extend``."""
    if _of_an_encoder(layer, forward_batch):
        return original(backend, q, k, v, layer, forward_batch, save_kv_cache)
    _refuse(layer, unknown)
    return _attention(backend, q, k, v, layer, forward_batch, save_kv_cache, sinks, _decoded(backend, forward_batch))


@dataclass(frozen=True)
class Contexts:
    """The rows of a batch by context: which come before the new ones, and where all of them are stored.

    slots: int32 [contexts or more, tokens], `rows` the row of it that each context has. prefixes and news: how many
    rows come before, and how many are new. trees: bool [contexts, new, new], see ``visible``; None: new rows are a
    chain.
    """

    slots: torch.Tensor
    rows: list[int]
    prefixes: list[int]
    news: list[int]
    trees: torch.Tensor | None = None


def _extended(backend: NativeBackend, batch: ForwardBatch) -> Contexts:
    prefixes, news = batch.extend_prefix_lens, batch.extend_seq_lens
    assert prefixes is not None
    assert news is not None
    return Contexts(_slots(backend), batch.req_pool_indices.tolist(), prefixes.tolist(), news.tolist())


def _verified(backend: NativeBackend, batch: ForwardBatch) -> Contexts:
    """Contexts whose new rows are drafts to verify, as many for each."""
    drafts, prefixes = batch.spec_info, batch.seq_lens.tolist()
    new, trees = drafts.draft_token_num, None
    if drafts.tree_topk != 1 and new > 1:
        trees = drafts.custom_mask[: len(prefixes) * new * new].view(len(prefixes), new, new)
    return Contexts(_slots(backend), batch.req_pool_indices.tolist(), prefixes, [new] * len(prefixes), trees)


def _decoded(backend: NativeBackend, batch: ForwardBatch) -> Contexts:
    branches: Contexts | None = getattr(backend, BRANCHES, None)
    if branches is not None:
        return branches
    prefixes = (batch.seq_lens - 1).tolist()
    return Contexts(_slots(backend), batch.req_pool_indices.tolist(), prefixes, [1] * len(prefixes))


def _slots(backend: NativeBackend) -> torch.Tensor:
    return backend.req_to_token_pool.req_to_token


def _of_an_encoder(layer: AttentionLayer, batch: ForwardBatch) -> bool:
    return layer.is_cross_attention or batch.encoder_lens is not None or layer.attn_type.value == "encoder_only"


def _refuse(layer: AttentionLayer, unknown: dict[str, object]) -> None:
    wanted = [name for name, value in unknown.items() if value is not None]
    if layer.xai_temperature_len > 0:
        wanted.append("xai_temperature_len")
    if layer.logit_cap and layer.logit_capping_method != "tanh":
        wanted.append(f"logit_capping_method={layer.logit_capping_method}")
    if wanted:
        raise NotImplementedError(
            f"attention layer {layer.layer_id} asks for {', '.join(wanted)}: sglang_patches.cpu.attention does not "
            f"provide it, and --attention-backend torch_native is what a server without a CUDA driver runs"
        )


def _attention(
    backend: NativeBackend,
    q: torch.Tensor,
    k: torch.Tensor | None,
    v: torch.Tensor | None,
    layer: AttentionLayer,
    batch: ForwardBatch,
    save: bool,
    sinks: torch.Tensor | None,
    contexts: Contexts,
) -> torch.Tensor:
    """Store the new rows if asked to, and attend context by context."""
    pool, query = backend.token_to_kv_pool, q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim)
    if save and k is not None and v is not None:
        pool.set_kv_buffer(layer, _slots_to_write(backend, batch), k, v)
    window = layer.sliding_window_size if layer.sliding_window_size > -1 else None
    output = q.new_zeros(query.shape[0], layer.tp_q_head_num, layer.v_head_dim)
    start = 0
    trees = [None] * len(contexts.rows) if contexts.trees is None else contexts.trees
    for row, prefix, new, tree in zip(contexts.rows, contexts.prefixes, contexts.news, trees, strict=True):
        rows = slice(start, start + new)
        if k is not None and v is not None and not save and not any(contexts.prefixes):
            keys, values = k[rows], v[rows]
        else:
            # Rows behind the window are not read: their slots may be another request's by now.
            first = 0 if window is None else max(0, prefix - window)
            slots = contexts.slots[row, first : prefix + new].long()
            if _has_slots_of_its_own(backend, layer):
                slots = pool.translate_loc_from_full_to_swa(slots).long()
            keys, values = pool.get_key_buffer(layer.layer_id)[slots], pool.get_value_buffer(layer.layer_id)[slots]
        output[rows] = attend(
            query[rows], keys, values, scale=layer.scaling, window=window, cap=layer.logit_cap, sinks=sinks, tree=tree
        )
        start += new
    return output.flatten(1)


def _slots_to_write(backend: NativeBackend, batch: ForwardBatch) -> Any:
    from sglang.srt.mem_cache.memory_pool import KVWriteLoc

    return KVWriteLoc(batch.out_cache_loc, backend.swa_out_cache_loc)


def _has_slots_of_its_own(backend: NativeBackend, layer: AttentionLayer) -> bool:
    return backend.use_sliding_window_kv_pool and backend.token_to_kv_pool.layers_mapping[layer.layer_id][1]


def get_cpu_graph_seq_len_fill_value(backend: NativeBackend) -> int:
    """Length of rows that fill a batch up where ranks must have equally many: they see one token, no matter whose."""
    return 1


def complete() -> None:
    """Give SGLang's backend, in this process, what its base class asks of a CPU's where attention is data-parallel."""
    backend = find(BACKEND)
    if not hasattr(backend, get_cpu_graph_seq_len_fill_value.__name__):
        backend.get_cpu_graph_seq_len_fill_value = get_cpu_graph_seq_len_fill_value


BACKEND = "sglang.srt.layers.attention.torch_native_backend.TorchNativeAttnBackend"
BRANCHES = "_roofline_branches"
"""Attribute of a backend that drafts one token: the `Contexts` of what each branch has drafted so far."""

_PARAMETERS = ("q", "k", "v", "layer", "forward_batch", "save_kv_cache")

HOOKS = (
    Hook(f"{BACKEND}.forward_extend", HookType.AROUND, forward_extend, _PARAMETERS),
    Hook(f"{BACKEND}.forward_decode", HookType.AROUND, forward_decode, _PARAMETERS),
)
