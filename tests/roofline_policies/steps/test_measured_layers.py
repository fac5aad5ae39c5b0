"""Parts of layers that were measured on a device: each is priced by the kernels fitted to its tables."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roofline_policies.device.hardware import from_catalogue
from roofline_policies.model.batch import BatchShape
from roofline_policies.model.catalogue import shipped_model
from roofline_policies.model.parts import State
from roofline_policies.steps.efficiency import load_efficiency, shipped_efficiencies
from roofline_policies.steps.kernels.expert_time import balanced_loads, even_loads, experts_s, skewed_loads
from roofline_policies.steps.kernels.kernel_model import KernelModel, expert_names
from roofline_policies.steps.kernels.kernel_time import latent_decode_s, latent_prefill_s
from roofline_policies.steps.kernels.latent_time import latent_product_s
from roofline_policies.steps.kernels.state_time import CHAIN, state_s
from roofline_policies.steps.predictor import StepPredictor
from roofline_policies.work import Precision
from tests.roofline_policies.steps.bare import bare

H200 = from_catalogue("h200")
EFFICIENCY = load_efficiency("h200")
KERNELS = KernelModel(H200, EFFICIENCY)
MOE = shipped_model("qwen3_30b_a3b").shape.rank_model
MLA = shipped_model("deepseek_v2_lite").shape.rank_model
LLAMA = shipped_model("llama_3_1_8b").rank(1)
SHIPPED = {name: load_efficiency(name) for name in shipped_efficiencies()}


def every(kind):
    """Coefficients of one list of every shipped device, with its ceilings and multiprocessors."""
    found = [(from_catalogue(name), one.sms, e) for name, one in SHIPPED.items() for e in getattr(one, kind)]
    return st.sampled_from(found)


# Loads of experts


@given(st.integers(1, 20_000), st.integers(1, 512), st.integers(1, 22), st.sampled_from([1.01, 1.2, 2.0]))
def test_loads_add_up_to_the_chosen_pairs_and_none_has_more_than_all_rows(rows, count, chosen, alpha):
    chosen = min(chosen, count)
    for loads in (balanced_loads(rows, count, chosen), skewed_loads(rows, count, chosen, alpha)):
        assert sum(n * each for n, each in loads) == pytest.approx(rows * chosen, rel=1e-6)
        assert sum(n for n, _ in loads) <= min(count, rows * chosen) * (1 + 1e-9)
        assert all(each <= rows * (1 + 1e-9) for _, each in loads)


def test_a_skewed_choice_reaches_fewer_experts_with_more_rows_on_some():
    """64 rows choose 8 of 128: taking turns they reach all, four rows each."""
    assert balanced_loads(64, 128, 8) == ((128, 4.0),)
    skewed = skewed_loads(64, 128, 8, 1.2)
    assert sum(n for n, _ in skewed) < 115
    assert max(each for _, each in skewed) > 12


# Experts


@given(
    every("experts"), st.integers(1, 16_384), st.integers(1, 256), st.integers(1, 16),
    st.integers(64, 8192), st.integers(16, 4096),
)  # fmt: skip
def test_experts_are_never_faster_than_their_roofline(fitted, rows, count, chosen, hidden, width):
    on, sms, e = fitted
    chosen = min(chosen, count)
    loads, held = balanced_loads(rows, count, chosen), 3 * hidden * width
    seconds = experts_s(e, rows, loads, hidden, 2 * width, width, held, on, sms)
    weights_s = sum(n for n, _ in loads) * held / on.bytes_per_s
    flops_s = 6 * rows * chosen * hidden * width / on.compute_ceiling(e.precision)
    assert seconds >= max(weights_s, flops_s)
    assert seconds >= e.launch_s


def test_measured_experts_are_the_fitted_kernel_and_hold_their_routing():
    """Qwen3 30B: 48 layers, 8 of 128 experts of width 768, rows of 2,048; bf16."""
    step, plain = StepPredictor.for_device(MOE, "h200"), bare(MOE)
    e = next(one for one in EFFICIENCY.experts if one.name == "bf16")
    (routed,) = MOE.experts
    for rows in (1, 64, 4096):
        loads = even_loads(rows * 8, routed.active(rows))
        each = experts_s(e, rows, loads, 2048, 1536, 768, 3 * 2048 * 768 * 2, H200, 132)
        assert step._layers.experts_s(rows) == pytest.approx(48 * each)
        # Four small kernels a layer, and what they move, are in the fitted time.
        assert plain._layers.small_s(rows) - step._layers.small_s(rows) > 48 * 4 * 2.4e-6
    assert step.step(decode=BatchShape.of((), [9])).kernels == plain.step(decode=BatchShape.of((), [9])).kernels
    skewed = dataclasses.replace(step, expert_skew=1.2)
    assert skewed._layers.experts_s(64) < step._layers.experts_s(64)  # fewer of them are read
    assert skewed._layers.experts_s(4096) > step._layers.experts_s(4096)  # more tiles


@pytest.mark.parametrize(
    ("precision", "bytes_each", "kernel", "name"),
    [
        (Precision.BF16, 2, None, "bf16"),
        (Precision.FP8, 1, "fp8_block", "fp8_block"),
        (Precision.FP8, 1, None, "fp8"),
        (Precision.BF16, 0.5 + 1 / 32, None, "w4a16_mxfp4"),
        (Precision.BF16, 0.5 + 1 / 64, None, "int4_wo"),
        (Precision.FP4, 0.5 + 1 / 16, None, "nvfp4"),
        (Precision.FP8, 0.5 + 1 / 32, None, "w4a8_mxfp4_mxfp8"),
    ],
)
def test_experts_are_looked_up_by_how_they_are_stored(precision, bytes_each, kernel, name):
    (routed,) = MOE.experts
    held = round(3 * 2048 * 768 * bytes_each)
    stored = dataclasses.replace(routed, precision=precision, expert_bytes=held, kernel=kernel)
    assert expert_names(stored)[0] == name


def test_experts_of_an_unmeasured_precision_are_those_of_the_nearest():
    (routed,) = MOE.experts
    assert KERNELS.experts(dataclasses.replace(routed, precision=Precision.INT8)).name == "fp8_block"
    assert KERNELS.experts(dataclasses.replace(routed, precision=Precision.FP4)).name == "bf16"


# Latent attention


def test_absorbed_attention_is_the_fitted_kernels():
    """DeepSeek V2 Lite: 27 layers, 16 heads, a latent of 512 and a rotated key of 64, values of 128."""
    layers = StepPredictor.for_device(MLA, "h200")._layers
    one, many = KERNELS.latent_decode("fa3", Precision.BF16), KERNELS.latent_prefill("fa3", Precision.BF16)
    product = KERNELS.latent_product(Precision.BF16)
    sizes = (16, 576, 512, H200, 132)

    def around(rows):
        return latent_product_s(product, 16, rows, 512, 128, H200, 132) + latent_product_s(
            product, 16, rows, 128, 512, H200, 132
        )

    decode = BatchShape.of((), [3000] * 32)
    assert layers.absorbed_s(decode) == pytest.approx(27 * (around(32) + latent_decode_s(one, 32, 96_000, *sizes)))
    chunk = BatchShape.of([(512, 1000)])
    sums = (1, 512, 1512, chunk.pairs, chunk.causal_pairs)
    assert layers.absorbed_s(chunk) == pytest.approx(27 * (around(512) + latent_prefill_s(many, *sums, *sizes)))
    step = StepPredictor.for_device(MLA, "h200").step(decode=decode, graph=True)
    assert step.attention_s == pytest.approx(layers.absorbed_s(decode))  # its launches are inside


@given(st.integers(1, 256), st.integers(1, 30_000), st.integers(1, 128), every("latent_decode"))
def test_attention_to_latents_is_never_faster_than_its_roofline(requests, length, heads, fitted):
    on, sms, e = fitted
    context = requests * length
    seconds = latent_decode_s(e, requests, context, heads, 576, 512, on, sms)
    element = 1 if e.kv_precision is Precision.FP8 else 2
    flops_s = 2 * heads * 1088 * context / on.compute_ceiling(Precision.BF16)
    assert seconds >= max(context * 576 * element / on.bytes_per_s, flops_s)


@given(st.integers(1, 16), st.integers(1, 8192), st.integers(1, 128), every("latent_prefill"))
def test_attention_of_prompts_to_latents_is_never_faster_than_its_roofline(requests, length, heads, fitted):
    on, sms, e = fitted
    batch = BatchShape.of([(length, 0)] * requests)
    sums = (requests, batch.new_tokens, batch.context_tokens, batch.pairs, batch.causal_pairs)
    seconds = latent_prefill_s(e, *sums, heads, 576, 512, on, sms)
    assert seconds >= 2 * heads * 1088 * batch.causal_pairs / on.compute_ceiling(Precision.BF16)


# Linear attention


GDN = State(count=36, row_flops=6 * 32 * 128 * 128, state_bytes=4 * 32 * 128 * 128, row_elements=8192, kind="gdn")
CONV = State(count=36, row_flops=2 * 8192 * 4, state_bytes=0, row_elements=16384, kind="gdn_conv")


def test_states_are_priced_by_the_kernel_of_their_kind_and_phase():
    model = dataclasses.replace(LLAMA, states=(GDN, CONV))
    layers = StepPredictor.for_device(model, "h200")._layers
    decode, prefill = BatchShape.of((), [700] * 16), BatchShape.of([(2048, 0)] * 2)
    for phase, batch in (("decode", decode), ("prefill", prefill)):
        sums = (batch.requests, batch.new_tokens, H200)
        each = state_s(KERNELS.state("gdn", phase), GDN, *sums) + state_s(KERNELS.state("gdn_conv", phase), CONV, *sums)
        assert layers.states_s(batch) == pytest.approx(36 * each)


def test_states_of_a_kind_that_nobody_measured_are_a_roofline():
    other = dataclasses.replace(GDN, kind=None)
    batch = BatchShape.of((), [700] * 16)
    measured = StepPredictor.for_device(dataclasses.replace(LLAMA, states=(other,)), "h200")
    assert measured._layers.states_s(batch) == bare(dataclasses.replace(LLAMA, states=(GDN,)))._layers.states_s(batch)


@given(st.integers(1, 256), st.integers(1, 16_384), every("states"))
def test_states_take_no_less_than_their_bytes_and_the_longest_request(requests, length, fitted):
    on, _, e = fitted
    rows = requests if e.phase == "decode" else requests * length
    seconds = state_s(e, GDN, requests, rows, on)
    assert seconds >= 2 * GDN.state_bytes * requests / on.bytes_per_s
    if e.phase == "prefill":
        assert seconds >= length / CHAIN * e.chain_s
