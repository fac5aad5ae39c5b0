"""Attention kernels by the names of SGLang's backends, for the heads that a device runs."""

from __future__ import annotations

from roofline_policies.model.attention_kernels import AttentionKernel, Backends, PaddedProduct, SeenOnly
from roofline_policies.model.attention_tiles import Fa3, TritonAttention, triton_tile
from roofline_policies.model.composed import Shape
from roofline_policies.model.dense import ModelShape
from roofline_policies.model.gqa import GroupedAttention
from roofline_policies.work import BYTES_PER_ELEMENT

KNOWN = ("fa3", "triton", "torch_native")
"""Backends whose tiles, or whose lack of them, are known here. Of any other the scores that are seen are counted."""

HOPPER = (9, 0)


def backends(
    model: Shape,
    prefill: str,
    decode: str | None = None,
    *,
    page_size: int = 1,
    capability: tuple[int, int] = HOPPER,
    deterministic: bool = False,
    padded_queries: bool = True,
    window: int | None = None,
) -> Backends:
    """The kernels of a server by ``--prefill-attention-backend`` and ``--decode-attention-backend`` as resolved.

    model: the shape that a device runs. decode: None: as prefill. page_size: of the KV cache. capability: the device's
    compute capability, (0, 0) where there is none. deterministic: ``--enable-deterministic-inference``.
    padded_queries: what ``PaddedProduct`` says. window: see ``AttentionKernel``.

    Latent attention is taken as ``SeenOnly`` whatever runs it.
    """

    def named(name: str) -> AttentionKernel:
        attention = model if isinstance(model, ModelShape) else model.attention
        if not isinstance(attention, ModelShape | GroupedAttention):
            return SeenOnly(attention.num_heads, attention.expanded_width, window)
        heads, kv_heads, dim = attention.num_heads, attention.num_kv_heads, attention.head_dim
        if name == "fa3":
            return Fa3(heads, kv_heads, dim, min(2, BYTES_PER_ELEMENT[model.kv_precision]), page_size, window)
        if name == "triton":
            return TritonAttention(heads, kv_heads, dim, triton_tile(dim, capability), window, deterministic)
        if name == "torch_native":
            return PaddedProduct(heads, dim, padded_queries, window)
        return SeenOnly(heads, dim, window)

    decode = decode or prefill
    return Backends(named(prefill), named(decode), " and ".join(dict.fromkeys((prefill, decode))))
