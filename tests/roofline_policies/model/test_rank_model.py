"""Work of compositions, part by part: windows, states, experts of all kinds, precisions, and bytes that lie idle."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import combinations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roofline_policies.model.backends import backends
from roofline_policies.model.batch import BatchShape
from roofline_policies.model.catalogue import shipped_model
from roofline_policies.model.mla import Form, LatentAttention
from roofline_policies.model.moe import Experts
from roofline_policies.model.parts import ExpertLayers, Latent, Matrix, State, matrix
from roofline_policies.work import Bytes, Flops, Precision, Provenance, Work
from tests.roofline_policies.model.made import FULL, MADE, chunks, contexts

BF16, FP8, FP4, INT8 = Precision.BF16, Precision.FP8, Precision.FP4, Precision.INT8
ROW = BatchShape.of(decode_contexts=[1])


# States


def test_a_recurrence_by_hand() -> None:
    # Three layers of 100 FLOPs a row, 64 bytes a request, 10 elements a row in and 10 out; one full layer beside them.
    state = State(count=3, row_flops=100, state_bytes=64, row_elements=10)
    without = replace(MADE, attention=(FULL,))
    model = replace(without, states=(state,))
    batch = BatchShape.of([(5, 0), (2, 9)], [30], padded_rows=4)
    with_states, alone = model.work(batch), without.work(batch)
    rows, requests = 8 + 4, 3
    assert model.state_bytes_per_request == 3 * 64
    assert model.kv_bytes_per_token == without.kv_bytes_per_token
    assert with_states.issued.total - alone.issued.total == 300 * rows
    assert with_states.useful.total - alone.useful.total == 300 * 8
    for kind in ("read", "written"):
        needed = getattr(with_states.compulsory, kind) - getattr(alone.compulsory, kind)
        asked = getattr(with_states.requested, kind) - getattr(alone.requested, kind)
        assert needed == 192 * requests
        assert asked == 192 * requests + 3 * 10 * 2 * rows


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=6))
def test_what_a_recurrence_reads_does_not_grow_with_the_context(lengths: list[int]) -> None:
    model = replace(MADE, attention=(), states=(State(4, 100, 64, 10), State(1, 7, 9, 3)))
    assert model.state_bytes_per_request == 4 * 64 + 9
    assert model.kv_bytes_per_token == 0
    long, short = (BatchShape.of(decode_contexts=of) for of in (lengths, [1] * len(lengths)))
    assert model.work(long) == model.work(short)
    assert model.attention_work(long).compulsory == Bytes(265 * len(lengths), 265 * len(lengths))


# Experts


def test_experts_are_read_at_their_own_size() -> None:
    experts = ExpertLayers(count=2, experts=Experts(8, 2, 6), hidden=8, precision=FP8, expert_bytes=211)
    model = replace(MADE, experts=(experts,))
    assert model.weight_bytes - MADE.weight_bytes == 2 * 8 * 211
    work = model.expert_weights(BatchShape.of(decode_contexts=[4, 7], padded_rows=1))
    assert work == Work(
        requested=Bytes(round(2 * 211 * 8 * (1 - (6 / 8) ** 3))),
        compulsory=Bytes(round(2 * 211 * 8 * (1 - (6 / 8) ** 2))),
        provenance=frozenset({Provenance.ESTIMATED}),
    )
    # 2 of 8 experts of 3 matrices of 8 x 6 in two layers, in 8 bits: the rest stays in 16.
    assert model.work(ROW).issued.fp8 == 2 * 2 * 2 * 3 * 8 * 6
    assert model.work(ROW).issued.bf16 == MADE.work(ROW).issued.bf16
    plain = replace(model, experts=(replace(experts, gated=False),))
    assert plain.work(ROW).issued.fp8 == 2 * 2 * 2 * 2 * 8 * 6


@pytest.mark.parametrize(("count", "chosen", "held"), [(4, 2, 1), (4, 3, 2), (5, 2, 3), (3, 1, 1), (5, 4, 1)])
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_of_experts_of_all_ranks_a_rank_reads_those_of_its_own_that_are_reached(
    count: int, chosen: int, held: int, rows: int
) -> None:
    """Against the mean over every way in which rows can choose: fewer experts may be here than a row chooses."""
    ways = list(product(combinations(range(count), chosen), repeat=rows))
    here = [len({expert for choice in way for expert in choice if expert < held}) for way in ways]
    layers = ExpertLayers(1, Experts(count, chosen, 6), 8, BF16, expert_bytes=1000, held=held)
    expected = float(Fraction(sum(here), len(ways)))
    assert layers.active(rows) == pytest.approx(expected, rel=1e-12)
    model = replace(MADE, experts=(layers,))
    batch = BatchShape.of(decode_contexts=[9] * rows)
    assert model.expert_weights(batch).compulsory.read == round(1000 * expected)
    assert model.weight_bytes - MADE.weight_bytes == 1000 * held
    chosen_here = sum(expert < held for choice in combinations(range(count), chosen) for expert in choice)
    each = Fraction(chosen_here, len(list(combinations(range(count), chosen)))) * 2 * 3 * 8 * 6
    assert model.work(batch).issued.total - MADE.work(batch).issued.total == rows * 2 * round(each / 2)


@given(st.sampled_from([1, 2, 4, 8]), chunks, contexts)
def test_ranks_of_expert_parallelism_add_up_to_the_model(
    ranks: int, prefill: list[tuple[int, int]], decode: list[int]
) -> None:
    whole = ExpertLayers(3, Experts(16, 4, 6), 8, BF16, expert_bytes=288)
    models = [replace(MADE, experts=(one,)) for one in (whole, replace(whole, held=16 // ranks))]
    batch = BatchShape.of(prefill, decode)
    if not batch.requests:
        return
    every, rank = (model.work(batch).issued.total - MADE.work(batch).issued.total for model in models)
    assert ranks * rank == every
    every, rank = (model.expert_weights(batch).compulsory.read for model in models)
    assert ranks * rank == pytest.approx(every, abs=ranks)
    assert ranks * (models[1].weight_bytes - MADE.weight_bytes) == models[0].weight_bytes - MADE.weight_bytes


# Bytes that are not what they seem


def test_idle_bytes_lie_in_memory_and_are_not_read() -> None:
    model = replace(MADE, idle_bytes=10_000)
    assert model.weight_bytes == MADE.weight_bytes + 10_000
    assert model.read_bytes == MADE.read_bytes
    batch = BatchShape.of([(3, 4)], [9])
    assert model.work(batch) == MADE.work(batch)


def test_unexplained_bytes_are_read_once_and_make_figures_estimates() -> None:
    model = replace(MADE, unexplained_bytes=10_000)
    assert (model.weight_bytes, model.read_bytes) == (MADE.weight_bytes + 10_000, MADE.read_bytes + 10_000)
    batch = BatchShape.of([(3, 4)], [9])
    work, without = model.work(batch), MADE.work(batch)
    assert work.provenance == {Provenance.CLOSED_FORM, Provenance.ESTIMATED}
    for kind in ("requested", "compulsory"):
        assert getattr(work, kind).read == getattr(without, kind).read + 10_000
        assert getattr(work, kind).written == getattr(without, kind).written
    assert (work.issued, work.useful) == (without.issued, without.useful)


@pytest.mark.parametrize("provenance", [Provenance.CLOSED_FORM, Provenance.MODULES])
@pytest.mark.parametrize("guessed", [(), ("what keys a query sees",)])
def test_work_says_where_it_is_from(provenance: Provenance, guessed: tuple[str, ...]) -> None:
    latent = Latent(2, LatentAttention(2, 5, 3, 2, 4), BF16, 14, 140)
    state = State(1, 7, 9, 3)
    parts = {"latent": (latent,), "states": (state,), "provenance": provenance, "guessed": guessed}
    model = replace(MADE, **parts)  # type: ignore[arg-type]
    said = {provenance, *((Provenance.ESTIMATED,) if guessed else ())}
    batch = BatchShape.of([(3, 4)], [9])
    for form in (None, *Form):
        assert model.work(batch, form=form).provenance == said
    assert model.work_beside_attention(batch).provenance == model.attention_work(batch).provenance == said
    assert model.work(BatchShape()).provenance == said
    assert model.expert_weights(batch) == Work(provenance=frozenset(said))
    routed = replace(model, experts=(ExpertLayers(1, Experts(4, 2, 6), 8, BF16, 288),))
    assert routed.work(batch).provenance == said | {Provenance.ESTIMATED}
    assert routed.expert_weights(batch).provenance == {Provenance.ESTIMATED}


def test_weights_that_layers_share_are_stored_once_and_asked_for_by_each() -> None:
    shared = replace(matrix(5, 40, 8, BF16), stored=2)
    model = replace(MADE, matrices=(shared, *MADE.matrices[1:]))
    saved = 3 * 40 * 8 * 2
    assert model.weight_bytes == MADE.weight_bytes - saved
    batch = BatchShape.of([(3, 4)], [9])
    work, apart = model.work(batch), MADE.work(batch)
    assert (work.issued, work.useful, work.requested) == (apart.issued, apart.useful, apart.requested)
    assert work.compulsory == Bytes(apart.compulsory.read - saved, apart.compulsory.written)


def test_a_tied_head_is_held_once() -> None:
    tied = replace(MADE, tied=True)
    assert MADE.weight_bytes - tied.weight_bytes == 320
    batch = BatchShape.of([(3, 4)])
    assert MADE.work(batch).compulsory.read - tied.work(batch).compulsory.read == 3 * 16  # rows of the table
    silent = batch._replace(logit_rows=0)
    assert MADE.work(silent) == tied.work(silent)
    headless = replace(MADE, head=None)
    assert headless.work(batch).issued.total == MADE.work(silent).issued.total


# Precisions


def test_flops_are_counted_in_the_precision_of_each_matrix() -> None:
    model = replace(
        MADE,
        matrices=(matrix(5, 40, 8, FP8), Matrix(5, 8, 24, FP4, weight_bytes=100), matrix(1, 3, 8, BF16)),
        head=matrix(1, 20, 8, INT8),
        states=(State(1, 50, 4, 1),),
        attention=tuple(one for one in MADE.attention if one.window is None),
    )
    batch = BatchShape.of([(3, 4)], [9], padded_rows=0)
    pairs = batch.causal_pairs * 2 * 4 * 8 * 2
    work = model.work(batch)
    assert work.useful == work.issued
    assert work.issued == Flops(
        fp8=4 * 5 * 2 * 40 * 8, fp4=4 * 5 * 2 * 8 * 24, bf16=4 * (2 * 3 * 8 + 50) + pairs, int8=2 * 2 * 20 * 8
    )
    assert work.issued.total == sum(count for _, count in work.issued.items())
    assert set(model.precisions) == {BF16, FP8, FP4, INT8}
    assert model.read_bytes == 13 + 5 * 40 * 8 + 5 * 100 + 2 * 3 * 8
    assert MADE.precisions == (BF16,)


@given(st.sampled_from(["llama_3_1_8b", "qwen3_30b_a3b", "deepseek_v2_lite"]), chunks, contexts)
def test_other_products_move_flops_and_bytes_and_nothing_else(
    name: str, prefill: list[tuple[int, int]], decode: list[int]
) -> None:
    model = shipped_model(name).rank(1)
    eight = model.with_products(FP8)
    batch = BatchShape.of(prefill, decode)
    own, other = model.work(batch), eight.work(batch)
    products = sum(2 * one.elements for one in model.matrices) + sum(2 * one.row_elements for one in model.experts)
    assert other.issued.fp8 == products * batch.new_tokens
    assert other.issued.bf16 == own.issued.bf16 - other.issued.fp8
    assert other.issued.total == own.issued.total
    assert eight.attention_work(batch) == model.attention_work(batch)
    assert (other.requested.written, other.compulsory.written) == (own.requested.written, own.compulsory.written)
    saved = sum(one.elements for one in model.matrices) if batch.requests else 0
    experts = model.expert_weights(batch).compulsory.read - eight.expert_weights(batch).compulsory.read
    assert own.compulsory.read - other.compulsory.read == saved + experts
    assert 2 * eight.expert_weights(batch).compulsory.read == pytest.approx(
        model.expert_weights(batch).compulsory.read, abs=2
    )
    stored = sum(one.elements for one in model.matrices)
    stored += sum(one.count * one.experts.count * one.experts.expert_elements(one.hidden) for one in model.experts)
    assert model.weight_bytes - eight.weight_bytes == stored


def test_products_are_named_by_their_kernel_where_the_precision_does_not() -> None:
    model = replace(MADE, experts=(ExpertLayers(2, Experts(8, 2, 6), 8, BF16, 288),))
    block = model.with_products(FP8, "fp8_block")
    plain = model.with_products(FP8)
    assert {one.kernel for one in (*block.matrices, *block.experts)} == {"fp8_block"}
    assert {one.kernel for one in (*plain.matrices, *plain.experts)} == {None}
    assert {one.precision for one in (*block.matrices, *block.experts)} == {FP8}
    assert block.head == plain.head == model.head
    batch = BatchShape.of([(3, 4)], [9])
    assert block.work(batch) == plain.work(batch)
    assert model.with_products(BF16) == model
    assert model.with_products(FP8) is plain  # asked for in every iteration
    scaled = replace(model, matrices=tuple(replace(one, weight_bytes=one.weight_bytes + 9) for one in model.matrices))
    assert scaled.with_products(FP8) == plain


# Keys that are picked


@given(st.lists(st.integers(1, 400), min_size=1, max_size=6), st.integers(1, 300))
def test_latent_attention_to_picked_keys_costs_those(lengths: list[int], selected: int) -> None:
    sizes = LatentAttention(2, 5, 3, 2, 4)
    model = replace(MADE, attention=(), latent=(Latent(2, sizes, BF16, 14, 140, selected=selected),))
    every = replace(MADE, attention=(), latent=(Latent(2, sizes, BF16, 14, 140),))
    picked = [min(length, selected) for length in lengths]
    batch = BatchShape.of(decode_contexts=lengths)
    batch = batch._replace(window_tokens=sum(picked), window_pairs=sum(picked))
    assert model.attention_work(batch) == every.attention_work(BatchShape.of(decode_contexts=picked))


@given(st.lists(st.integers(1, 400), min_size=1, max_size=6), st.integers(1, 300))
def test_a_servers_batch_says_how_many_keys_are_picked(lengths: list[int], selected: int) -> None:
    sizes = LatentAttention(2, 5, 3, 2, 4)
    model = replace(MADE, attention=(), latent=(Latent(2, sizes, BF16, 14, 140, selected=selected),))
    every = replace(MADE, attention=(), latent=(Latent(2, sizes, BF16, 14, 140),))
    picked = [min(length, selected) for length in lengths]
    batch = BatchShape.of(decode_contexts=lengths, attention=backends(model, "fa3"))
    assert model.attention_work(batch) == every.attention_work(BatchShape.of(decode_contexts=picked))


def test_four_bits_are_half_a_byte_and_come_without_scales() -> None:
    narrow = MADE.with_products(FP4)
    for one in narrow.matrices:
        assert (one.precision, one.weight_bytes) == (FP4, -(-one.outputs * one.inputs // 2))
    for routed in narrow.experts:
        assert routed.expert_bytes == -(-routed.hidden * (routed.up_width + routed.experts.width) // 2)


def test_attention_without_heads_computes_nothing() -> None:
    (full, *_) = MADE.attention
    silent = replace(MADE, attention=(replace(full, heads=0),), latent=())
    batch = BatchShape.of([(3, 4)])._replace(masked_flops=100)
    assert silent.attention_work(batch).issued.total == 0


def test_layers_that_share_a_cache_store_nothing() -> None:
    (full, *_) = MADE.attention
    own = replace(MADE, attention=(full,))
    both = replace(MADE, attention=(full, replace(full, shares_cache=True)))
    batch = BatchShape.of([(3, 4)])
    assert both.kv_bytes_per_token == own.kv_bytes_per_token
    assert both.work_beside_attention(batch) == own.work_beside_attention(batch)
    assert both.attention_work(batch).issued.total == 2 * own.attention_work(batch).issued.total


def test_a_batch_that_does_not_say_what_a_window_leaves_is_taken_to_be_of_alike_requests() -> None:
    assert MADE.window is not None
    batch = BatchShape.of([(3, 40), (3, 40)])
    assert batch.window_tokens == 0
    assert MADE.work(batch) == MADE.work(batch.within(MADE.window))
    assert MADE.attention_work(batch) == MADE.attention_work(batch.within(MADE.window))
