"""Closed forms of dense decoders: cases worked out by hand, and laws. The counts themselves: test_oracle.py."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roofline_policies.errors import InputError
from roofline_policies.model.backends import backends
from roofline_policies.model.batch import BatchShape
from roofline_policies.model.decoder import Decoder
from roofline_policies.model.gqa import GroupedAttention
from roofline_policies.work import BYTES_PER_ELEMENT, Bytes, Flops, Precision, Provenance, Work

# Small enough to do by hand: query width 4 x 2 = 8, KV width 2 x 2 = 4.
SMALL = Decoder(
    family="llama",
    hidden_size=6,
    num_layers=3,
    attention=GroupedAttention(4, 2, 2),
    intermediate_size=10,
    vocab_size=20,
    tied_embeddings=False,
    weight_precision=Precision.BF16,
    kv_precision=Precision.BF16,
)
PADDED = backends(SMALL.rank_model, "torch_native", padded_queries=False)
LLAMA_3_8B = replace(
    SMALL,
    hidden_size=4096,
    num_layers=32,
    attention=GroupedAttention(32, 8, 128),
    intermediate_size=14336,
    vocab_size=128256,
)
FP8_KV = replace(SMALL, tied_embeddings=True, kv_precision=Precision.FP8)
QWEN = replace(
    SMALL,
    family="qwen2",
    attention=GroupedAttention(4, 2, 2, qkv_bias=True),
    weight_precision=Precision.FP32,
    kv_precision=Precision.FP16,
)
SHAPES = st.sampled_from([SMALL, LLAMA_3_8B, FP8_KV, QWEN])

prefills = st.lists(st.tuples(st.integers(1, 300), st.integers(0, 300)), max_size=4)
decodes = st.lists(st.integers(1, 600), max_size=5)
batches = st.builds(BatchShape.of, prefills, decodes, st.integers(0, 30), all_logits=st.booleans())
nonempty = batches.filter(lambda batch: batch.requests > 0)


def test_sizes_by_hand() -> None:
    # Per layer: qkv 6*(8+4+4) = 96, output 8*6 = 48, gate, up, down 3*6*10 = 180, two norms of 6 = 12; sum 336.
    # Three layers 1008, final norm 6, embedding and head 20*6 each: 1014 + 240.
    assert SMALL.parameters == 1254
    assert SMALL.weight_bytes == 2508
    # K and V of width 4, three layers, two bytes.
    assert SMALL.kv_bytes_per_token == 2 * 4 * 3 * 2
    # One table less.
    assert FP8_KV.parameters == 1134
    assert FP8_KV.kv_bytes_per_token == 2 * 4 * 3 * 1
    # qkv biases 8+4+4 in three layers; four bytes each.
    assert QWEN.weight_bytes == (1254 + 48) * 4
    assert QWEN.kv_bytes_per_token == 2 * 4 * 3 * 2
    # Output bias 6, MLP biases 10+10+6, norms of the query and key heads 2+2, in three layers.
    assert replace(SMALL, attention=GroupedAttention(4, 2, 2, output_bias=True)).parameters == 1254 + 18
    assert replace(SMALL, mlp_bias=True).parameters == 1254 + 78
    assert replace(SMALL, attention=GroupedAttention(4, 2, 2, qk_norm=True)).parameters == 1254 + 12


def test_a_large_model_has_its_published_size() -> None:
    # Llama 3 8B: the model card of the checkpoint says 8,030,261,248 parameters; 128 KiB of bf16 KV per token.
    assert LLAMA_3_8B.parameters == 8_030_261_248
    assert LLAMA_3_8B.kv_bytes_per_token == 131_072


def test_a_chunk_by_hand() -> None:
    # Two new tokens behind a prefix of 3. Per layer 324 matrix weights, so 2*324*3 = 1944 FLOPs per row; a pair costs
    # 4*8*3 = 96; the head 2*20*6 = 240.
    # useful: 2*1944 + 9 causal pairs (4+5)*96 + 240 = 4992. issued by a padded product: all 10 pairs, 96 more.
    # Weights that are read: (1014 + 120)*2 = 2268; two embedding rows 2*6*2 = 24. KV of a token: 48.
    # compulsory: reads 2268 + 24 + 3*48 = 2436; writes 2*48 = 96.
    # requested, per row and layer: reads qkv 6, store 8, attention 8, output 8, gate-up 6, down 10 = 46, thus 138 in
    # three layers, and the embedding's 6: 144 elements; writes qkv 16, attention 8, output 6, gate-up 20, down 6 = 56,
    # thus 168, and 6: 174. Reads 2268 + 2*144*2 + 5*48 + head input 12 = 3096; writes 96 + 2*174*2 + logits 40 = 832.
    assert SMALL.work(BatchShape.of([(2, 3)], attention=PADDED)) == Work(
        issued=Flops(bf16=5088),
        useful=Flops(bf16=4992),
        requested=Bytes(3096, 832),
        compulsory=Bytes(2436, 96),
        provenance=frozenset({Provenance.CLOSED_FORM}),
    )


def test_a_padded_decode_step_by_hand() -> None:
    # Contexts 4 and 7 in a graph of four rows; tied weights of 1014 + 120 elements, of which the head reads the table,
    # so that the gathered rows cost nothing more; fp8 KV of 24 bytes per token, read for 3 + 6 tokens.
    # issued: 4*1944 + 11*96 + 4*240 = 9792; useful: 2*1944 + 11*96 + 2*240 = 5424.
    # requested: reads 2268 + 4*144*2 + 11*24 + 4*12 = 3732; writes 2*24 + 4*174*2 + 4*40 = 1600.
    assert FP8_KV.work(BatchShape.of(decode_contexts=[4, 7], padded_rows=2)) == Work(
        issued=Flops(bf16=9792),
        useful=Flops(bf16=5424),
        requested=Bytes(3732, 1600),
        compulsory=Bytes(2268 + 9 * 24, 2 * 24),
        provenance=frozenset({Provenance.CLOSED_FORM}),
    )


@st.composite
def dense_decoders(draw: st.DrawFn) -> Decoder:
    kv_heads = 2 * draw(st.integers(1, 3))
    bias, qk_norm = draw(st.booleans()), draw(st.booleans())
    return Decoder(
        family=draw(st.sampled_from(["llama", "qwen3", "qwen3_moe"])),
        hidden_size=draw(st.integers(1, 64)),
        num_layers=draw(st.integers(1, 4)),
        attention=GroupedAttention(
            kv_heads * draw(st.integers(1, 3)), kv_heads, 4, qkv_bias=bias, output_bias=bias, qk_norm=qk_norm
        ),
        intermediate_size=2 * draw(st.integers(1, 50)),
        vocab_size=draw(st.integers(1, 300)),
        tied_embeddings=draw(st.booleans()),
        weight_precision=draw(st.sampled_from([Precision.FP32, Precision.BF16])),
        kv_precision=draw(st.sampled_from([Precision.FP8, Precision.BF16])),
    )


@given(dense_decoders(), batches, st.sampled_from([1, 2]))
def test_a_dense_decoder_is_its_closed_form(whole: Decoder, batch: BatchShape, tp_size: int) -> None:
    """Written out with h, q, k, i, v and L for the widths and the layers, as papers have it."""
    rank = whole.shard(tp_size)
    attention = rank.attention
    assert isinstance(attention, GroupedAttention)
    h, i, v, layers = rank.hidden_size, rank.intermediate_size, rank.vocab_size, rank.num_layers
    q, k = attention.num_heads * 4, attention.num_kv_heads * 4
    element, kv_element = (BYTES_PER_ELEMENT[p] for p in (rank.weight_precision, rank.kv_precision))
    matrices = h * (q + 2 * k) + q * h + 3 * h * i
    body = layers * (matrices + attention.qkv_bias * (q + 2 * k + h) + 2 * h + attention.qk_norm * 8) + h
    kv = 2 * k * layers * kv_element
    assert rank.parameters == body + (1 if rank.tied_embeddings else 2) * v * h
    assert (rank.weight_bytes, rank.kv_bytes_per_token) == (rank.parameters * element, kv)

    precision, new, rows = rank.weight_precision, batch.new_tokens, batch.new_tokens + batch.padded_rows
    logits = batch.logit_rows + batch.padded_logit_rows
    if not rows:
        return
    queries = rows * layers * q * element
    seen = Work(
        issued=Flops.at(precision, batch.causal_pairs * 4 * layers * q),
        useful=Flops.at(precision, batch.causal_pairs * 4 * layers * q),
        requested=Bytes(queries + kv * batch.context_tokens, queries),
        compulsory=Bytes(kv * (batch.context_tokens - new)),
        provenance=frozenset({Provenance.CLOSED_FORM}),
    )
    weights = body * element + (v * h * element if logits else 0)
    gathered = 0 if rank.tied_embeddings and logits else min(new, v) * h * element
    read, written = layers * (2 * h + q + 2 * k + i) + h, layers * (2 * h + q + 2 * k + 2 * i) + h
    rest = Work(
        issued=Flops.at(precision, rows * 2 * layers * matrices + logits * 2 * h * v),
        useful=Flops.at(precision, new * 2 * layers * matrices + batch.logit_rows * 2 * h * v),
        requested=Bytes(
            weights + rows * read * element + logits * h * element,
            kv * new + rows * written * element + logits * v * element,
        ),
        compulsory=Bytes(weights + gathered, kv * new),
        provenance=frozenset({Provenance.CLOSED_FORM}),
    )
    model = rank.rank_model
    assert model.attention_work(batch) == seen
    assert model.work_beside_attention(batch) == rest
    assert rank.work(batch) == model.work(batch) == seen + rest


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16, Precision.FP16])
def test_flops_have_the_precision_of_the_weights(precision: Precision) -> None:
    work = replace(SMALL, weight_precision=precision).work(BatchShape.of([(2, 3)], attention=PADDED))
    assert work.issued == Flops.at(precision, 5088)
    assert work.useful == Flops.at(precision, 4992)


@pytest.mark.parametrize("shape", [SMALL, FP8_KV], ids=["untied", "tied"])
def test_a_pass_without_logits_does_not_read_the_head(shape: Decoder) -> None:
    batch = BatchShape.of([(2, 3)])
    silent = batch._replace(logit_rows=0)
    # The body is 1014 elements; the table is read for two rows only.
    assert shape.work(silent).compulsory.read == 2 * 1014 + 2 * 12 + 3 * shape.kv_bytes_per_token
    assert shape.work(batch).issued.total - shape.work(silent).issued.total == 240


def test_gathered_rows_are_never_more_than_the_table() -> None:
    at_most = 2 * (1014 + 120 + 120)
    assert SMALL.work(BatchShape.of([(20, 0)])).compulsory.read == at_most
    assert SMALL.work(BatchShape.of([(21, 0)])).compulsory.read == at_most


def test_nothing_run_is_no_work() -> None:
    assert SMALL.work(BatchShape()) == Work(provenance=frozenset({Provenance.CLOSED_FORM}))


def test_an_idle_rank_that_runs_padding_reads_the_weights() -> None:
    work = SMALL.work(BatchShape.of(padded_rows=2))
    assert work.useful == Flops()
    assert work.issued.total == 2 * (1944 + 240)
    assert work.compulsory == Bytes(2268, 0)


@given(SHAPES, batches)
def test_useful_is_within_issued_and_compulsory_within_requested(shape: Decoder, batch: BatchShape) -> None:
    work = shape.work(batch)
    assert 0 <= work.useful.total <= work.issued.total
    assert 0 <= work.compulsory.read <= work.requested.read
    assert 0 <= work.compulsory.written <= work.requested.written


@given(SHAPES, prefills.filter(bool), decodes.filter(bool))
def test_a_mixed_batch_is_its_parts_except_for_the_weights(
    shape: Decoder, prefill: list[tuple[int, int]], decode_contexts: list[int]
) -> None:
    parts = [BatchShape.of(prefill), BatchShape.of(decode_contexts=decode_contexts)]
    apart = shape.work(parts[0]) + shape.work(parts[1])
    mixed = shape.work(parts[0] + parts[1])
    head_bytes = shape.weight_bytes - _gathered_bytes(shape, shape.vocab_size)
    weights = [head_bytes + _gathered_bytes(shape, part.new_tokens) for part in (*parts, parts[0] + parts[1])]
    assert mixed.issued == apart.issued
    assert mixed.useful == apart.useful
    assert mixed.requested.written == apart.requested.written
    assert mixed.requested.read == apart.requested.read - head_bytes
    assert mixed.compulsory.written == apart.compulsory.written
    assert mixed.compulsory.read - weights[2] == apart.compulsory.read - weights[0] - weights[1]


def _gathered_bytes(shape: Decoder, tokens: int) -> int:
    element_bytes = 4 if shape.weight_precision is Precision.FP32 else 2
    return 0 if shape.tied_embeddings else min(tokens, shape.vocab_size) * shape.hidden_size * element_bytes


@given(SHAPES, nonempty, nonempty)
def test_a_larger_batch_is_never_less_work(shape: Decoder, batch: BatchShape, more: BatchShape) -> None:
    small, large = shape.work(batch), shape.work(batch + more)
    for kind in ("issued", "useful"):
        assert getattr(small, kind).total < getattr(large, kind).total
    for kind in ("requested", "compulsory"):
        assert getattr(small, kind).read <= getattr(large, kind).read
        assert getattr(small, kind).written < getattr(large, kind).written


@given(SHAPES, st.integers(1, 400), st.integers(1, 400), st.integers(0, 400))
def test_cutting_a_prompt_in_two_keeps_its_useful_work_but_for_one_logit_row(
    shape: Decoder, first: int, second: int, prefix: int
) -> None:
    whole = shape.work(BatchShape.of([(first + second, prefix)]))
    cut = shape.work(BatchShape.of([(first, prefix)])) + shape.work(BatchShape.of([(second, prefix + first)]))
    assert cut.useful.total - whole.useful.total == 2 * shape.hidden_size * shape.vocab_size
    assert cut.compulsory.written == whole.compulsory.written


def test_a_rank_holds_its_part_of_every_matrix() -> None:
    attention = GroupedAttention(4, 2, 2, qkv_bias=True, output_bias=True, qk_norm=True)
    whole = replace(SMALL, vocab_size=128, attention=attention, mlp_bias=True)
    rank = whole.shard(2)
    assert rank.attention == replace(attention, num_heads=2, num_kv_heads=1)
    assert (rank.intermediate_size, rank.vocab_size) == (5, 64)
    # On every rank: per layer two norms of 6, output and down bias of 6, query and key norms of 2; the final norm.
    replicated = 3 * (2 * 6 + 2 * 6 + 2 * 2) + 6
    assert 2 * (rank.parameters - replicated) == whole.parameters - replicated
    assert 2 * rank.kv_bytes_per_token == whole.kv_bytes_per_token
    batch = BatchShape.of([(3, 4)], [9])
    assert 2 * rank.work(batch).issued.total == whole.work(batch).issued.total
    assert 2 * rank.work(batch).useful.total == whole.work(batch).useful.total


def test_kv_heads_are_replicated_where_there_are_fewer_than_ranks() -> None:
    rank = replace(SMALL, attention=GroupedAttention(4, 1, 2), intermediate_size=12).shard(4)
    assert rank.attention == GroupedAttention(1, 1, 2)
    assert rank.kv_bytes_per_token == 2 * 2 * 3 * 2


@pytest.mark.parametrize(
    ("vocab_size", "tp_size", "rows_per_rank"),
    # 100 becomes 128, which 3 does not divide, so 192; 192 itself splits evenly.
    [(128, 1, 128), (100, 1, 128), (100, 2, 64), (100, 3, 64), (192, 2, 96), (128256, 4, 32064)],
)
def test_the_vocabulary_is_padded_before_it_is_split(vocab_size: int, tp_size: int, rows_per_rank: int) -> None:
    whole = replace(SMALL, attention=GroupedAttention(12, 12, 2), intermediate_size=12, vocab_size=vocab_size)
    assert whole.shard(tp_size).vocab_size == rows_per_rank


def test_sharding_once_more_over_one_rank_changes_nothing() -> None:
    assert LLAMA_3_8B.shard(1) == LLAMA_3_8B
    assert SMALL.shard(1).shard(1) == SMALL.shard(1)


@pytest.mark.parametrize(
    ("change", "tp_size", "problem"),
    [
        ({}, 0, "must be positive"),
        ({"attention": GroupedAttention(6, 3, 2)}, 4, "does not divide num_heads = 6"),
        ({"intermediate_size": 9}, 2, "does not divide intermediate_size = 9"),
        (
            {"attention": GroupedAttention(12, 3, 2), "intermediate_size": 12},
            2,
            "neither divides num_kv_heads = 3 nor is a multiple of it",
        ),
        (
            {"attention": GroupedAttention(12, 3, 2), "intermediate_size": 12},
            4,
            "neither divides num_kv_heads = 3 nor is a multiple of it",
        ),
    ],
)
def test_ranks_that_do_not_divide_are_refused(change: dict[str, object], tp_size: int, problem: str) -> None:
    with pytest.raises(InputError) as caught:
        replace(SMALL, **change).shard(tp_size)  # type: ignore[arg-type]
    assert str(caught.value) == f"tensor parallel: tp_size = {tp_size}: {problem}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"family": "gpt2"}, "family = 'gpt2': unknown family; allowed: llama, qwen2, qwen3, qwen3_moe, deepseek_v2"),
        ({"num_layers": 0}, "num_layers = 0: not a size; allowed: a positive integer"),
        ({"vocab_size": -1}, "vocab_size = -1: not a size; allowed: a positive integer"),
        ({"hidden_size": 0}, "hidden_size = 0: not a size; allowed: a positive integer"),
        ({"intermediate_size": 0}, "intermediate_size = 0: not a size; allowed: a positive integer"),
        ({"expert_layers": 1}, "expert_layers = 1: not that many layers; allowed: 0, as there are no experts"),
        (
            {"weight_precision": Precision.INT8},
            "weight_precision = 'int8': quantized weights are not covered; allowed: fp32, bf16, fp16",
        ),
    ],
)
def test_impossible_shapes_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as caught:
        replace(SMALL, **change)  # type: ignore[arg-type]
    assert str(caught.value) == f"Decoder: {message}"
