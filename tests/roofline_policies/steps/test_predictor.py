"""Kernel times, step times, and the coefficients they rest on."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roofline_policies.device.hardware import Ceilings, from_catalogue
from roofline_policies.device.roofline import roof_time
from roofline_policies.errors import InputError
from roofline_policies.model.batch import BatchShape
from roofline_policies.model.decoder import Decoder
from roofline_policies.model.gqa import GroupedAttention
from roofline_policies.steps.efficiency import GemmEfficiency, Tile, load_efficiency
from roofline_policies.steps.kernels.collective_time import collective_s
from roofline_policies.steps.kernels.kernel_model import KernelModel
from roofline_policies.steps.kernels.kernel_time import decode_attention_s, gemm_s, prefill_attention_s
from roofline_policies.steps.predictor import StepCosts, StepPredictor, StepTime
from roofline_policies.work import BYTES_PER_ELEMENT, Precision
from tests import ROOT
from tests.roofline_policies.steps.bare import bare

H200 = from_catalogue("h200")
EFFICIENCY = load_efficiency("h200")
KERNELS = KernelModel(H200, EFFICIENCY)
SMS = EFFICIENCY.sms
LLAMA = Decoder(
    family="llama",
    hidden_size=4096,
    num_layers=32,
    attention=GroupedAttention(32, 8, 128),
    intermediate_size=14336,
    vocab_size=128256,
    tied_embeddings=False,
    weight_precision=Precision.BF16,
    kv_precision=Precision.BF16,
)
STEP = StepPredictor.for_device(LLAMA.rank_model, "h200")
FILE = ROOT / "conf" / "efficiency" / "h200.yaml"

gemms = st.sampled_from(sorted(EFFICIENCY.gemm))
decodes = st.sampled_from(EFFICIENCY.decode)
prefills = st.sampled_from(EFFICIENCY.prefill)
rows = st.integers(1, 40_000)
width = st.integers(16, 80_000)
heads = st.sampled_from([(1, 1), (8, 1), (32, 8), (64, 8), (40, 40), (96, 1)])
batches = st.integers(1, 2048)
lengths = st.integers(1, 20_000)


def ceilings(**changes):
    return dataclasses.replace(H200, **changes)


def prefill(e, requests, new, prefix, shape, on=H200):
    batch = BatchShape.of([(new, prefix)])
    sums = (requests * total for total in (batch.new_tokens, batch.context_tokens, batch.pairs, batch.causal_pairs))
    return prefill_attention_s(e, requests, *sums, *shape, e.max_head_dim, on, SMS)


# Kernels


@given(gemms, rows, width, width)
def test_a_product_is_never_faster_than_the_roofline(name, m, n, k):
    e = EFFICIENCY.gemm[name]
    element = BYTES_PER_ELEMENT[e.precision]
    flops, moved = 2 * m * n * k, element * k * (m + n) + 2 * m * n
    seconds = KERNELS.gemm_s(m, n, k, name)
    assert math.isfinite(seconds)
    assert seconds >= max(flops / H200.compute_ceiling(e.precision), moved / H200.bytes_per_s)


@given(gemms, rows, width, width, st.integers(1, 300))
def test_a_product_grows_with_every_size(name, m, n, k, more):
    seconds = KERNELS.gemm_s(m, n, k, name)
    least = seconds * (1 - 1e-12)
    assert KERNELS.gemm_s(m + more, n, k, name) >= least
    assert KERNELS.gemm_s(m, n + more, k, name) >= least
    assert KERNELS.gemm_s(m, n, k + more, name) >= least


IDEAL = GemmEfficiency(
    Precision.BF16, (Tile(64, 64),), launch_s=0.0, memory=1.0, compute=1.0, slowdown=0.0, slowdown_s=1.0, sm=1.0,
    step_s=0.0, epilogue_s=0.0, wave=1.0, overlap=16.0,
)  # fmt: skip
ROUND = ceilings(flops_per_s={Precision.BF16: 1e12}, bytes_per_s=1e15)


def test_tiles_are_paid_for_whole():
    """65 rows are two tiles of 64; on two of 100 SMs each takes 2 x 64 x 64 x k over a hundredth of the peak."""
    one_tile_s = 2 * 64 * 64 * 1000 / (1e12 / 100)
    for m in (1, 64, 65, 128):
        assert gemm_s(IDEAL, m, 64, 1000, ROUND, 100) == pytest.approx(one_tile_s, rel=1e-6)
    assert gemm_s(IDEAL, 64 * 100, 64, 1000, ROUND, 100) == pytest.approx(one_tile_s, rel=1e-6)


@pytest.mark.parametrize(("wave", "waves"), [(1.0, 2.0), (0.0, 1.01), (0.5, 1.505)])
def test_waves_are_quantised_as_far_as_the_kernel_is(wave, waves):
    e = dataclasses.replace(IDEAL, wave=wave)
    one = gemm_s(e, 64 * 100, 64, 1000, ROUND, 100)
    assert gemm_s(e, 64 * 101, 64, 1000, ROUND, 100) == pytest.approx(waves * one, rel=1e-6)


def test_a_split_inner_dimension_uses_idle_sms_at_a_price():
    e = dataclasses.replace(IDEAL, split_s=1e-9)
    whole = gemm_s(IDEAL, 64, 64, 1000, ROUND, 100)
    assert gemm_s(e, 64, 64, 1000, ROUND, 100) == pytest.approx(whole / 8 + 1e-9, rel=1e-6)
    assert gemm_s(dataclasses.replace(e, split_s=1.0), 64, 64, 1000, ROUND, 100) == pytest.approx(whole, rel=1e-6)


def test_a_memory_bound_product_takes_its_bytes_over_the_bandwidth():
    on = ceilings(flops_per_s={Precision.BF16: 1e18}, bytes_per_s=1e12)
    moved = 2 * 4096 * 4096 + 2 * 2 * 4096  # the weights, a row in, a row out, 2 bytes each
    assert gemm_s(dataclasses.replace(IDEAL, memory=0.5), 1, 4096, 4096, on, 1) == pytest.approx(2 * moved / 1e12)


def test_long_products_slow_down():
    e = dataclasses.replace(IDEAL, slowdown=1.0, slowdown_s=1e-9)
    size = 64 * 1000
    assert gemm_s(e, size, 64, 10_000, ROUND, 1) == pytest.approx(2 * 2 * size * 64 * 10_000 / 1e12, rel=1e-3)


@given(decodes, batches, lengths, heads)
def test_decode_attention_is_never_faster_than_the_roofline(e, requests, length, shape):
    many, few = shape
    context, dim = requests * length, e.max_head_dim
    seconds = decode_attention_s(e, requests, context, many, few, dim, H200, SMS)
    moved = 2 * context * few * dim * BYTES_PER_ELEMENT[e.kv_precision] + 4 * requests * many * dim
    assert math.isfinite(seconds)
    assert seconds >= max(moved / H200.bytes_per_s, 4 * context * many * dim / H200.compute_ceiling(Precision.BF16))


@given(decodes, batches, lengths, heads, st.integers(1, 500))
def test_decode_attention_grows_with_the_batch_and_with_its_lengths(e, requests, length, shape, more):
    def seconds(requests, length):
        return decode_attention_s(e, requests, requests * length, *shape, e.max_head_dim, H200, SMS)

    assert seconds(requests, length + more) >= seconds(requests, length) * (1 - 1e-12)
    if requests * shape[1] >= SMS:  # before that, more blocks reach more SMs
        assert seconds(requests + more, length) >= seconds(requests, length) * (1 - 1e-12)


@given(prefills, st.integers(1, 64), lengths, st.integers(0, 20_000), heads, st.integers(1, 500))
def test_prefill_attention_is_above_the_roofline_and_grows(e, requests, new, prefix, shape, more):
    seconds = prefill(e, requests, new, prefix, shape)
    causal = requests * BatchShape.of([(new, prefix)]).causal_pairs
    assert math.isfinite(seconds)
    assert seconds >= 4 * causal * shape[0] * e.max_head_dim / H200.compute_ceiling(e.precision)
    least = seconds * (1 - 1e-9)
    assert prefill(e, requests, new, prefix + more, shape) >= least
    assert prefill(e, requests + more, new, prefix, shape) >= least
    assert prefill(e, requests, new + more, prefix, shape) >= least


@given(prefills, lengths, heads, st.floats(0.1, 10))
def test_kernels_scale_with_the_ceilings(e, new, shape, factor):
    """On a device with both ceilings times x, all but the latencies takes 1 / x."""
    still = dataclasses.replace(e, launch_s=0.0, block_s=0.0)
    on = ceilings(
        flops_per_s={p: rate * factor for p, rate in H200.flops_per_s.items()}, bytes_per_s=H200.bytes_per_s * factor
    )
    assert prefill(still, 1, new, 0, shape, on) == pytest.approx(prefill(still, 1, new, 0, shape) / factor)


def test_skipping_less_of_a_window_costs_more():
    e = EFFICIENCY.prefill[0]
    within = prefill_attention_s(e, 1, 8192, 8192, 8192 * 128, 8192 * 128, 32, 8, 128, H200, SMS)
    assert prefill_attention_s(e, 1, 8192, 8192, 8192 * 128, 8192 * 128, 32, 8, 128, H200, SMS, 10**8) > within


def test_kernels_are_found_by_name():
    assert KERNELS.gemm(Precision.FP16) is KERNELS.gemm("bf16") is EFFICIENCY.gemm["bf16"]
    assert KERNELS.decode("fa3", Precision.FP16, 80).max_head_dim == 128
    assert KERNELS.decode("triton", Precision.FP8, 1024).max_head_dim == 512
    assert KERNELS.prefill("triton", Precision.FP8, 128).precision is Precision.BF16
    assert KERNELS.prefill("triton", Precision.FP8, 128, Precision.FP8).precision is Precision.FP8


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda: KERNELS.gemm("int8"), "'int8': not measured; allowed: bf16, fp8, fp8_block"),
        (
            lambda: KERNELS.decode("flash", Precision.BF16, 128),
            "'flash': no such kernel; allowed: fa3, fa4, flashinfer",
        ),
        (lambda: KERNELS.prefill("", Precision.BF16, 128), "'': no such kernel"),
    ],
)
def test_what_was_not_measured_is_named(ask, said):
    with pytest.raises(InputError, match=said):
        ask()


def test_the_methods_are_the_functions():
    e = EFFICIENCY.decode
    fa3 = next(x for x in e if (x.kernel, x.kv_precision, x.max_head_dim) == ("fa3", "bf16", 128))
    asked = KERNELS.decode_attention_s(64, 64_000, heads=32, kv_heads=8, head_dim=128)
    assert asked == decode_attention_s(fa3, 64, 64_000, 32, 8, 128, H200, SMS)
    shape = {"heads": 32, "kv_heads": 8, "head_dim": 128}
    sums = {"context_tokens": 512, "pairs": 512 * 512, "causal_pairs": 512 * 513 // 2}
    asked = KERNELS.prefill_attention_s(1, 512, **sums, **shape)
    assert asked == prefill(KERNELS.prefill("fa3", Precision.BF16, 128), 1, 512, 0, (32, 8))


# Steps

chunks = st.lists(st.tuples(st.integers(1, 8192), st.integers(0, 30_000)), max_size=4)
contexts = st.lists(st.integers(1, 30_000), max_size=64)


@given(chunks, contexts, st.booleans())
def test_a_step_is_the_sum_of_its_parts_and_above_the_roofline(chunks, contexts, graph):
    parts = {"prefill": BatchShape.of(chunks), "decode": BatchShape.of((), contexts)}
    time = STEP.step(**parts, graph=graph)
    assert STEP.step_s(**parts, graph=graph) == time.total_s == pytest.approx(sum(time[:-1]))
    assert all(math.isfinite(part) and part >= 0 for part in time)
    work = LLAMA.work(parts["prefill"] + parts["decode"])
    assert time.device_s >= roof_time(work._replace(issued=work.useful), H200).bound_s * (1 - 1e-9)


def test_nothing_takes_no_time():
    assert STEP.step() == StepTime()


@given(chunks, contexts)
def test_the_work_inside_is_the_models(chunks, contexts):
    """The products that are timed are those of the model's work, head included."""
    batch = BatchShape.of(chunks, contexts)
    ((count, products),) = STEP._layers._products
    layers = count * sum(2 * batch.new_tokens * n * k for _, n, k, _ in products)
    head = 2 * batch.logit_rows * LLAMA.hidden_size * LLAMA.vocab_size
    assert count == LLAMA.num_layers
    assert layers + head == LLAMA.rank_model.work_beside_attention(batch).issued.total


