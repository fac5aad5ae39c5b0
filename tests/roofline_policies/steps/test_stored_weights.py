"""Products whose weights are stored in other bytes than they are multiplied in, and those that nobody measured."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roofline_policies.device.hardware import from_catalogue
from roofline_policies.model.batch import BatchShape
from roofline_policies.model.catalogue import shipped_model
from roofline_policies.model.moe import Experts
from roofline_policies.model.parts import ExpertLayers, Matrix, matrix
from roofline_policies.model.rank_model import RankModel
from roofline_policies.steps.efficiency import load_efficiency
from roofline_policies.steps.kernels.kernel_model import KernelModel
from roofline_policies.steps.kernels.kernel_time import gemm_s
from roofline_policies.steps.predictor import StepPredictor
from roofline_policies.work import BYTES_PER_ELEMENT, Precision
from tests.roofline_policies.steps.bare import bare

H200, EFFICIENCY = from_catalogue("h200"), load_efficiency("h200")
GEMM, BANDWIDTH = EFFICIENCY.gemm["bf16"], H200.bytes_per_s
MOE = shipped_model("qwen3_30b_a3b").rank(1)
LLAMA = shipped_model("llama_3_1_8b").rank(1)


def stored(model: RankModel, share: float, precision: Precision | None = None) -> RankModel:
    """The model with products whose weights take ``share`` of their bytes; the head is left alone."""
    matrices = [
        dataclasses.replace(one, weight_bytes=round(one.weight_bytes * share), precision=precision or one.precision)
        for one in model.matrices
    ]
    experts = [
        dataclasses.replace(one, expert_bytes=round(one.expert_bytes * share), precision=precision or one.precision)
        for one in model.experts
    ]
    return dataclasses.replace(model, matrices=tuple(matrices), experts=tuple(experts))


@pytest.mark.parametrize("model", [LLAMA, MOE], ids=["dense", "experts"])
def test_four_bit_weights_help_decode_and_not_prefill(model):
    """Of weights that are unpacked and multiplied in 16 bits, only reading them is cheaper."""
    plain, four = (bare(one) for one in (model, stored(model, 0.25)))
    decode, prefill = BatchShape.of((), [1000] * 16), BatchShape.of([(16_384, 0)])
    one, other = plain.step(decode=decode, graph=True), four.step(decode=decode, graph=True)
    assert 0.25 * one.linear_s < other.linear_s < 0.75 * one.linear_s
    assert (other.head_s, other.attention_s, other.small_s) == (one.head_s, one.attention_s, one.small_s)
    assert four.step(prefill=prefill).linear_s == pytest.approx(plain.step(prefill=prefill).linear_s, rel=0.03)
    assert other.kernels == one.kernels


@given(st.integers(1, 4096), st.integers(64, 20_000), st.integers(64, 20_000), st.sampled_from(sorted(EFFICIENCY.gemm)))
def test_a_product_takes_no_longer_for_narrower_weights_and_never_less_than_its_roofline(m, n, k, name):
    e, element = EFFICIENCY.gemm[name], BYTES_PER_ELEMENT[EFFICIENCY.gemm[name].precision]
    own = gemm_s(e, m, n, k, H200, 132)
    assert gemm_s(e, m, n, k, H200, 132, element * n * k) == pytest.approx(own, rel=1e-12)
    for share in (1 / 4, 1 / 2, 1):
        narrower = gemm_s(e, m, n, k, H200, 132, element * n * k * share)
        assert narrower <= own * (1 + 1e-12)
        assert narrower >= 2 * m * n * k / H200.compute_ceiling(e.precision)
        assert narrower >= (element * n * k * share + element * m * k + 2 * m * n) / BANDWIDTH


def test_scales_are_read_beside_the_weights():
    wide = [
        StepPredictor.for_device(stored(LLAMA, share), "h200").step(decode=BatchShape.of((), [9])) for share in (1, 2)
    ]
    elements = sum(one.elements for one in LLAMA.matrices)
    grown_s = wide[1].linear_s - wide[0].linear_s
    assert grown_s == pytest.approx(2 * elements / (BANDWIDTH * GEMM.memory), rel=0.1)


@pytest.mark.parametrize(
    ("asked", "measured"),
    [
        (Precision.INT8, "fp8"),
        (Precision.FP4, "fp8"),
        (Precision.FP8, "fp8"),
        (Precision.FP16, "bf16"),
        (Precision.FP32, "bf16"),
    ],
)
def test_a_precision_that_was_not_measured_is_priced_as_the_nearest(asked, measured):
    kernels = KernelModel(H200, EFFICIENCY)
    one = Matrix(1, 64, 64, asked, weight_bytes=64 * 64)
    assert kernels.nearest_gemm(one) is EFFICIENCY.gemm[measured]
    assert kernels.nearest_gemm(dataclasses.replace(one, kernel="fp8_block")) is EFFICIENCY.gemm["fp8_block"]
    assert kernels.nearest_gemm(dataclasses.replace(one, kernel="marlin")) is EFFICIENCY.gemm[measured]
    layers = ExpertLayers(1, Experts(8, 2, 64), 64, asked, expert_bytes=3 * 64 * 64)
    assert kernels.nearest_gemm(layers) is EFFICIENCY.gemm[measured]
    alone = dataclasses.replace(EFFICIENCY, gemm={"bf16": GEMM})
    assert KernelModel(H200, alone).nearest_gemm(one) is GEMM


def test_integers_take_as_long_as_floats_of_their_width_and_four_bits_no_longer():
    decode, prefill = {"decode": BatchShape.of((), [1000] * 16), "graph": True}, {"prefill": BatchShape.of([(8192, 0)])}
    floats, integers, four = (
        StepPredictor.for_device(stored(LLAMA, share, precision), "h200")
        for share, precision in ((1 / 2, Precision.FP8), (1 / 2, Precision.INT8), (1 / 4, Precision.FP4))
    )
    for step in (decode, prefill):
        assert integers.step(**step) == floats.step(**step)
    assert four.step(**decode).linear_s < 0.75 * floats.step(**decode).linear_s
    assert four.step(**prefill).linear_s == pytest.approx(floats.step(**prefill).linear_s, rel=0.03)


def test_products_of_several_precisions_are_priced_each_as_its_own():
    first, *rest = LLAMA.matrices
    mixed = dataclasses.replace(LLAMA, matrices=(matrix(32, first.outputs, first.inputs, Precision.FP8), *rest))
    found = StepPredictor.for_device(mixed, "h200")._layers.linear_s(64)
    each = gemm_s(EFFICIENCY.gemm["fp8"], 64, first.outputs, first.inputs, H200, 132)
    each += sum(gemm_s(GEMM, 64, one.outputs, one.inputs, H200, 132) for one in rest)
    assert found == pytest.approx(32 * each)
    kernels = StepPredictor.for_device(LLAMA, "h200").step(decode=BatchShape.of((), [9])).kernels
    # An 8 bit product quantises its rows in a launch of its own.
    assert StepPredictor.for_device(mixed, "h200").step(decode=BatchShape.of((), [9])).kernels == kernels + 32


def test_a_device_without_a_ceiling_for_what_was_measured_takes_the_nearest():
    """A sibling device's table has 8 bit floats where this one's sheet names 16 bits alone."""
    ceilings = dataclasses.replace(H200, flops_per_s={Precision.BF16: 989e12})
    step = StepPredictor(stored(LLAMA, 1 / 2, Precision.INT8), ceilings, EFFICIENCY)
    chunk = {"prefill": BatchShape.of([(8192, 0)])}
    assert step.step(**chunk).linear_s > 0.9 * 2 * 8192 * sum(one.elements for one in LLAMA.matrices) / 989e12
    for narrow in ("int8", "fp8"):
        assert f"the compute ceiling of bf16 stands in for {narrow}, which has none" in step.ceilings.stand_ins


def test_a_head_is_priced_by_the_bytes_that_it_takes():
    head = dataclasses.replace(LLAMA.head, weight_bytes=LLAMA.head.weight_bytes // 4)
    plain, four = (
        StepPredictor.for_device(dataclasses.replace(LLAMA, head=one), "h200").step(decode=BatchShape.of((), [9]))
        for one in (LLAMA.head, head)
    )
    assert 0.25 * plain.head_s < four.head_s < 0.5 * plain.head_s
    assert four.linear_s == plain.linear_s
    headless = StepPredictor.for_device(dataclasses.replace(LLAMA, head=None), "h200")
    assert headless.step(decode=BatchShape.of((), [9])).head_s == 0
