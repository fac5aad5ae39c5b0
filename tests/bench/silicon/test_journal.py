"""What the device did between two moments, and how requests of a short run are counted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.silicon.journal import PARTS, TIMES, StepJournal
from bench.silicon.task import slot_weights
from roofline_policies.model.batch import BatchShape
from roofline_policies.model.catalogue import shipped_model
from roofline_policies.steps.fitted_steps import FittedSteps, StepLine
from roofline_policies.steps.predictor import StepPredictor
from sglang_patches.virtual.clock import EPOCH_S

NOTHING = BatchShape()
LINES = FittedSteps("m", "m", "s", "d", StepLine(base_s=0.5, row_s=0.25), StepLine(base_s=0.125))


def test_every_part_of_a_step_lies_where_the_device_did_it() -> None:
    journal = StepJournal()
    steps = journal.watched(LINES)
    prompt, tokens = BatchShape.of(prefill=[(2, 0)]), BatchShape.of(decode_contexts=[4, 5])
    journal.clock.launch(steps.step_s(prefill=prompt, decode=NOTHING, graph=False))  # 0 to 1
    journal.clock.spend(2.0)
    journal.clock.launch(steps.step_s(prefill=NOTHING, decode=tokens, graph=True))  # 2 to 2.125
    begin, end = np.array([0.0, 0.5, 1.5, 0.0]), np.array([1.0, 2.0625, 3.0, 4.0])
    found = journal.between(EPOCH_S + begin, EPOCH_S + end)
    assert found["prefill_linear"].tolist() == [1.0, 0.5, 0.0, 1.0]
    assert found["decode_linear"].tolist() == [0.0, 0.0625, 0.125, 0.125]
    assert found["idle"].tolist() == [0.0, 1.0, 1.375, 2.875]
    assert found["prefill_steps"].tolist() == [1.0, 0.5, 0.0, 1.0]
    assert found["prefill_rows"].tolist() == [2.0, 1.0, 0.0, 2.0]
    assert found["decode_requests"].tolist() == [0.0, 1.0, 2.0, 2.0]


def test_the_parts_of_a_predicted_step_come_to_the_whole() -> None:
    journal = StepJournal()
    predictor = StepPredictor.for_device(shipped_model("llama_3_1_8b").rank(1), "h200")
    steps = journal.watched(predictor)
    total = 0.0
    for prefill, graph in (((900, 0), False), ((0, 0), True), ((40, 300), False)):
        shape = BatchShape.of(prefill=[prefill]) if prefill[0] else NOTHING
        decode = NOTHING if prefill[0] else BatchShape.of(decode_contexts=[500] * 9)
        seconds = steps.step_s(prefill=shape, decode=decode, graph=graph)
        assert seconds == predictor.step_s(prefill=shape, decode=decode, graph=graph)
        journal.clock.launch(seconds)
        total += seconds
    found = journal.between(np.array([EPOCH_S]), np.array([EPOCH_S + total]))
    seconds_of = [part for part in PARTS if part.partition("_")[2] in TIMES]
    assert sum(found[part][0] for part in seconds_of) == pytest.approx(total, rel=1e-9)
    assert found["idle"][0] == pytest.approx(0.0, abs=1e-9)
    assert (found["prefill_steps"][0], found["decode_steps"][0]) == (pytest.approx(2.0), pytest.approx(1.0))
    # Both prompts ran without a graph.
    assert found["prefill_eager_kernels"][0] == pytest.approx(found["prefill_kernels"][0])
    assert found["decode_eager_kernels"][0] == 0.0


@given(st.integers(1, 40), st.integers(1, 12), st.integers(3, 12))
def test_a_short_run_counts_for_as_many_requests_as_a_full_one(concurrency: int, slots: int, full: int) -> None:
    weights = slot_weights(slots * concurrency, concurrency, full)
    assert weights[:concurrency].tolist() == [1.0] * concurrency
    assert weights[-concurrency:].tolist() == [1.0] * concurrency
    if 3 <= slots <= full:
        assert weights.sum() == pytest.approx(full * concurrency)
    if slots >= full:
        assert set(weights) == {1.0}
