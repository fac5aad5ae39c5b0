"""The part of a model's Work that attention kernels answer for."""

from __future__ import annotations

from roofline_policies.model.batch import BatchShape
from roofline_policies.model.decoder import Decoder
from roofline_policies.model.gqa import GroupedAttention
from roofline_policies.model.rank_model import RankModel
from roofline_policies.work import Bytes, Flops, Precision, Work

LAYERS = 2


def model(heads: int, kv_heads: int, head_dim: int, precision: Precision) -> RankModel:
    """LAYERS layers with this attention; the other sizes do not matter here."""
    return Decoder(
        family="llama",
        hidden_size=heads * head_dim,
        num_layers=LAYERS,
        attention=GroupedAttention(heads, kv_heads, head_dim),
        intermediate_size=64,
        vocab_size=100,
        tied_embeddings=False,
        weight_precision=precision,
        kv_precision=precision,
    ).rank_model


def attention_part(shape: RankModel, batch: BatchShape) -> Work:
    """Of the model's Work what Q K^T, P V and the reads of keys and values contribute: all that sees the contexts.

    Source: ``RankModel.attention_work`` has the terms `per_pair * causal_pairs + layers * masked_flops` (issued),
    `per_pair * causal_pairs` (useful), `kv_bytes * context_tokens` (requested), `kv_bytes * (context_tokens - new)`
    (compulsory).
    """
    whole = shape.work(batch)
    rest = shape.work(batch._replace(pairs=0, causal_pairs=0, masked_flops=0, context_tokens=batch.new_tokens))
    own = shape.kv_bytes_per_token * batch.new_tokens  # left in `rest` so that compulsory bytes stay above zero

    def less(a: tuple[int, ...], b: tuple[int, ...]) -> list[int]:
        return [x - y for x, y in zip(a, b, strict=True)]

    requested, compulsory = less(whole.requested, rest.requested), less(whole.compulsory, rest.compulsory)
    assert requested[1] == compulsory[1] == 0
    return Work(
        Flops(*less(whole.issued, rest.issued)),
        Flops(*less(whole.useful, rest.useful)),
        Bytes(requested[0] + own),
        Bytes(compulsory[0]),
    )