@given(chunks, contexts)
def test_a_graph_hides_launches_and_nothing_else(chunks, contexts):
    parts = {"prefill": BatchShape.of(chunks), "decode": BatchShape.of((), contexts)}
    graph, eager = STEP.step(**parts, graph=True), STEP.step(**parts)
    assert eager.device_s == graph.device_s
    assert eager.total_s == pytest.approx(max(graph.total_s, graph.kernels * STEP.costs.eager_kernel_s))


def test_a_small_eager_step_takes_as_long_as_its_launches():
    decode = BatchShape.of((), [10])
    assert STEP.step_s(decode=decode) == pytest.approx(
        max(STEP.step_s(decode=decode, graph=True), 326 * 19e-6), rel=1e-9
    )
    slow = dataclasses.replace(STEP, costs=StepCosts(eager_kernel_s=1e-3, host_s=0.5))
    assert slow.step_s(decode=decode) == pytest.approx(326 * 1e-3 + 0.5)


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=64))
def test_a_decode_step_is_padded_to_the_next_captured_size(contexts):
    padded = dataclasses.replace(STEP, captured=(1, 8, 32))
    decode, size = BatchShape.of((), contexts), next((s for s in (1, 8, 32) if s >= len(contexts)), None)
    if size is None:
        beyond, eager = padded.step(decode=decode, graph=True), STEP.step(decode=decode)
        assert beyond == padded.step(decode=decode)
        assert beyond._replace(launch_s=0.0) == eager._replace(launch_s=0.0)
        assert beyond.launch_s >= eager.launch_s
    else:
        stated = BatchShape.of((), contexts, padded_rows=size - len(contexts))
        assert padded.step(decode=decode, graph=True) == STEP.step(decode=stated, graph=True)
        assert padded.step_s(decode=decode, graph=True) >= STEP.step_s(decode=decode, graph=True)


