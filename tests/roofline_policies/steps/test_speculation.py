"""What a step of speculative decoding takes: closed forms, what it is made of, errors."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roofline_policies.errors import FieldError, InputError
from roofline_policies.model.batch import BatchShape
from roofline_policies.model.catalogue import shipped_model
from roofline_policies.steps.acceptance import Acceptance
from roofline_policies.steps.fitted_steps import FittedSteps, StepLine
from roofline_policies.steps.predictor import StepPredictor
from roofline_policies.steps.speculation import GuessedDrafts, ShareOf, Speculation, check_draft, verify_shape

LLAMA = shipped_model("llama_3_1_8b").shape
HEAD = dataclasses.replace(LLAMA, num_layers=1)
SIZES = (1, 2, 4, 8, 16, 32, 64)


def line(*coefficients):
    one = StepLine(*coefficients)
    return FittedSteps("a model", "a machine", "made up", "today", prefill=one, decode=one)


WHOLE, PADDED, DRAFTING = (
    StepPredictor.for_device(shape.rank_model, "h200", captured=sizes)
    for shape, sizes in ((LLAMA, ()), (LLAMA, SIZES), (HEAD, SIZES))
)
TARGET, DRAFT = line(1.0, 0.1, 0.01, 1e-4), line(0.2, 0.02, 0.003, 1e-5)
ACCEPTANCE = Acceptance((0.8,))

requests = st.integers(1, 64)
contexts = st.integers(64, 100_000)
drafts = st.integers(0, 8)


@settings(deadline=None)
@given(st.lists(st.integers(1, 5000), min_size=1, max_size=64), drafts)
def test_a_verify_step_is_a_chunk_of_the_drafts_and_the_token_before_them(lengths, steps):
    assert verify_shape(len(lengths), sum(lengths), steps) == BatchShape.of(
        [(steps + 1, length) for length in lengths], all_logits=True
    )


@settings(deadline=None)
@given(requests, contexts, drafts)
def test_a_decode_step_in_closed_form(count, context, steps):
    time = Speculation(DRAFT, 3, ACCEPTANCE).decode(TARGET, count, context, steps)
    rows = count * (steps + 1)
    middle = context + count * steps // 2
    assert time.draft_s == pytest.approx(max(0, steps - 1) * (0.2 + 0.02 * count + 0.003 * count + 1e-5 * middle))
    assert time.target_s == pytest.approx(1.0 + 0.1 * count + 0.01 * rows + 1e-4 * (context + rows))
    assert time.extend_s == pytest.approx(0.2 + 0.02 * count + 0.003 * rows + 1e-5 * (context + rows))
    assert time.total_s == time.draft_s + time.target_s + time.extend_s


@settings(deadline=None)
@given(requests, contexts)
def test_without_drafts_a_step_decodes_and_catches_up(count, context):
    time = Speculation(DRAFT, 3, ACCEPTANCE).decode(TARGET, count, context, 0)
    one_row = BatchShape(count, count, context + count, context + count, context + count, count)
    assert time == (0.0, TARGET.step_s(decode=one_row), DRAFT.step_s(decode=one_row))


def test_a_draft_model_that_is_left_behind_costs_nothing_without_drafts():
    left = Speculation(DRAFT, 3, ACCEPTANCE, extends_at_zero=False)
    plain = Speculation(DRAFT, 3, ACCEPTANCE).decode(TARGET, 8, 800, 0)
    assert left.decode(TARGET, 8, 800, 0) == plain._replace(extend_s=0.0)
    assert left.decode(TARGET, 8, 800, 1) == Speculation(DRAFT, 3, ACCEPTANCE).decode(TARGET, 8, 800, 1)


@settings(deadline=None)
@given(requests, contexts, st.integers(0, 7))
def test_a_first_guess_of_drafts_is_a_share_of_a_plain_step_for_each(count, context, steps):
    guessed = GuessedDrafts(TARGET, 0.25)
    shape = verify_shape(count, context, steps)
    plain_s = TARGET.step_s(decode=verify_shape(count, context, 0))
    assert guessed.step_s(prefill=BatchShape(), decode=shape, graph=True) == pytest.approx(
        TARGET.step_s(decode=shape) + steps * 0.25 * plain_s
    )
    chunk = BatchShape.of([(100, 0)])
    assert guessed.step_s(prefill=chunk, decode=BatchShape(), graph=False) == TARGET.step_s(prefill=chunk)


@settings(deadline=None)
@given(requests, st.integers(16, 4000), st.integers(2, 8))
def test_the_draft_in_the_middle_stands_for_all(count, length, steps):
    each = 0.0
    for drafted in range(1, steps):
        context = count * (length + drafted)
        each += DRAFTING.step_s(decode=BatchShape(count, count, context, context, context, count), graph=True)
    found = Speculation(DRAFTING, 3, ACCEPTANCE).decode(WHOLE, count, count * length, steps)
    assert found.draft_s == pytest.approx(each, rel=1e-3)


@settings(deadline=None)
@given(st.integers(1, 70), st.integers(16, 4000), st.integers(1, 8))
def test_steps_are_padded_by_requests_as_graphs_are_captured(count, length, steps):
    shape = verify_shape(count, count * length, steps)
    size = next((size for size in SIZES if size >= count), None)
    if size is None:
        beyond, eager = PADDED.step(decode=shape, graph=True), WHOLE.step(decode=shape)
        assert beyond._replace(launch_s=0.0) == eager._replace(launch_s=0.0)
        assert beyond.launch_s >= eager.launch_s
        return
    rows = (size - count) * (steps + 1)
    padded = shape._replace(padded_rows=rows, padded_logit_rows=rows)
    assert PADDED.step(decode=shape, graph=True) == WHOLE.step(decode=padded, graph=True)
    extend = shape._replace(logit_rows=count)
    padded = extend._replace(padded_rows=rows, padded_logit_rows=size - count)
    assert PADDED.step(decode=extend, graph=True) == WHOLE.step(decode=padded, graph=True)


@settings(deadline=None)
@given(requests, st.integers(16, 4000), st.integers(0, 7))
def test_more_drafts_take_longer(count, length, steps):
    speculation = Speculation(DRAFTING, 3, ACCEPTANCE)
    fewer, more = (speculation.decode(PADDED, count, count * length, k) for k in (steps, steps + 1))
    assert more.draft_s >= fewer.draft_s
    # From one row per request to two another attention kernel runs, of which each has a time of its own.
    assert steps == 0 or more.target_s >= fewer.target_s * (1 - 1e-9)


def test_prompts_go_through_both_models_and_nothing_is_drafted():
    prefill, decode = BatchShape.of([(100, 50)]), BatchShape.of(decode_contexts=[10, 20])
    time = Speculation(DRAFT, 3, ACCEPTANCE).prefill(TARGET, prefill, decode)
    shapes = {"prefill": prefill, "decode": decode}
    assert time == (0.0, TARGET.step_s(**shapes), DRAFT.step_s(**shapes))


def test_a_share_of_the_targets_steps():
    shapes = {"prefill": BatchShape.of([(100, 50)]), "decode": BatchShape(), "graph": False}
    assert ShareOf(TARGET, 0.25).step_s(**shapes) == 0.25 * TARGET.step_s(**shapes)
    for share in (-0.1, 1.5, float("nan")):
        with pytest.raises(FieldError, match="share"):
            ShareOf(TARGET, share)


def test_fewer_than_one_draft_is_no_speculation():
    with pytest.raises(FieldError, match="steps"):
        Speculation(DRAFT, 0, ACCEPTANCE)


def test_a_model_without_a_draft_model_is_refused():
    with pytest.raises(InputError, match=r"virtual: draft = None: has no draft model"):
        check_draft(LLAMA.rank_model, None, where="virtual")
    other = dataclasses.replace(LLAMA, vocab_size=32000).rank_model
    with pytest.raises(InputError, match=r"conf: small\.vocab_size = 32000: has another vocabulary; allowed: 128256"):
        check_draft(LLAMA.rank_model, other, where="conf", key="small")
    assert check_draft(LLAMA.rank_model, HEAD.rank_model, where="conf") is HEAD.rank_model
