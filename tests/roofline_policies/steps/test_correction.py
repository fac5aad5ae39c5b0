"""What is learned of a predictor's errors, against weighted least squares and against made-up devices."""

from math import isfinite, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roofline_policies.model.batch import BatchShape
from roofline_policies.steps.correction import (
    FARTHEST,
    FLATNESS,
    LEAST_SPREAD,
    MEMORY,
    PRIOR_SPREAD,
    REGIONS,
    CorrectedSteps,
    Line,
    StepCorrection,
    Z,
)
from roofline_policies.steps.speculation import verify_shape

PREFILL, DECODE = BatchShape.of(prefill=[(100, 0)]), BatchShape.of(decode_contexts=[50] * 4)


def predicted(count, seed=0, low=0.002, high=0.2):
    """Step times of all sizes, log-uniform."""
    return np.exp(np.random.default_rng(seed).uniform(np.log(low), np.log(high), count))


def learned(pairs, correction=None):
    correction = correction or StepCorrection()
    for expected, took in pairs:
        correction.observe(float(expected), float(took))
    return correction


def oracle(x, y, weights):
    """Intercept and slope by numpy: rows times the root of their weights, and a row that believes in no slope."""
    mean_x = np.average(x, weights=weights)
    rows = np.column_stack([np.ones_like(x), x]) * np.sqrt(weights)[:, None]
    belief = [0.0, sqrt(FLATNESS * weights.sum()) * mean_x]
    (intercept, slope), *_ = np.linalg.lstsq(np.vstack([rows, belief]), np.append(y * np.sqrt(weights), 0.0))
    return intercept, slope