@given(st.integers(1, 64), st.integers(64, 4000))
def test_a_verify_step_costs_more_than_a_decode_step_of_its_requests(requests, length):
    plain = BatchShape.of((), [length] * requests)
    verify = BatchShape.of([(5, length - 5)] * requests, all_logits=True)
    assert STEP.step_s(decode=verify, graph=True) >= STEP.step(decode=plain, graph=True).linear_s


def test_a_mixed_step_launches_attention_once():
    prefill, decode = BatchShape.of([(512, 0)]), BatchShape.of((), [1000] * 8)
    apart = STEP.step(prefill=prefill).attention_s + STEP.step(prefill=decode).attention_s
    launch_s = KERNELS.prefill("fa3", Precision.BF16, 128).launch_s
    assert STEP.step(prefill=prefill, decode=decode).attention_s == pytest.approx(apart - 32 * launch_s)


@pytest.mark.parametrize("tp_size", [2, 4, 8])
def test_tensor_parallel_ranks_share_the_products_and_pay_for_talking(tp_size):
    split = bare(LLAMA.shard(tp_size).rank_model, tp_size=tp_size)
    for shape in ({"decode": BatchShape.of((), [1000] * 64)}, {"prefill": BatchShape.of([(8192, 0)])}):
        one, many = STEP.step(**shape, graph=True), split.step(**shape, graph=True)
        assert many.linear_s < one.linear_s
        assert many.head_s < one.head_s
        assert many.communication_s > one.communication_s == 0
    reduced = 2 * 32 * 8192 * 4096 * 2 * 2 * (tp_size - 1) / tp_size
    gathered = 128256 * 2 * (tp_size - 1) / tp_size
    assert many.communication_s == pytest.approx(65 * 8e-6 + (reduced + gathered) / 3.6e11)


