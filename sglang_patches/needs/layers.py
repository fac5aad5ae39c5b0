"""Every attribute that `sglang_patches/cpu` reads on a model's layers and on the KV cache; see `needs.objects`."""

from __future__ import annotations

from typing import Any, Protocol

import torch


class AttentionLayer(Protocol):
    """One attention layer of a model on one rank."""

    layer_id: int  # among all layers of the model
    tp_q_head_num: int  # query heads
    qk_head_dim: int  # elements of a query and of a key
    v_head_dim: int  # elements of a value
    scaling: float  # of the scores
    logit_cap: float  # of the scores; 0: none
    logit_capping_method: str  # "tanh", or another
    sliding_window_size: int  # rows seen before one's own; -1: all
    xai_temperature_len: int  # queries are scaled by their position beyond it; -1: not
    is_cross_attention: bool  # keys and values are an encoder's
    attn_type: Any  # an AttentionType


class KvPool(Protocol):
    """The KV cache of one rank, all layers."""

    def get_key_buffer(self, layer_id: int) -> torch.Tensor: ...  # [slots, KV heads, key size]
    def get_value_buffer(self, layer_id: int) -> torch.Tensor: ...  # [slots, KV heads, value size]
    def set_kv_buffer(
        self, layer: AttentionLayer, loc_info: Any, cache_k: Any, cache_v: Any
    ) -> None: ...  # stores rows


class WindowPool(KvPool, Protocol):
    """A KV cache whose windowed layers have slots of their own."""

    layers_mapping: dict[int, tuple[int, bool]]  # by layer: its place in its pool, and whether that is the window's

    def translate_loc_from_full_to_swa(
        self, kv_indices: torch.Tensor
    ) -> torch.Tensor: ...  # slots of the window's pool


class RowsOfRequests(Protocol):
    """Which slots the tokens of each request have."""

    req_to_token: torch.Tensor  # int32 [requests, context]


class NativeBackend(Protocol):
    """SGLang's attention in plain torch."""

    token_to_kv_pool: Any  # a KvPool
    req_to_token_pool: RowsOfRequests  # slots by request
    use_sliding_window_kv_pool: bool  # the pool is a WindowPool
    swa_out_cache_loc: torch.Tensor | None  # int [new rows], where a windowed layer stores them


class DraftsToVerify(Protocol):
    """Drafts of a batch that the target verifies, and of other batches that speculation runs."""

    draft_token_num: int  # nodes of each request's tree, the settled token among them
    tree_topk: int  # 1: every tree is a chain
    custom_mask: torch.Tensor  # bool [requests x nodes x nodes], which nodes a node sees


class ForwardBatch(Protocol):
    """A batch as a model's layers see it."""

    forward_mode: Any  # a ForwardMode
    batch_size: int  # requests
    spec_info: Any  # a DraftsToVerify where the mode says so; None without speculation
    out_cache_loc: torch.Tensor  # int [new rows], where they are stored
    req_pool_indices: torch.Tensor  # int [requests]
    seq_lens: torch.Tensor  # int [requests], new rows included
    extend_prefix_lens: torch.Tensor | None  # int [requests]; None in decode
    extend_seq_lens: torch.Tensor | None  # int [requests], new rows; None in decode
    encoder_lens: torch.Tensor | None  # None: there is no encoder


class DraftRunner(Protocol):
    """What runs a draft model."""

    req_to_token_pool: RowsOfRequests


class DraftBackendFactory(Protocol):
    """Makes the attention of a draft model."""

    draft_model_runner: DraftRunner
    topk: int  # branches of a tree at each step
    speculative_num_steps: int  # tokens drafted in a row


class QuantizedLayer(Protocol):
    """A linear layer or a layer of experts whose weights are stored in fewer bits."""

    use_intel_amx_backend: bool  # it is computed by an operation of sgl_kernel for CPUs
