"""What a decode step costs beyond the captured graphs: never less than within them."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from roofline_policies.device.hardware import from_catalogue
from roofline_policies.model.backends import backends
from roofline_policies.model.batch import BatchShape, graph_size
from roofline_policies.model.catalogue import shipped_model
from roofline_policies.model.gqa import GroupedAttention
from roofline_policies.steps.efficiency import load_efficiency
from roofline_policies.steps.predictor import StepPredictor
from roofline_policies.steps.roofline_steps import RooflineSteps

H200, EFFICIENCY = from_catalogue("h200"), load_efficiency("h200")
LLAMA = shipped_model("llama_3_1_8b").shape
SMALL = dataclasses.replace(
    LLAMA, hidden_size=1024, num_layers=28, attention=GroupedAttention(16, 8, 128), intermediate_size=3072
)


def rows_of(requests, length, width):
    if width == 1:
        return BatchShape.of((), [length] * requests)
    return BatchShape.of([(width, length)] * requests, all_logits=True)


PRICED = [
    *(shipped_model(name).shape.rank_model for name in ("llama_3_1_8b", "qwen3_30b_a3b", "deepseek_v2_lite")),
    SMALL.rank_model,
    dataclasses.replace(LLAMA, attention=GroupedAttention(40, 40, 128)).rank_model,
]


@given(
    st.sampled_from(PRICED),
    st.sampled_from(["h200", "l4", "b200"]),
    st.sampled_from([None, "fp8"]),
    st.sampled_from([4, 8, 16]),
    st.integers(1, 32),
    st.integers(1, 40),
    st.data(),
)
def test_beyond_the_captured_graphs_a_step_is_never_cheaper_than_within_them(
    model, device, linear, distance, captured, more, data
):
    few = tuple(range(distance, distance * captured + 1, distance))
    many = tuple(range(distance, distance * (captured + more) + 1, distance))
    requests = data.draw(st.integers(few[-1] + 1, many[-1]))
    shape = rows_of(requests, data.draw(st.integers(1, 8000)), data.draw(st.sampled_from([1, 2, 5])))
    without = StepPredictor(model, from_catalogue(device), EFFICIENCY, linear=linear, captured=few)
    within = dataclasses.replace(without, captured=many)
    replay = within.step_s(decode=shape, graph=True)
    assert without.step_s(decode=shape, graph=True) >= replay
    assert within.step_s(decode=shape, graph=False) >= replay
    prompt = BatchShape.of([(500, 20)])
    assert without.step_s(prefill=prompt, decode=shape) >= within.step_s(prefill=prompt, decode=shape, graph=True)


OWN_SIZES = [1, 2, 4, 8, 12, *range(16, 257, 8), *range(272, 512, 16), *range(512, 1025, 32)]
"""What SGLang 0.5.23 captures up to 1,024 requests where nothing else is asked for."""


@given(
    st.sampled_from(PRICED),
    st.integers(0, len(OWN_SIZES) - 2),
    st.integers(1, 8000),
    st.integers(1, 1023),
)
@example(PRICED[0], OWN_SIZES.index(16), 7000, 1)
@example(PRICED[0], OWN_SIZES.index(256), 7000, 1)
def test_beyond_the_first_of_sglangs_own_sizes_a_step_is_never_cheaper_than_with_all_of_them(
    model, place, length, beyond
):
    few = tuple(OWN_SIZES[: place + 1])
    requests = min(few[-1] + beyond, OWN_SIZES[-1])
    shape = rows_of(requests, length, 1)
    without = StepPredictor(model, from_catalogue("h200"), EFFICIENCY, captured=few)
    within = dataclasses.replace(without, captured=tuple(OWN_SIZES))
    assert without.step_s(decode=shape, graph=True) >= within.step_s(decode=shape, graph=True)


@pytest.mark.parametrize("requests", [64, 100])
def test_a_small_model_beyond_its_graphs_takes_as_long_as_its_launches(requests):
    """Measured with Qwen3-0.6B on another device: 5.44 to 5.51 ms a token against 2.64 within the graphs."""
    attention = GroupedAttention(16, 8, 128, qk_norm=True)
    model = dataclasses.replace(SMALL, vocab_size=151936, tied_embeddings=True, attention=attention).rank_model
    small = StepPredictor(model, H200, EFFICIENCY, captured=tuple(range(8, 49, 8)))
    within = dataclasses.replace(small, captured=tuple(range(8, 129, 8)))
    decode = BatchShape.of((), [256] * requests)
    assert small.step_s(decode=decode, graph=True) == pytest.approx(286 * 19e-6)
    assert small.step_s(decode=decode, graph=True) > 1.5 * within.step_s(decode=decode, graph=True)


def test_one_captured_size_goes_on_in_its_multiples():
    assert [graph_size((4,), requests) for requests in (1, 4, 5, 8, 9)] == [4, 4, 8, 8, 12]
    assert [graph_size((1, 2, 8), requests) for requests in (1, 3, 8, 9, 15)] == [1, 8, 8, 14, 20]


@given(st.sampled_from(PRICED), st.integers(1, 300), st.integers(1, 4000), st.sampled_from([1, 3]), st.booleans())
@example(PRICED[0], 289, 1, 3, False)  # beyond 256 SGLang's sizes are 16 apart
def test_nor_is_it_by_the_roofline_alone(model, requests, length, width, graph):
    """What is observed of a padded batch is no more than its price: neither share of a roof is above 1."""
    kernels = backends(model, "fa3")
    shape = rows_of(requests, length, width)
    if width == 1:
        shape = BatchShape.of((), [length] * requests, attention=kernels)
    else:
        shape = BatchShape.of([(width, length)] * requests, all_logits=True, attention=kernels)
    few, many = tuple(range(8, 49, 8)), (*range(8, 257, 8), *range(272, 305, 16))
    options = {"attention": kernels}
    within = RooflineSteps(model, from_catalogue("l4"), captured=many, **options)
    without = RooflineSteps(model, from_catalogue("l4"), captured=few, **options)
    priced = within.step_s(decode=shape, graph=graph)
    assert without.step_s(decode=shape, graph=graph) == priced
    seen = shape.padded_to(graph_size(many, requests), kernels.decode.decode_flops((), 1))
    assert within.step_s(decode=seen, graph=True) == priced
    assert priced >= RooflineSteps(model, from_catalogue("l4")).step_s(decode=shape) * (1 - 1e-9)