def test_collectives_that_were_measured_are_priced_by_size_and_ranks():
    """Two all-reduces a layer of rows x hidden, one all-gather of all ranks' logits."""
    known = {(e.operation, e.library, e.ranks): e for e in EFFICIENCY.collectives}
    for ranks in (2, 4, 8):
        step = StepPredictor.for_device(LLAMA.shard(ranks).rank_model, "h200", tp_size=ranks)
        assert step.stand_ins == ()
        gather = known["all_gather", "nccl", ranks]
        for rows, library in ((64, "sglang"), (8192, "nccl")):  # 16 MiB are 2,048 rows
            batch = {"decode": BatchShape.of((), [1000] * rows)}
            reduce = known["all_reduce", library, ranks]
            expected = 64 * collective_s(reduce, rows * 4096 * 2) + collective_s(gather, rows * 128256 * 2)
            assert step.step(**batch, graph=True).communication_s == pytest.approx(expected)
    sixteen = StepPredictor(LLAMA.rank_model, H200, EFFICIENCY, tp_size=16)
    assert sixteen.stand_ins == ("collectives of 16 ranks: those of the nearest of [2, 4, 8] stand in",)


def test_a_kernel_that_was_not_measured_is_priced_as_the_nearest_and_said():
    other = dataclasses.replace(STEP, attention="flashinfer")
    batch = {"decode": BatchShape.of((), [1000] * 64), "graph": True}
    assert other.step(**batch) == STEP.step(**batch)
    assert other.stand_ins == (
        "attention of prompts: fa3 stands in for flashinfer, which was not measured",
        "attention of one token: fa3 stands in for flashinfer, which was not measured",
    )
    assert STEP.stand_ins == ()