@pytest.mark.parametrize("steps", [2, 5, 30, 400])
@pytest.mark.parametrize(("scale", "add_s"), [(1.0, 0.0), (1.3, 0.003), (0.7, 0.001), (2.5, 0.0005)])
def test_it_is_the_weighted_least_squares_of_relative_errors(steps, scale, add_s):
    times = predicted(steps, seed=1, low=0.005)
    took = (scale * times + add_s) * np.random.default_rng(2).uniform(0.9, 1.1, steps)
    line = learned(zip(times, took, strict=True)).line
    weights = (1 - 1 / MEMORY) ** np.arange(steps - 1, -1, -1.0)
    intercept, slope = oracle(1 / times, took / times, weights)
    if slope < 0:  # no step takes less than no time beside what was predicted
        intercept, slope = np.average(took / times, weights=weights), 0.0
    assert (line.scale, line.add_s) == pytest.approx((intercept, slope), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize(("scale", "add_s"), [(1.0, 0.0), (1.3, 0.0), (0.8, 0.002), (1.5, 0.01)])
def test_a_scale_and_a_constant_are_found_in_the_noise(scale, add_s):
    times = predicted(2000)
    took = (scale * times + add_s) * (1 + 0.05 * np.random.default_rng(3).standard_normal(2000))
    line = learned(zip(times, took, strict=True)).line
    for size in (0.002, 0.02, 0.2):
        assert line.seconds(size) == pytest.approx(scale * size + add_s, rel=0.08)
    assert line.spread == pytest.approx(0.05, rel=0.4)


@pytest.mark.parametrize("bias", [0.7, 1.0, 1.3])
@pytest.mark.parametrize("noise", [0.02, 0.2])
def test_a_biased_and_noisy_predictor_keeps_its_promise(bias, noise):
    """Steps judged before they are learned from: about one in a hundred exceeds what was promised of it."""
    count = 20_000
    times = predicted(count)
    took = (bias * times + 0.001) * np.maximum(0.05, 1 + noise * np.random.default_rng(4).standard_normal(count))
    correction, exceeded, error = StepCorrection(), 0, 0.0
    for number, (expected, real) in enumerate(zip(times, took, strict=True)):
        line = correction.line
        if number >= 200:
            exceeded += real > line.seconds(expected) * (1 + Z * line.spread)
            error += line.seconds(expected) / (bias * expected + 0.001) - 1
        correction.observe(expected, real)
    assert exceeded / (count - 200) < 0.0125
    assert abs(error / (count - 200)) < 0.02


def test_the_margin_follows_the_noise():
    times = predicted(4000)
    quiet = learned((t, 1.3 * t) for t in times)
    assert quiet.line[:3] == pytest.approx((1.3, 0.0, LEAST_SPREAD), abs=1e-6)
    draws = np.random.default_rng(5).standard_normal(1000)
    noisy = learned(((t, 1.3 * t * (1 + 0.15 * draw)) for t, draw in zip(times, draws, strict=False)), quiet)
    assert noisy.line.spread == pytest.approx(0.15, rel=0.35)


@pytest.mark.parametrize(("noise", "spread"), [(0.0, LEAST_SPREAD), (0.003, LEAST_SPREAD), (0.03, 0.03)])
def test_there_is_a_margin_on_the_most_regular_device_and_no_larger_one_than_it_needs(noise, spread):
    times = predicted(4000)
    draws = np.random.default_rng(6).standard_normal(4000)
    line = learned((t, 0.9 * t * (1 + noise * draw)) for t, draw in zip(times, draws, strict=True)).line
    assert line.spread == pytest.approx(spread, rel=0.35 if spread > LEAST_SPREAD else 1e-9)
    steps = CorrectedSteps(Told(), prefill=line)
    assert steps.margin(prefill=True, decode=False) == 1.0 + Z * line.spread


def test_the_least_spread_does_not_hide_what_is_learned_below_it():
    """Noise that starts on a regular device counts from there, not from the least spread."""
    quiet = learned((t, t) for t in predicted(1000))
    assert sqrt(quiet._variance) < 1e-3
    assert quiet.line.spread == LEAST_SPREAD


@pytest.mark.parametrize("factor", [1000.0, 1e9, 1e-6])
def test_one_step_in_which_something_else_happened_moves_next_to_nothing(factor):
    times = predicted(500)
    correction = learned((t, 1.2 * t + 0.001) for t in times)
    before = correction.line
    correction.observe(0.02, 0.02 * factor)
    for size in (0.002, 0.02, 0.2):
        moved = correction.line.seconds(size) / before.seconds(size)
        assert abs(moved - 1) < 2.2 * (FARTHEST - 1) / MEMORY
    assert correction.line.spread < 0.35


@pytest.mark.parametrize("factor", [0.4, 2.0, 2.9, 10.0])
def test_a_shift_that_stays_is_followed(factor):
    times = predicted(1000)
    correction = learned((t, t) for t in times[:500])
    learned(((t, factor * t) for t in times[500:]), correction)
    assert correction.line.seconds(0.02) == pytest.approx(factor * 0.02, rel=0.05)


def test_nothing_is_learned_from_nonsense():
    correction = StepCorrection()
    for pair in [
        (0.0, 1.0), (-1.0, 1.0), (float("nan"), 1.0), (float("inf"), 1.0), (1.0, 0.0), (1.0, -1.0),
        (1.0, float("nan")), (1.0, float("inf")),
    ]:  # fmt: skip
        correction.observe(*pair)
    assert (correction.steps, correction.line) == (0, Line(1.0, 0.0, PRIOR_SPREAD))


positive = st.floats(0, exclude_min=True, allow_infinity=False, allow_nan=False)
usual = st.floats(1e-7, 1e5)


@settings(deadline=None)
@given(st.lists(st.tuples(st.one_of(usual, positive), st.one_of(usual, positive)), max_size=60), usual)
def test_whatever_is_observed_the_line_is_finite_and_steps_take_time(pairs, size):
    correction = StepCorrection()
    for pair in pairs:
        correction.observe(*pair)
        line = correction.line
        assert all(map(isfinite, line[:3])), (pair, line)
        assert line.scale > 0
        assert line.add_s >= 0
        assert line.spread >= LEAST_SPREAD
        assert 0 < line.seconds(size) < float("inf")


@pytest.mark.parametrize("ratio", [0.5, 1.0, 1.3, 2.9])
def test_a_predictor_that_always_errs_alike_is_put_right_at_once(ratio):
    assert learned([(0.02, ratio * 0.02)]).line[:2] == pytest.approx((ratio, 0.0))


@pytest.mark.parametrize(("first", "rest", "soon"), [(1000.0, 1.0, 32), (1e-3, 1.0, 32), (50.0, 50.0, 32)])
def test_a_first_step_that_compiles_something_is_soon_forgotten(first, rest, soon):
    """And a predictor that is far from the device is soon put right."""
    correction = learned([(0.02, first * 0.02)])
    learned(((t, rest * t) for t in predicted(soon, low=0.01)), correction)
    assert correction.line.seconds(0.02) == pytest.approx(rest * 0.02, rel=0.15)


class Told:
    asked = 0

    def step_s(self, *, prefill, decode, graph):
        self.asked += 1
        return 1.0 * prefill.new_tokens + 10.0 * decode.requests + 0.5 * graph


def test_each_kind_of_step_has_its_own_line():
    steps = CorrectedSteps(Told(), Line(2.0, 1.0, 0.1), Line(3.0, 0.25, 0.2), Line(0.5, 0.0, 0.4))
    assert steps.step_s(prefill=PREFILL) == 2.0 * 100 + 1.0
    assert steps.step_s(decode=DECODE, graph=True) == 3.0 * 40.5 + 0.25
    assert steps.step_s(prefill=PREFILL, decode=DECODE) == 0.5 * 140
    assert steps.margin(prefill=True, decode=False) == 1 + 2.5 * 0.1
    assert steps.margin(prefill=False, decode=True) == 1 + 2.5 * 0.2
    assert steps.margin(prefill=True, decode=True) == 1 + 2.5 * 0.4
    assert CorrectedSteps(Told()).step_s(prefill=PREFILL) == 100.0


def test_sums_of_the_batch_cost_what_was_learned_of_them():
    prompts, rows = (0.5, 0.001, 3.0, 0.25), (4.0, 0.5, 8.0)
    steps = CorrectedSteps(
        Told(), Line(1.0, each_s=prompts[:2]), Line(2.0, each_s=rows[:2]), Line(1.0, 7.0, each_s=prompts)
    )
    told_s = 100.0 + 0.5 * 100 + 0.001 * 5050
    assert steps.step_s(prefill=PREFILL) == pytest.approx(told_s)
    assert steps.step_s(decode=DECODE) == pytest.approx(2.0 * 40 + 4.0 * 4 + 0.5 * 200)
    assert steps.step_s(prefill=PREFILL, decode=DECODE) == pytest.approx(told_s + 40 + 7.0 + 4 * 3.0 + 200 * 0.25)
    drafts = CorrectedSteps(Told(), decode=Line(1.0, each_s=rows))
    verify = verify_shape(4, 200, 3)
    assert (verify.requests, verify.context_tokens, verify.new_tokens) == (4, 216, 16)
    assert drafts.step_s(decode=verify) == pytest.approx(40 + 4.0 * 4 + 0.5 * 216 + 8.0 * 16)


def test_a_margin_is_that_of_its_region_where_one_is_known():
    line = Line(1.0, 0.0, 0.1, (), tuple(0.01 * place for place in range(REGIONS)))
    steps = CorrectedSteps(Told(), prefill=line, decode=Line(1.0, 0.0, 0.2))
    sizes = {1: 0, 2: 1, 7: 1, 8: 2, 31: 2, 32: 3, 128: 3, 129: 4, 256: 4, 257: 5, 384: 5, 385: 6, 512: 6, 513: 7}
    sizes |= {768: 7, 1024: 8, 1025: 9, 2048: 9, 4096: 10, 8192: 11, 8193: 12, 10**6: 12}
    for rows, place in sizes.items():
        assert steps.margin(prefill=True, decode=False, rows=rows) == 1 + Z * 0.01 * place
        assert steps.margin(prefill=False, decode=True, rows=rows) == 1 + Z * 0.2
    assert steps.margin(prefill=True, decode=False) == 1 + Z * 0.1


def test_a_question_is_passed_on_once_and_a_graph_is_another_question():
    told = Told()
    steps = CorrectedSteps(told, decode=Line(2.0, 0.0, 0.1), asked={})
    for _ in range(3):
        assert steps.step_s(decode=DECODE, graph=True) == 81.0
        assert steps.step_s(decode=DECODE, graph=False) == 80.0
        assert steps.step_s(prefill=PREFILL) == 100.0
    assert told.asked == 3


def test_a_prior_is_where_learning_starts():
    prior = Line(1.5, 0.0, 0.05)
    assert StepCorrection(prior).line == prior
