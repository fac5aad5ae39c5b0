"""Seconds of layers part by part, where no more than products and softmax attention was measured on a device."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roofline_policies.device.hardware import from_catalogue
from roofline_policies.device.roofline import roof_time
from roofline_policies.errors import InputError
from roofline_policies.model.batch import BatchShape
from roofline_policies.model.catalogue import shipped_model
from roofline_policies.model.decoder import Decoder
from roofline_policies.model.gqa import GroupedAttention
from roofline_policies.model.mla import Form
from roofline_policies.model.moe import Experts
from roofline_policies.model.parts import State
from roofline_policies.steps.efficiency import load_efficiency
from roofline_policies.steps.kernels.kernel_model import KernelModel
from roofline_policies.steps.kernels.kernel_time import decode_attention_s, gemm_s, prefill_attention_s
from roofline_policies.steps.layer_times import LayerTimes, grouped_gemm_s
from roofline_policies.steps.predictor import EMPTY, StepCosts, StepPredictor
from roofline_policies.work import Precision
from tests.roofline_policies.steps.bare import bare

H200 = from_catalogue("h200")
EFFICIENCY = load_efficiency("h200")
GEMM = EFFICIENCY.gemm["bf16"]
MOE = shipped_model("qwen3_30b_a3b").shape
MLA = shipped_model("deepseek_v2_lite").shape
LLAMA = shipped_model("llama_3_1_8b").rank(1)
STEPS = {shape: bare(shape.rank_model) for shape in (MOE, MLA)}
BANDWIDTH = H200.bytes_per_s

shapes = st.sampled_from([MOE, MLA])
chunks = st.lists(st.tuples(st.integers(1, 8192), st.integers(0, 30_000)), max_size=4)
contexts = st.lists(st.integers(1, 30_000), max_size=64)


def layers_of(step: StepPredictor) -> LayerTimes:
    return step._layers


# Grouped products


@given(st.integers(1, 5000), st.integers(16, 5000), st.integers(16, 5000), st.sampled_from(sorted(EFFICIENCY.gemm)))
def test_one_group_is_one_product(m: int, n: int, k: int, name: str) -> None:
    e = EFFICIENCY.gemm[name]
    assert grouped_gemm_s(e, 1, m, n, k, H200, 132) == gemm_s(e, m, n, k, H200, 132)


@given(
    st.floats(1, 128), st.integers(1, 500), st.integers(64, 2000), st.integers(64, 2000),
    st.sampled_from(sorted(EFFICIENCY.gemm)),
)  # fmt: skip
def test_groups_are_never_faster_than_the_roofline_and_grow(groups: float, m: int, n: int, k: int, name: str) -> None:
    e = EFFICIENCY.gemm[name]
    seconds = grouped_gemm_s(e, groups, m, n, k, H200, 132)
    element = 2 if name == "bf16" else 1
    weights_s = element * (groups * n - 0.5) * k / BANDWIDTH  # as many columns as are whole
    rows_s = (element * groups * m * k + 2 * (groups * n - 0.5) * m) / BANDWIDTH
    assert seconds >= max(weights_s + rows_s, 2 * m * (groups * n - 0.5) * k / H200.compute_ceiling(e.precision))
    assert grouped_gemm_s(e, groups + 1, m, n, k, H200, 132) >= seconds * (1 - 1e-9)


# Steps


@given(shapes, chunks, contexts, st.booleans())
def test_a_step_is_the_sum_of_its_parts_and_above_the_roofline(shape, chunks, contexts, graph):
    parts = {"prefill": BatchShape.of(chunks), "decode": BatchShape.of((), contexts)}
    step = STEPS[shape]
    time = step.step(**parts, graph=graph)
    assert step.step_s(**parts, graph=graph) == time.total_s == pytest.approx(sum(time[:-1]))
    assert all(math.isfinite(part) and part >= 0 for part in time)
    form = Form.ABSORBED if graph else None
    work = shape.work(parts["prefill"] + parts["decode"], form=form)
    assert time.device_s >= roof_time(work._replace(issued=work.useful), H200).bound_s * (1 - 1e-6)


@given(shapes, st.integers(1, 8192))
def test_the_products_inside_are_the_models(shape, rows):
    """With every row a row of logits; what is between latents and heads is priced with attention."""
    layers = layers_of(STEPS[shape])
    products = sum(2 * rows * count * n * k for count, ones in layers._products for _, n, k, _ in ones)
    routed = 2 * rows * shape.expert_layers * shape.experts.chosen * 3 * shape.hidden_size * shape.experts.width
    work = shape.rank_model.work_beside_attention(BatchShape.of([(rows, 0)])._replace(logit_rows=0))
    assert products + routed == work.issued.total


@pytest.mark.parametrize(
    "options",
    [{}, {"tp_size": 4}, {"linear": "fp8_block"}, {"attention": "triton", "captured": (8, 64)}],
    ids=["alone", "of four", "fp8", "triton"],
)
@pytest.mark.parametrize(("prefill", "decode"), [([(2048, 0)], []), ([], [1000] * 64), ([(512, 900)], [1000] * 8)])
def test_without_experts_a_step_is_one_layer_of_kernels_times_the_layers(options, prefill, decode):
    """Qwen3-8B with an 8 bit cache, its kernels called one by one."""
    ranks = options.get("tp_size", 1)
    whole = Decoder(
        family="qwen3",
        hidden_size=4096,
        num_layers=36,
        attention=GroupedAttention(32, 8, 128),
        intermediate_size=12288,
        vocab_size=151936,
        tied_embeddings=False,
        weight_precision=Precision.BF16,
        kv_precision=Precision.FP8,
    )
    step = bare(whole.shard(ranks).rank_model, **options)
    parts = {"prefill": BatchShape.of(prefill), "decode": BatchShape.of((), decode)}
    time = step.step(**parts, graph=True)

    kernels, batch = KernelModel(H200, EFFICIENCY), parts["prefill"] + parts["decode"]
    h, q, k, i = 4096, 4096 // ranks, 1024 // ranks, 12288 // ranks
    linear, rows = kernels.gemm(options.get("linear", "bf16")), batch.new_tokens
    products = [(q + 2 * k, h), (h, q), (2 * i, h), (h, i)]
    assert time.linear_s == pytest.approx(36 * sum(gemm_s(linear, rows, n, m, H200, 132) for n, m in products))
    assert time.head_s == pytest.approx(gemm_s(GEMM, batch.logit_rows, 151936 // ranks, h, H200, 132))
    moved = 8 * h + 2 * (q + k) + 4 * k + 3 * i
    small_s = 36 * (rows * moved * 2 / (BANDWIDTH * 0.8) + 5 * 2.4e-6) + 5 * 2.4e-6
    assert time.small_s == pytest.approx(small_s)
    name, on = options.get("attention", "fa3"), (32 // ranks, 8 // ranks, 128, H200, 132)
    if prefill:
        e, each = kernels.prefill(name, Precision.FP8, 128), 0.0
        for one in parts.values():
            if one.requests:
                sums = (one.requests, one.new_tokens, one.context_tokens, one.pairs, one.causal_pairs)
                each += prefill_attention_s(e, *sums, *on)
        each -= e.launch_s if decode else 0
    else:
        each = decode_attention_s(kernels.decode(name, Precision.FP8, 128), 64, 64_000, *on)
    assert time.attention_s == pytest.approx(36 * each)
    assert time.kernels == 36 * (5 + 5 + (4 if "linear" in options else 0) + (2 if ranks > 1 else 0)) + 5 + 1


def test_decode_reads_as_many_experts_as_its_rows_reach():
    """Little but weights is read; a row reaches 8 of 128 experts in each of 48 layers, 64 rows reach 126 of them."""
    expert_bytes = 2 * 48 * 3 * 2048 * 768
    for rows, active in ((1, 8), (4, 128 * (1 - (15 / 16) ** 4)), (64, 128 * (1 - (15 / 16) ** 64))):
        seconds = layers_of(STEPS[MOE]).experts_s(rows)
        assert active * expert_bytes / BANDWIDTH < seconds < 1.6 * active * expert_bytes / BANDWIDTH + 48 * 2 * 6e-6
    assert layers_of(STEPS[MOE]).experts_s(0) == 0


def test_prefill_computes_with_the_chosen_experts():
    """8,192 rows through 8 of 128 experts in each of 48 layers, above 0.9 of the peak at best."""
    flops = 2 * 8192 * 8 * 3 * 2048 * 768 * 48
    seconds = layers_of(STEPS[MOE]).experts_s(8192)
    assert flops / 989e12 / 0.9 < seconds < 2.5 * flops / 989e12


def test_a_step_of_experts_costs_more_than_its_active_parameters_and_less_than_all():
    decode = {"decode": BatchShape.of((), [1000]), "graph": True}
    active = shipped_model("qwen3_8b").rank(1)  # 8.2 billion; 3.3 of 30.5 billion are active
    assert STEPS[MOE].step(**decode).linear_s < bare(active).step(**decode).linear_s
    many = {"decode": BatchShape.of((), [1000] * 256), "graph": True}
    assert STEPS[MOE].step(**many).linear_s > MOE.weight_bytes / BANDWIDTH


def test_attention_to_latents_streams_them_at_the_stated_share():
    """Beyond some context twice the tokens take the bytes of as many latents longer, 576 in each of 27 layers."""
    for share in (0.8, 0.4):
        step = dataclasses.replace(STEPS[MLA], costs=StepCosts(latent_memory=share, latent_compute=1.0))
        one, two = (step.step(decode=BatchShape.of((), [length] * 64), graph=True) for length in (20_000, 40_000))
        assert two.attention_s - one.attention_s == pytest.approx(64 * 20_000 * 27 * 576 * 2 / (4.8e12 * share))


def test_attention_to_latents_computes_at_the_stated_share():
    """A verify step of many tokens each: 2 x 16 heads x (576 + 512) FLOPs per pair and layer."""
    costs = StepCosts(latent_memory=1.0, latent_compute=0.5)
    step = dataclasses.replace(STEPS[MLA], costs=costs)
    few, many = (BatchShape.of([(16, length)] * 64, all_logits=True) for length in (10_000, 20_000))
    more = step.step(decode=many, graph=True).attention_s - step.step(decode=few, graph=True).attention_s
    assert more == pytest.approx(27 * 2 * 16 * 1088 * 16 * 10_000 * 64 / (989e12 * 0.5))


def test_an_8_bit_cache_halves_what_is_streamed():
    half = bare(dataclasses.replace(MLA, kv_precision=Precision.FP8).rank_model)
    costs = StepCosts(latent_compute=1.0)

    def grown(step):
        step = dataclasses.replace(step, costs=costs)
        times = [step.step(decode=BatchShape.of((), [n] * 64), graph=True).attention_s for n in (40_000, 80_000)]
        return times[1] - times[0]

    # At 16 heads the compute roof is close: half the bytes need not take half the time.
    flops_s = 64 * 40_000 * 27 * 2 * 16 * 1088 / 989e12
    assert grown(half) == pytest.approx(max(flops_s, grown(STEPS[MLA]) / 2))


def test_prefill_expands_where_sglang_does():
    step = STEPS[MLA]
    layers, (kernel,) = layers_of(step), step._attention

    def attention(batch, graph=False):
        return step.step(prefill=batch, graph=graph).attention_s

    for cached, expanded in ((0, True), (1000, False), (8191, False), (8192, True)):
        batch = BatchShape.of([(2048, cached)])
        absorbed_s = 27 * kernel.decode.launch_s + layers.absorbed_s(batch)
        expanded_s = layers.expanding_s(batch) + 27 * step._kernel_s(kernel, batch, EMPTY)
        assert attention(batch) == pytest.approx(expanded_s if expanded else absorbed_s)
        assert attention(batch, graph=True) == pytest.approx(absorbed_s)


def test_expanding_fetches_and_multiplies_every_visible_token():
    layers = layers_of(STEPS[MLA])
    for new, cached in ((512, 0), (512, 9000)):
        batch = BatchShape.of([(new, cached)])
        tokens = new + cached
        product_s = gemm_s(GEMM, tokens, 16 * 256, 512, H200, 132)
        moved = cached * 576 * 4 + tokens * 2 * (16 * 128 + 64 + 16 * 192)
        kernels = 2 if cached else 1
        each = product_s + moved / (0.8 * BANDWIDTH) + kernels * 2.4e-6
        assert layers.expanding_s(batch) == pytest.approx(27 * each)
    assert layers_of(STEPS[MOE]).expanding_s(BatchShape.of([(512, 0)])) == 0
    assert layers_of(STEPS[MOE]).absorbed_s(BatchShape.of([(512, 0)])) == 0


def test_kernels_are_counted():
    # Per layer: qkv, attention, output, router, two of experts, five small and four of routing; six of the head.
    assert STEPS[MOE].step(decode=BatchShape.of((), [10])).kernels == 48 * 15 + 6
    # Queries, latents, output, three of attention, five small; a dense MLP's two; router, shared, experts, routing.
    assert STEPS[MLA].step(decode=BatchShape.of((), [10])).kernels == 27 * 11 + 2 + 26 * (1 + 2 + 2 + 4) + 6
    # Eager steps of one row take as long as their launches.
    assert STEPS[MOE].step_s(decode=BatchShape.of((), [10])) == pytest.approx((48 * 15 + 6) * 19e-6)


@pytest.mark.parametrize("shape", [MOE, MLA], ids=["moe", "mla"])
def test_tensor_parallel_ranks_share_the_products_and_pay_for_talking(shape):
    split = bare(shape.shard(4).rank_model, tp_size=4)
    chunk = {"prefill": BatchShape.of([(8192, 0)]), "graph": True}
    one, many = STEPS[shape].step(**chunk), split.step(**chunk)
    assert many.linear_s < one.linear_s / 2
    assert many.attention_s < one.attention_s
    reduced = 2 * shape.num_layers * 8192 * 2048 * 2 * 2 * 3 / 4
    gathered = shape.vocab_size // 4 * 2 * 3
    assert many.communication_s == pytest.approx((2 * shape.num_layers + 1) * 8e-6 + (reduced + gathered) / 3.6e11)


def test_eight_bit_products_help_where_compute_binds():
    chunk = {"prefill": BatchShape.of([(8192, 0)])}
    for step in STEPS.values():
        assert dataclasses.replace(step, linear="fp8").step(**chunk).linear_s < step.step(**chunk).linear_s


@given(shapes, st.integers(1, 255))
def test_more_rows_never_take_less_time(shape, rows):
    few, many = (STEPS[shape].step(decode=BatchShape.of((), [1000] * n), graph=True) for n in (rows, rows + 1))
    assert many.device_s >= few.device_s * (1 - 1e-9)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: bare(MLA.shard(3).rank_model, tp_size=3),
            "tp_size = 3: does not divide num_heads = 16",
        ),
        (lambda: dataclasses.replace(STEPS[MLA], attention="flash"), "no such kernel"),
        (lambda: StepCosts(latent_memory=2.0), "latent_memory = 2.0: out of range; allowed: .* at most 1"),
        (lambda: StepCosts(latent_compute=0.0), "latent_compute = 0.0: out of range"),
        (lambda: StepCosts(routing_kernels=-1), "routing_kernels = -1: out of range"),
    ],
)
def test_a_bad_predictor_is_refused(make, said):
    with pytest.raises(InputError, match=said):
        make()


def test_experts_of_which_all_are_chosen_are_a_wide_mlp():
    """Every row through every expert: the weights of one MLP as wide as all of them together."""
    every = dataclasses.replace(MOE, experts=Experts(16, 16, 768))
    seconds = layers_of(bare(every.rank_model)).experts_s(64)
    wide = 48 * (gemm_s(GEMM, 64, 16 * 1536, 2048, H200, 132) + gemm_s(GEMM, 64, 2048, 16 * 768, H200, 132))
    assert seconds == pytest.approx(wide, rel=0.25)


# Experts of which other ranks hold some


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_a_rank_that_holds_some_of_the_experts_reads_and_computes_its_share(ranks):
    (routed,) = MOE.rank_model.experts
    rank = dataclasses.replace(MOE.rank_model, experts=(dataclasses.replace(routed, held=128 // ranks),))
    whole, part = (layers_of(bare(model)) for model in (MOE.rank_model, rank))
    # 64 rows reach 126 of 128 experts: reading them is what takes the time.
    assert part.experts_s(64) == pytest.approx(whole.experts_s(64) / ranks, rel=0.25)
    assert part.experts_s(8192) == pytest.approx(whole.experts_s(8192) / ranks, rel=0.1)


# Recurrent states


def test_states_are_a_roofline_over_requests_and_rows():
    state = State(count=30, row_flops=1_000_000, state_bytes=2_000_000, row_elements=200)
    model = dataclasses.replace(LLAMA, states=(state,))
    costs = StepCosts(latent_memory=0.5, latent_compute=0.25)
    step = bare(model, costs=costs)
    layers = layers_of(step)
    decode = BatchShape.of((), [700, 9], padded_rows=6)
    moved = 2 * 2_000_000 * 2 + 2 * 2 * 200 * 8
    assert layers.states_s(decode) == pytest.approx(30 * moved / (0.5 * BANDWIDTH))
    prefill = BatchShape.of([(8192, 0), (8192, 0)])
    moved = 2 * 2_000_000 * 2 + 2 * 2 * 200 * 16_384
    assert moved / (0.5 * BANDWIDTH) < 16_384 * 1_000_000 / (0.25 * 989e12)
    assert layers.states_s(prefill) == pytest.approx(30 * 16_384 * 1_000_000 / (0.25 * 989e12))
    without = bare(LLAMA, costs=costs)
    for batch in ({"decode": decode, "graph": True}, {"prefill": prefill}):
        (shape,) = (one for one in batch.values() if isinstance(one, BatchShape))
        one, other = step.step(**batch), without.step(**batch)
        assert one.attention_s == pytest.approx(other.attention_s + layers.states_s(shape))
        assert one.kernels == other.kernels + 30
    assert layers_of(without).states_s(prefill) == 0


STATEFUL = dataclasses.replace(
    LLAMA, attention=(), states=(State(count=24, row_flops=3_000_000, state_bytes=4_000_000, row_elements=12_000),)
)
RECURRENT = bare(STATEFUL)


@given(chunks, contexts, st.booleans())
def test_states_are_never_faster_than_their_work(chunks, contexts, graph):
    parts = {"prefill": BatchShape.of(chunks), "decode": BatchShape.of((), contexts)}
    batch = parts["prefill"] + parts["decode"]
    moved = STATEFUL.attention_work(batch).requested.total
    assert moved / BANDWIDTH <= layers_of(RECURRENT).states_s(batch) * (1 + 1e-9)
    if batch.requests:
        bound_s = roof_time(STATEFUL.work(batch), H200).bound_s
        assert bound_s <= RECURRENT.step_s(**parts, graph=graph) * (1 + 1e-9)
