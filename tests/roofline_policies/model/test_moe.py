"""Mixtures of experts: experts that are reached against enumeration, FLOPs against torch, bytes by hand, laws."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import combinations, product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roofline_policies.errors import InputError
from roofline_policies.model.backends import backends
from roofline_policies.model.batch import BatchShape
from roofline_policies.model.decoder import Decoder
from roofline_policies.model.gqa import GroupedAttention
from roofline_policies.model.moe import Experts
from roofline_policies.work import Bytes, Flops, Precision, Provenance, Work

# Query width 4 x 2 = 8, KV width 2 x 2 = 4.
SMALL = Decoder(
    family="qwen3_moe",
    hidden_size=6,
    num_layers=3,
    attention=GroupedAttention(4, 2, 2),
    expert_layers=2,
    intermediate_size=10,
    experts=Experts(8, 2, 6, shared_width=4),
    vocab_size=20,
    tied_embeddings=False,
    weight_precision=Precision.BF16,
    kv_precision=Precision.BF16,
)
ALL_EXPERTS = replace(SMALL, expert_layers=3, intermediate_size=0, experts=Experts(8, 8, 6), tied_embeddings=True)
FP8_KV = replace(SMALL, experts=Experts(64, 1, 40), kv_precision=Precision.FP8, weight_precision=Precision.FP16)
SHAPES = st.sampled_from([SMALL, ALL_EXPERTS, FP8_KV])

prefills = st.lists(st.tuples(st.integers(1, 300), st.integers(0, 300)), max_size=4)
decodes = st.lists(st.integers(1, 600), max_size=5)
batches = st.builds(BatchShape.of, prefills, decodes, st.integers(0, 30), all_logits=st.booleans())
nonempty = batches.filter(lambda batch: batch.requests > 0)


# Which experts are reached


def reached(choices: list[tuple[int, ...]], rows: int) -> Fraction:
    """The mean number of distinct experts over every way in which ``rows`` rows can choose."""
    ways = [len(set().union(*way)) for way in product(choices, repeat=rows)]
    return Fraction(sum(ways), len(ways))


@pytest.mark.parametrize(("count", "chosen"), [(1, 1), (3, 1), (4, 2), (5, 3), (5, 5)])
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_active_experts_are_the_mean_over_all_choices(count: int, chosen: int, rows: int) -> None:
    every = list(combinations(range(count), chosen))
    assert Experts(count, chosen, 1).active(rows) == pytest.approx(float(reached(every, rows)), rel=1e-12)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_choosing_groups_first_reaches_as_many(rows: int) -> None:
    """Six experts in three groups: two groups, then two experts of those, every way equally likely."""
    groups = [(0, 1), (2, 3), (4, 5)]
    choices = [pick for two in combinations(groups, 2) for pick in combinations(two[0] + two[1], 2)]
    assert Experts(6, 2, 1).active(rows) == pytest.approx(float(reached(choices, rows)), rel=1e-12)


@given(st.integers(1, 500), st.integers(0, 100_000), st.data())
def test_active_experts_stay_within_what_rows_can_reach(count: int, rows: int, data: st.DataObject) -> None:
    chosen = data.draw(st.integers(1, count))
    experts = Experts(count, chosen, 1)
    least, most = (chosen, min(count, rows * chosen)) if rows else (0, 0)
    assert least * (1 - 1e-9) <= experts.active(rows) <= most * (1 + 1e-9)
    assert experts.active(rows) <= experts.active(rows + 1) <= count


# FLOPs and parameters of the Hugging Face model


@st.composite
def sizes(draw: st.DrawFn) -> dict[str, object]:
    """A tiny Qwen3-MoE whose sizes tell every width from every other."""
    kv_heads = draw(st.integers(1, 3))
    count = draw(st.integers(1, 6))
    return {
        "hidden_size": 8 * draw(st.integers(1, 4)),
        "intermediate_size": 7,
        "moe_intermediate_size": draw(st.integers(1, 20)),
        "num_hidden_layers": draw(st.integers(1, 3)),
        "num_attention_heads": kv_heads * draw(st.integers(1, 3)),
        "num_key_value_heads": kv_heads,
        "head_dim": 2 * draw(st.integers(1, 8)),
        "vocab_size": draw(st.integers(3, 70)),
        "num_experts": count,
        "num_experts_per_tok": draw(st.integers(1, count)),
        "attention_bias": draw(st.booleans()),
        "tie_word_embeddings": draw(st.booleans()),
        "norm_topk_prob": draw(st.booleans()),
    }


@settings(deadline=None, max_examples=12)
@given(sizes(), st.integers(1, 12))
def test_flops_and_parameters_are_those_of_the_hugging_face_model(sizes: dict[str, object], new: int) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from torch.utils.flop_counter import FlopCounterMode

    config = transformers.Qwen3MoeConfig(**sizes, attn_implementation="eager")
    config._experts_implementation = "eager"
    network = transformers.Qwen3MoeForCausalLM(config).eval()
    shape = Decoder.from_config(config.to_dict(), weight_precision=Precision.FP32)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.arange(new).reshape(1, new) % config.vocab_size)
    padded = backends(shape.rank_model, "torch_native", padded_queries=False)  # torch counts whole rectangles
    work = shape.work(BatchShape.of([(new, 0)], all_logits=True, attention=padded))
    assert work.issued == Flops(fp32=counter.get_total_flops())
    assert shape.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert shape.kv_bytes_per_token == 2 * config.num_key_value_heads * config.head_dim * config.num_hidden_layers * 4


# Bytes


def test_a_decode_step_by_hand() -> None:
    # Per row and layer, as elements read / written. Attention: qkv 6 / 16, store 8 / -, attention 8 / 8, output 8 / 6.
    # Dense: gate-up 6 / 20, down 10 / 6. Experts: router 6 / 8; shared gate-up 6 / 8, down 4 / 6; two routed
    # gate-up 6 / 12, down 6 / 6; their sum 12 / 6. Thus read 3*30 + 16 + 2*(16 + 24 + 12) = 210, written
    # 3*30 + 26 + 2*(22 + 36 + 6) = 244; with an embedding row 216 / 250.
    # Matrices per layer: qkv 96, output 48; dense 180; router 48, shared 72; two norms of 6.
    # Always read: 3*(96 + 48 + 12) + 180 + 2*120 + 6 = 894 elements, and a head of 120. An expert: 108, in two layers.
    # KV: 8 elements in three layers, 48 bytes a token. Contexts 4 and 7, a graph of three rows.
    body, expert = 2 * (894 + 120), 2 * 2 * 108
    two, three = 8 * (1 - (6 / 8) ** 2), 8 * (1 - (6 / 8) ** 3)
    # FLOPs of a row: 2 * (3*144 + 180 + 2*(120 + 2*108)) = 2568; a pair costs 4*8*3 = 96, a row of logits 240.
    assert SMALL.work(BatchShape.of(decode_contexts=[4, 7], padded_rows=1)) == Work(
        issued=Flops(bf16=3 * 2568 + 11 * 96 + 3 * 240),
        useful=Flops(bf16=2 * 2568 + 11 * 96 + 2 * 240),
        requested=Bytes(
            body + round(three * expert) + 3 * 2 * 216 + 11 * 48 + 3 * 12, 2 * 48 + 3 * 2 * 250 + 3 * 2 * 20
        ),
        compulsory=Bytes(body + round(two * expert) + 2 * 12 + 9 * 48, 2 * 48),
        provenance=frozenset({Provenance.CLOSED_FORM, Provenance.ESTIMATED}),
    )
    assert SMALL.parameters == 894 + 8 * 108 * 2 + 2 * 120
    assert SMALL.weight_bytes == 2 * SMALL.parameters
    assert SMALL.kv_bytes_per_token == 48


@given(nonempty)
def test_only_bytes_of_routed_experts_are_estimated(batch: BatchShape) -> None:
    model = SMALL.rank_model
    estimated = model.expert_weights(batch)
    assert estimated.provenance == {Provenance.ESTIMATED}
    assert (estimated.issued, estimated.useful) == (Flops(), Flops())
    assert (estimated.requested.written, estimated.compulsory.written) == (0, 0)
    assert model.attention_work(batch).provenance == {Provenance.CLOSED_FORM}
    assert SMALL.work(batch) == model.attention_work(batch) + model.work_beside_attention(batch)
    assert SMALL.work(batch).provenance == {Provenance.CLOSED_FORM, Provenance.ESTIMATED}


def test_experts_that_are_all_chosen_are_all_read() -> None:
    read = ALL_EXPERTS.work(BatchShape.of([(1, 0)])).compulsory.read
    assert read == ALL_EXPERTS.weight_bytes
    # Rows that only pad a graph choose experts, but nothing needs what they read.
    idle = ALL_EXPERTS.work(BatchShape.of(padded_rows=1))
    assert idle.requested.read - idle.compulsory.read > 3 * 8 * 108 * 2
    assert idle.useful == Flops()


def test_nothing_run_is_no_work() -> None:
    assert SMALL.work(BatchShape()) == Work(provenance=frozenset({Provenance.CLOSED_FORM}))


# Laws


@given(SHAPES, batches)
def test_useful_is_within_issued_and_compulsory_within_requested(shape: Decoder, batch: BatchShape) -> None:
    work = shape.work(batch)
    assert 0 <= work.useful.total <= work.issued.total
    assert 0 <= work.compulsory.read <= work.requested.read
    assert 0 <= work.compulsory.written <= work.requested.written


@given(SHAPES, nonempty, nonempty)
def test_a_larger_batch_is_never_less_work(shape: Decoder, batch: BatchShape, more: BatchShape) -> None:
    small, large = shape.work(batch), shape.work(batch + more)
    for kind in ("issued", "useful"):
        assert getattr(small, kind).total < getattr(large, kind).total
    for kind in ("requested", "compulsory"):
        assert getattr(small, kind).read <= getattr(large, kind).read
        assert getattr(small, kind).written < getattr(large, kind).written


@given(SHAPES, nonempty, nonempty)
def test_parts_of_a_batch_add_but_for_the_weights_they_share(
    shape: Decoder, batch: BatchShape, more: BatchShape
) -> None:
    apart, mixed = shape.work(batch) + shape.work(more), shape.work(batch + more)
    assert mixed.issued == apart.issued
    assert mixed.useful == apart.useful
    assert mixed.requested.written == apart.requested.written
    assert mixed.compulsory.written == apart.compulsory.written
    assert mixed.requested.read < apart.requested.read
    assert mixed.compulsory.read < apart.compulsory.read


@given(SHAPES, nonempty)
def test_two_ranks_do_the_whole_and_what_both_of_them_hold(shape: Decoder, batch: BatchShape) -> None:
    whole, rank = replace(shape, vocab_size=128), replace(shape, vocab_size=128).shard(2)
    assert 2 * rank.parameters >= whole.parameters
    assert 2 * rank.kv_bytes_per_token == whole.kv_bytes_per_token
    part, all_of_it = rank.work(batch), whole.work(batch)
    routers = 2 * whole.expert_layers * 6 * (whole.experts.count if whole.experts else 0)
    rows = batch.new_tokens + batch.padded_rows
    assert 2 * part.issued.total == all_of_it.issued.total + routers * rows
    assert 2 * part.useful.total == all_of_it.useful.total + routers * batch.new_tokens
    for kind in ("requested", "compulsory"):
        assert 2 * getattr(part, kind).total >= getattr(all_of_it, kind).total - 2  # each side rounds to whole bytes


def test_a_rank_holds_its_part_of_every_expert() -> None:
    rank = SMALL.shard(2)
    assert rank.experts == Experts(8, 2, 3, shared_width=2)
    assert rank.attention == GroupedAttention(2, 1, 2)
    assert (rank.intermediate_size, rank.vocab_size, rank.num_layers) == (5, 32, 3)


# Errors


@pytest.mark.parametrize(
    ("change", "tp_size", "problem"),
    [
        ({}, 0, "must be positive"),
        ({"attention": GroupedAttention(12, 3, 2)}, 3, "does not divide intermediate_size = 10"),
        ({"intermediate_size": 12}, 3, "does not divide num_heads = 4"),
        ({"experts": Experts(8, 2, 5)}, 2, "does not divide expert width = 5"),
        ({"experts": Experts(8, 2, 4, shared_width=3)}, 2, "does not divide shared expert width = 3"),
        ({"experts": Experts(1, 1, 4)}, 2, "more than the 1 experts"),
        (
            {"attention": GroupedAttention(12, 3, 2)},
            2,
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
        (
            {"family": "mixtral"},
            "family = 'mixtral': unknown family; allowed: llama, qwen2, qwen3, qwen3_moe, deepseek_v2",
        ),
        ({"hidden_size": 0}, "hidden_size = 0: not a size; allowed: a positive integer"),
        ({"expert_layers": 4}, "expert_layers = 4: not that many layers; allowed: 0 to 3"),
        ({"expert_layers": -1}, "expert_layers = -1: not that many layers; allowed: 0 to 3"),
        ({"experts": None}, "expert_layers = 2: not that many layers; allowed: 0, as there are no experts"),
        ({"intermediate_size": 0}, "intermediate_size = 0: not a size; allowed: a positive integer"),
        (
            {"weight_precision": Precision.FP8},
            "weight_precision = 'fp8': quantized weights are not covered; allowed: fp32, bf16, fp16",
        ),
    ],
)
def test_impossible_shapes_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as caught:
        replace(SMALL, **change)  # type: ignore[arg-type]
    assert str(caught.value) == f"Decoder: {message}"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Experts(0, 1, 1), "Experts: count = 0: not a size; allowed: a positive integer"),
        (lambda: Experts(2, 1, 0), "Experts: width = 0: not a size; allowed: a positive integer"),
        (lambda: Experts(2, 3, 1), "Experts: chosen = 3: more than there are; allowed: at most count = 2"),
        (
            lambda: Experts(2, 1, 1, -1),
            "Experts: shared_width = -1: not a size; allowed: a positive integer, or 0 for none",
        ),
        (
            lambda: GroupedAttention(4, 2, 0),
            "GroupedAttention: head_dim = 0: not a size; allowed: a positive integer",
        ),
        (lambda: GroupedAttention(4, 3, 2), "GroupedAttention: num_kv_heads = 3: does not divide num_heads = 4"),
    ],
)
def test_impossible_blocks_are_refused(make: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert str(caught.value) == message
