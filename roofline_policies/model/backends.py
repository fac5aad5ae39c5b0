"""Attention kernels by the names of SGLang's backends, for the heads that a device runs."""

from __future__ import annotations

from roofline_policies.model.attention_kernels import AttentionKernel, Backends, PaddedProduct, SeenOnly, Windowed
from roofline_policies.model.attention_tiles import Fa3, TritonAttention, triton_tile
from roofline_policies.model.parts import Attention
from roofline_policies.model.rank_model import RankModel
from roofline_policies.work import BYTES_PER_ELEMENT

KNOWN = ("fa3", "triton", "torch_native")
"""Backends whose tiles, or whose lack of them, are known here. Of any other the scores that are seen are counted."""

NAMES = (
    "fa3", "fa4", "flashinfer", "triton", "trtllm_mha", "trtllm_mla", "flashmla", "cutlass_mla", "cutedsl_mla",
    "torch_native", "flex_attention", "dsa", "nsa", "hpc_ops", "aiter", "wave", "ascend", "intel_amx", "intel_xpu",
)  # fmt: skip
"""Backends that SGLang 0.5.23 has. Source: its ``arg_groups/choices.py``; deprecated and single models' ones left out.
"""

HOPPER = (9, 0)


def backends(
    model: RankModel,
    prefill: str,
    decode: str | None = None,
    *,
    page_size: int = 1,
    capability: tuple[int, int] = HOPPER,
    deterministic: bool = False,
    padded_queries: bool = True,
) -> Backends:
    """The kernels of a server by ``--prefill-attention-backend`` and ``--decode-attention-backend`` as resolved.

    model: what a device runs. decode: None: as prefill. page_size: of the KV cache. capability: the device's compute
    capability, (0, 0) where there is none. deterministic: ``--enable-deterministic-inference``. padded_queries: what
    ``PaddedProduct`` says.

    Heads whose keys and values differ in width, and latent attention in kernels that are made for it, are taken as
    ``SeenOnly``.
    """

    def named(name: str, one: Attention | None) -> AttentionKernel:
        if one is None:
            heads, width = _latent_heads(model)
            return PaddedProduct(heads, width, padded_queries) if name == "torch_native" else SeenOnly(heads, width)
        if one.qk_dim != one.v_dim:
            return SeenOnly(one.heads, (one.qk_dim + one.v_dim) // 2, one.window)
        heads, kv_heads, dim, window = one.heads, one.kv_heads, one.qk_dim, one.window
        if name == "fa3":
            return Fa3(heads, kv_heads, dim, min(2, BYTES_PER_ELEMENT.get(one.kv_precision, 1)), page_size, window)
        if name == "triton":
            return TritonAttention(heads, kv_heads, dim, triton_tile(dim, capability), window, deterministic)
        if name == "torch_native":
            return PaddedProduct(heads, dim, padded_queries, window)
        return SeenOnly(heads, dim, window)

    decode = decode or prefill
    full, window = model.full_attention, model.window_attention
    windowed = Windowed(named(prefill, window), named(decode, window)) if window is not None else None
    if windowed is None and model.window is not None:  # keys that an indexer picks
        picked = SeenOnly(*_latent_heads(model), model.window)
        windowed = Windowed(picked, picked)
    name = " and ".join(dict.fromkeys((prefill, decode)))
    return Backends(named(prefill, full), named(decode, full), name, windowed)


def _latent_heads(model: RankModel) -> tuple[int, int]:
    """One head as wide as all of the expanded form together, whose keys and values differ in width; nothing is computed
    where there is no attention at all."""
    sizes = next((one.sizes for one in model.latent), None)
    if sizes is None:
        return 1, 1
    return 1, sizes.num_heads * (sizes.qk_nope_head_dim + sizes.qk_rope_head_dim + sizes.v_head_dim) // 2
