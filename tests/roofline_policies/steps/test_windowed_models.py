"""Steps of models of which some layers see a window of keys: what they cost, and that no roof is above it."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roofline_policies.device.hardware import from_catalogue
from roofline_policies.device.roofline import roof_time
from roofline_policies.model.backends import backends
from roofline_policies.model.batch import BatchShape
from roofline_policies.model.catalogue import shipped_model
from roofline_policies.steps.efficiency import load_efficiency
from roofline_policies.steps.kernels.kernel_model import KernelModel
from roofline_policies.steps.kernels.kernel_time import decode_attention_s, prefill_attention_s
from roofline_policies.steps.predictor import EMPTY, StepPredictor
from roofline_policies.steps.roofline_steps import RooflineSteps
from roofline_policies.work import Precision

H200, EFFICIENCY = from_catalogue("h200"), load_efficiency("h200")
KERNELS = KernelModel(H200, EFFICIENCY)
FULL = shipped_model("llama_3_1_8b").rank(1)
(EVERY,) = FULL.attention
WINDOW = 1023
# Five of six layers see a window of 1,024 keys, their own among them, as in Gemma 3.
MODEL = dataclasses.replace(
    FULL,
    attention=(dataclasses.replace(EVERY, count=5), dataclasses.replace(EVERY, count=27, window=WINDOW)),
)
ONLY = dataclasses.replace(FULL, attention=(dataclasses.replace(EVERY, window=WINDOW),))
WIDE = dataclasses.replace(MODEL, attention=(MODEL.attention[0], dataclasses.replace(EVERY, count=27, window=99_999)))
STEP = StepPredictor.for_device(MODEL, "h200")
STEPS = {model: StepPredictor.for_device(model, "h200", captured=(1, 8, 64)) for model in (MODEL, ONLY, WIDE, FULL)}
ROOFS = {model: RooflineSteps(model, H200) for model in STEPS}
SIZES = (32, 8, 128, H200, 132)

models = st.sampled_from([MODEL, ONLY])
chunks = st.lists(st.tuples(st.integers(1, 4000), st.integers(0, 9000)), max_size=4)
contexts = st.lists(st.integers(1, 9000), max_size=32)


def test_decode_reads_the_window_in_the_layers_that_have_one():
    e = KERNELS.decode("fa3", Precision.BF16, 128)
    for length, in_window in ((500, 500), (1024, 1024), (1025, 1024), (20_000, 1024)):
        step = STEP.step(decode=BatchShape.of((), [length] * 64), graph=True)
        full_s = decode_attention_s(e, 64, 64 * length, *SIZES)
        assert step.attention_s == pytest.approx(5 * full_s + 27 * decode_attention_s(e, 64, 64 * in_window, *SIZES))


def test_beyond_the_window_a_context_costs_in_full_layers_alone():
    every = StepPredictor.for_device(FULL, "h200")

    def grown(step, graph=True):
        times = [step.step(decode=BatchShape.of((), [n] * 64), graph=graph).attention_s for n in (20_000, 40_000)]
        return times[1] - times[0]

    assert grown(STEP) == pytest.approx(grown(every) * 5 / 32)
    assert grown(StepPredictor.for_device(ONLY, "h200")) == 0


def test_prefill_computes_what_the_window_shows():
    """4,096 rows behind 8,192 tokens: in a window each row sees 1,024 keys, and 1,023 tokens before them are read."""
    e = KERNELS.prefill("fa3", Precision.BF16, 128)
    batch = BatchShape.of([(4096, 8192)])
    full_s = prefill_attention_s(e, 1, 4096, 12_288, batch.pairs, batch.causal_pairs, *SIZES)
    window_s = prefill_attention_s(e, 1, 4096, 4096 + 1023, 4096 * 1024, 4096 * 1024, *SIZES)
    assert STEP.step(prefill=batch).attention_s == pytest.approx(5 * full_s + 27 * window_s)
    assert window_s < full_s / 5


def test_a_mixed_step_launches_each_layers_attention_once():
    prefill, decode = BatchShape.of([(512, 9000)]), BatchShape.of((), [3000] * 8)
    apart = STEP.step(prefill=prefill).attention_s + STEP.step(prefill=decode).attention_s
    launch_s = KERNELS.prefill("fa3", Precision.BF16, 128).launch_s
    assert STEP.step(prefill=prefill, decode=decode).attention_s == pytest.approx(apart - 32 * launch_s)


@given(models, st.integers(1, 64), st.integers(1, 4000), st.integers(0, 9000), st.booleans())
def test_a_batch_that_does_not_say_what_its_window_shows_costs_as_one_that_does(model, count, new, prefix, decodes):
    attention = backends(model, "other")
    requests, lengths = ([], [new + prefix] * count) if decodes else ([(new, prefix)] * count, [])
    asked, told = BatchShape.of(requests, lengths), BatchShape.of(requests, lengths, attention=attention)
    for steps in (STEPS[model], ROOFS[model]):
        kind = "decode" if decodes else "prefill"
        assert steps.step_s(**{kind: asked}) == steps.step_s(**{kind: told})


@settings(deadline=None)
@given(models, chunks, contexts, st.sampled_from(["fa3", "triton", "other"]), st.booleans())
def test_no_step_is_predicted_faster_than_its_work(model, prefill, decode, name, graph):
    attention = backends(model, name)
    parts = {"prefill": BatchShape.of(prefill, attention=attention)}
    parts["decode"] = BatchShape.of((), decode, attention=attention)
    work = model.work(parts["prefill"] + parts["decode"])
    assert roof_time(work, H200).bound_s <= STEPS[model].step_s(**parts, graph=graph) * (1 + 1e-9)


@given(models, chunks, contexts, st.integers(0, 3), st.sampled_from(["fa3", "triton", "other"]))
def test_the_roofline_is_that_of_the_work(model, prefill, decode, shared, name):
    """Prompts without a prefix read no key of the cache, however many they compute."""
    attention = backends(model, name)
    batch = BatchShape.of(prefill, decode, attention=attention)
    batch = batch._replace(shared_tokens=shared * (batch.context_tokens - batch.new_tokens) // 4)
    if batch.requests:
        bound_s = roof_time(model.work(batch), H200).bound_s
        assert ROOFS[model].step_s(prefill=batch) == pytest.approx(bound_s, rel=1e-9)


@given(models, st.integers(1, 8), st.integers(2, 4000), st.integers(0, 9000), st.lists(st.just(5000), max_size=64))
def test_both_kinds_of_rows_of_a_mixed_step_see_their_own_window(model, count, new, prefix, decode):
    """One long chunk beside many rows is not as many requests of middling length."""
    attention = backends(model, "other")
    asked = {"prefill": BatchShape.of([(new, prefix)] * count), "decode": BatchShape.of((), decode)}
    told = {
        "prefill": BatchShape.of([(new, prefix)] * count, attention=attention),
        "decode": BatchShape.of((), decode, attention=attention),
    }
    for steps in (STEPS[model], ROOFS[model]):
        assert steps.step_s(**asked) == pytest.approx(steps.step_s(**told), rel=1e-12)


@settings(deadline=None)
@given(chunks, contexts, st.booleans())
def test_a_window_wider_than_every_context_is_none(prefill, decode, graph):
    found = []
    for model in (WIDE, FULL):
        attention = backends(model, "fa3")
        of_prompts, of_rows = (BatchShape.of(*part, attention=attention) for part in ((prefill,), ((), decode)))
        parts = {"prefill": of_prompts, "decode": of_rows}
        found.append((STEPS[model].step_s(**parts, graph=graph), ROOFS[model].step_s(**parts)))
    assert found[0] == pytest.approx(found[1], rel=1e-9)


def test_rows_that_pad_a_graph_are_counted_in_windowed_layers_too():
    step = StepPredictor.for_device(ONLY, "h200", captured=(64,), attention="triton")
    attention = backends(ONLY, "triton")
    told = BatchShape.of((), [3000] * 40, 24, attention=attention)
    asked = BatchShape.of((), [3000] * 40, attention=attention)
    assert step.step(decode=asked, graph=True) == step.step(decode=told, graph=True)
    assert attention.windowed is not None
    each = attention.windowed.decode.decode_flops((), 1)
    assert told.window_masked_flops == asked.window_masked_flops + 24 * each
    assert each > 0


def test_nothing_takes_no_time():
    assert STEP.step_s(prefill=EMPTY, decode=EMPTY) == 0
    assert ROOFS[MODEL].step_s() == 0