def test_eight_bit_products_help_where_compute_binds():
    eight = dataclasses.replace(STEP, linear="fp8")
    chunk = {"prefill": BatchShape.of([(4096, 0)])}
    assert eight.step(**chunk).linear_s < 0.8 * STEP.step(**chunk).linear_s
    assert eight.step(**chunk).head_s == STEP.step(**chunk).head_s


def test_half_the_clock_slows_prefill_more_than_decode():
    slow = dataclasses.replace(STEP, ceilings=H200.scaled(0.5))
    chunk, decode = {"prefill": BatchShape.of([(8192, 0)])}, {"decode": BatchShape.of((), [4000] * 16), "graph": True}
    assert slow.step_s(**chunk) > 1.7 * STEP.step_s(**chunk)
    assert slow.step_s(**decode) < 1.4 * STEP.step_s(**decode)


def test_seconds_are_seconds():
    """Llama 3.1 8B on an H200: decode reads 16 GB at 4.8 TB/s, 2,048 prompt tokens are 32 TFLOP at 989 TFLOP/s."""
    assert 16e9 / 4.8e12 < STEP.step_s(decode=BatchShape.of((), [100]), graph=True) < 2 * 16e9 / 4.8e12
    assert 32e12 / 989e12 < STEP.step_s(prefill=BatchShape.of([(2048, 0)])) < 2 * 32e12 / 989e12


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: dataclasses.replace(STEP, captured=(8, 4)), "captured"),
        (lambda: dataclasses.replace(STEP, attention="abacus"), "'abacus': no such kernel; allowed: fa3, fa4, "),
        (lambda: dataclasses.replace(STEP, linear="int4"), "not measured"),
        (lambda: StepPredictor.for_device(LLAMA.shard(3).rank_model, "h200", tp_size=3), "tp_size = 3"),
        (lambda: dataclasses.replace(STEP, tp_size=0), "tp_size = 0: must be positive"),
        (lambda: StepCosts(host_s=-1.0), "host_s = -1.0: out of range"),
        (lambda: StepCosts(small_memory=2.0), "at most 1"),
        (lambda: StepPredictor.for_device(LLAMA.rank_model, "l4"), "no measured efficiencies; allowed: .*h200"),
    ],
)
def test_a_bad_predictor_is_refused(make, said):
    with pytest.raises(InputError, match=said):
        make()


@pytest.mark.benchmark(group="predict")
def test_predicting_a_decode_step(benchmark):
    decode = BatchShape.of((), [1000] * 64)
    benchmark(lambda: STEP.step_s(decode=decode, graph=True))


def test_ceilings_without_the_precision_are_refused():
    on = Ceilings("A Device", {Precision.BF16: 1e12}, 1e12, 10, None, "a sheet")
    with pytest.raises(InputError, match="no compute ceiling"):
        KernelModel(on, EFFICIENCY).gemm_s(1, 64, 64, "fp8")


@pytest.mark.parametrize(
    ("tokens", "rows", "replayed"), [(512, 0, True), (511, 1, True), (512, 1, False), (513, 0, False), (0, 600, False)]
)
def test_steps_with_prompts_replay_a_graph_up_to_the_most_rows_that_have_one(tokens, rows, replayed):
    """Asked for or not: who asks does not know what the server captured. Decode steps have graphs of their own."""
    captured = dataclasses.replace(STEP, replayed_rows=512)
    parts = {"prefill": BatchShape.of([(tokens, 0)] if tokens else ()), "decode": BatchShape.of((), [700] * rows)}
    assert captured.step(**parts) == STEP.step(**parts, graph=replayed)
    assert captured.step(**parts, graph=True) == STEP.step(**parts, graph=True)
