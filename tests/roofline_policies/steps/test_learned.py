"""What one kind of step learns, against made-up devices whose times are known, and what holds whatever it is fed."""

import pickle
from itertools import pairwise
from math import exp, isfinite, log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roofline_policies.steps.correction import FARTHEST, LEAST_SPREAD, MEMORY, StepCorrection, Z, region
from roofline_policies.steps.evidence import CAUTION, FADE, FADES_EVERY, THIN, Whole
from roofline_policies.steps.learned import LearnedKind


def batches(count, seed=0):
    """Predicted seconds, requests and KV tokens of decode steps that wander."""
    random = np.random.default_rng(seed)
    rows = np.clip(np.cumsum(random.integers(-3, 4, count)) + 40, 1, 200)
    tokens = rows * random.integers(300, 1500, count)
    return [(0.004 + 2e-8 * held, (int(batch), int(held))) for batch, held in zip(rows, tokens, strict=True)]


def drawn_batches(count, seed=0):
    """The same of all sizes up to 200 requests, in no order."""
    random = np.random.default_rng(seed)
    rows = random.integers(1, 201, count)
    tokens = rows * random.integers(300, 1500, count)
    return [(0.004 + 2e-8 * held, (int(batch), int(held))) for batch, held in zip(rows, tokens, strict=True)]


def taught(kind, steps, took):
    """Feed steps; the relative errors of what was expected of each before it was learned from."""
    errors = []
    for number, (predicted_s, sums) in enumerate(steps):
        measured_s = took(number, predicted_s, sums)
        errors.append(kind.line.seconds(predicted_s, sums) / measured_s - 1.0)
        kind.observe(predicted_s, sums, sums[0], measured_s)
    return np.array(errors)


def rows_cost(number, predicted_s, sums):
    """A bias that depends on the batch: each request takes time that the prediction does not know of."""
    return 0.9 * predicted_s + 5e-5 * sums[0]


def test_what_a_sum_costs_is_found_and_answers():
    kind = LearnedKind(2, Whole())
    errors = taught(kind, drawn_batches(2000), rows_cost)
    assert kind.shown.answers == "fit"
    assert np.median(abs(errors[500:])) < 0.01
    for rows, tokens in [(10, 8_000), (100, 20_000), (400, 400_000)]:  # the last is twice as large as any that ran
        asked = (0.004 + 2e-8 * tokens, (rows, tokens))
        assert kind.line.seconds(*asked) == pytest.approx(rows_cost(0, *asked), rel=0.03)
    assert kind.start.line.seconds(asked[0]) < 0.8 * rows_cost(0, *asked)


def test_it_is_better_than_a_scale_and_a_constant_where_the_bias_depends_on_the_batch():
    kind = LearnedKind(2, Whole())
    taught(kind, batches(1000), rows_cost)
    of_start, of_fit = kind.errors
    assert of_fit < 0.1 * of_start


def test_where_a_scale_is_all_there_is_to_learn_the_start_answers():
    kind, noise = LearnedKind(2, Whole()), np.random.default_rng(1).normal(1.0, 0.1, 3000)
    errors = taught(kind, batches(3000), lambda number, predicted_s, sums: 1.4 * predicted_s * noise[number])
    assert kind.shown.answers == "start"
    true = (errors[200:] + 1.0) * noise[200:] - 1.0
    assert np.median(abs(true)) < 0.02


pairs = st.lists(
    st.tuples(
        st.one_of(st.floats(1e-6, 1e3), st.floats()),
        st.integers(1, 10**5),
        st.integers(0, 10**9),
        st.one_of(st.floats(1e-6, 1e3), st.floats()),
    ),
    max_size=80,
)


@given(pairs)
def test_whatever_is_fed_the_error_of_what_answers_is_at_most_the_starts(steps):
    kind = LearnedKind(2, Whole())
    for predicted_s, requests, tokens, measured_s in steps:
        kind.observe(predicted_s, (requests, tokens), requests, measured_s)
        of_start, of_fit = kind.errors
        assert (of_fit if kind.by_fit else of_start) <= of_start
        line = kind.line
        assert line.each_s if kind.by_fit else not line.each_s
        assert min(line[:2] + line.each_s) >= 0.0
        assert all(map(isfinite, (*line[:3], *line.each_s, *line.spreads)))
        assert min(line.spread, *line.spreads) >= LEAST_SPREAD
        assert 0.0 < line.seconds(0.01, (requests, tokens)) < float("inf")
    assert kind.steps + kind.rejected == len(steps)


def test_the_errors_are_of_steps_before_they_were_learned_from():
    """Two steps: the start expected 0.01 s of the first, and then twice as much, as it had seen."""
    kind = LearnedKind(2, Whole())
    kind.observe(0.01, (4, 100), 4, 0.01)
    assert kind.errors == (0.0, 0.0)
    kind.observe(0.01, (4, 100), 4, 0.02)
    squares = log(2) ** 2 / (1 + CAUTION)  # after one step
    assert kind.errors == (pytest.approx(squares), pytest.approx(squares))
    kind.observe(0.01, (4, 100), 4, 0.015)
    start_s = 0.01 * (2 + 1 - 1 / MEMORY) / (2 - 1 / MEMORY)
    squares = squares * (1 - 1 / MEMORY) + log(0.015 / start_s) ** 2 * 2 / (2 + CAUTION)
    assert kind.errors[0] == pytest.approx(squares)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf"), 1e300])
def test_times_that_no_step_takes_are_counted_and_nothing_is_learned(seconds):
    kind = LearnedKind(2, Whole())
    taught(kind, batches(100), rows_cost)
    before = (kind.line, kind.errors, kind.steps)
    kind.observe(0.01, (40, 40_000), 40, seconds)
    kind.observe(seconds, (40, 40_000), 40, 0.01)
    assert (kind.line, kind.errors, kind.steps) == before
    assert kind.shown.rejected == 2


@pytest.mark.parametrize("seconds", [2.0, 600.0, 1e-6])
@pytest.mark.parametrize("device", [rows_cost, lambda number, predicted_s, sums: predicted_s], ids=["fit", "start"])
def test_a_stall_moves_next_to_nothing_and_is_counted(device, seconds):
    kind, asked = LearnedKind(2, Whole()), (0.006, (40, 80_000))
    taught(kind, drawn_batches(480), device)
    before = kind.line.seconds(*asked)
    kind.observe(*asked, 40, seconds)
    taught(kind, drawn_batches(7, seed=3), device)  # until its block is judged
    assert kind.shown.bounded == 1
    assert kind.line.seconds(*asked) == pytest.approx(before, rel=2.5 * (FARTHEST - 1) / MEMORY)
    taught(kind, drawn_batches(400, seed=4), device)
    assert kind.line.seconds(*asked) == pytest.approx(device(0, *asked), rel=0.01)


@pytest.mark.parametrize("noise", [0.02, 0.1])
def test_clocks_that_fall_are_followed_before_the_start_does(noise):
    kind, drawn = LearnedKind(2, Whole()), np.random.default_rng(2).normal(1.0, noise, 600)
    errors = taught(kind, batches(600), lambda number, p, sums: p * drawn[number] / (1.0 if number < 400 else 0.7))
    true = (errors + 1.0) * drawn - 1.0
    assert abs(true[360:400]).max() < 2.5 * noise
    assert np.median(abs(true[440:480])) < 0.06
    start = [abs(one) for one in taught_start(noise)[440:480]]
    assert np.median(abs(true[440:480])) < 0.5 * np.median(start)


def taught_start(noise):
    """The same with a scale and a constant."""
    start, drawn, errors = StepCorrection(), np.random.default_rng(2).normal(1.0, noise, 600), []
    for number, (predicted_s, _) in enumerate(batches(600)):
        true_s = predicted_s / (1.0 if number < 400 else 0.7)
        errors.append(start.line.seconds(predicted_s) / true_s - 1.0)
        start.observe(predicted_s, true_s * drawn[number])
    return errors


def margins(kind, rows):
    return (kind.line.margin(rows) - 1.0) / Z


def test_the_margin_is_that_of_the_batch_size():
    """Small batches are noisy, large ones are not."""
    kind, random = LearnedKind(2, Whole()), np.random.default_rng(3)
    for _ in range(2000):
        rows = int(random.choice([4, 100]))
        noise = 0.2 if rows == 4 else 0.03
        kind.observe(0.01, (rows, rows * 500), rows, 0.01 * max(0.1, random.normal(1.0, noise)))
    assert region(4) != region(100)
    whole = (0.2**2 + 0.03**2) / 2
    for rows, noise in {4: 0.2, 100: 0.03}.items():
        expected = ((MEMORY * noise**2 + THIN * whole) / (MEMORY + THIN)) ** 0.5
        assert margins(kind, rows) == pytest.approx(expected, rel=0.25)
    assert margins(kind, 100) < 0.6 * kind.line.spread < kind.line.spread < margins(kind, 4)
    assert margins(kind, 5000) == kind.line.spread  # of which nothing is known


@pytest.mark.parametrize(("bias", "noise"), [(1.0, 0.05), (1.6, 0.02), (0.5, 0.2)])
def test_what_is_promised_is_exceeded_by_about_one_step_in_a_hundred(bias, noise):
    kind, random, exceeded = LearnedKind(2, Whole()), np.random.default_rng(5), 0
    steps = batches(8000, seed=6)
    for number, (predicted_s, sums) in enumerate(steps):
        measured_s = (bias * predicted_s + 1e-4 * sums[0]) * max(0.1, random.normal(1.0, noise))
        promised_s = kind.line.seconds(predicted_s, sums) * kind.line.margin(sums[0])
        exceeded += number >= 200 and measured_s > promised_s
        kind.observe(predicted_s, sums, sums[0], measured_s)
    assert exceeded / (len(steps) - 200) < 0.0125


def test_it_is_cautious_at_first_and_less_so_with_every_step():
    kind = LearnedKind(2, Whole())
    seen = [kind.line.spread]
    for predicted_s, sums in batches(300):
        kind.observe(predicted_s, sums, sums[0], predicted_s)
        seen.append(kind.line.spread)
    assert seen[0] == pytest.approx(0.3)
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(seen))
    assert seen[-1] == LEAST_SPREAD


def test_a_kind_that_no_longer_runs_does_not_keep_the_margin_of_its_first_steps():
    whole = Whole()
    unused, used = LearnedKind(3, whole), LearnedKind(2, whole)
    for _ in range(20):  # the first ones compile something
        unused.observe(0.01, (500, 10_000, 1), 500, 0.03 if _ % 2 else 0.01)
    first = unused.line.spread
    assert first > 0.19  # a margin of 1.48, as was seen
    random = np.random.default_rng(7)
    for number in range(2000):
        used.observe(0.01, (40, 40_000), 40, 0.01 * random.normal(1.0, 0.03))
        if number % FADES_EVERY == 0:
            unused.fade()
            used.fade()
    assert unused.line.spread < 0.06
    assert unused.line.seconds(0.01, (500, 10_000, 1)) == pytest.approx(0.02, rel=0.3)  # what it takes is kept
    assert used.line.spread == pytest.approx(0.03, rel=0.3)


def test_evidence_that_fades_is_replaced_by_that_of_all_steps():
    whole = Whole()
    kind = LearnedKind(2, whole)
    for _ in range(50):
        kind.observe(0.01, (8, 100), 8, 0.01)
    whole.add(10_000, 10_000 * 0.2**2)
    for _ in range(400):
        kind.fade()
    assert FADE**400 * THIN < 1e-3
    assert kind.line.spread == pytest.approx(0.2, rel=0.02)


def test_equal_steps_teach_equal_things():
    one, other = LearnedKind(2, Whole()), LearnedKind(2, Whole())
    taught(one, batches(333), rows_cost)
    taught(other, batches(333), rows_cost)
    assert (one.line, one.errors, one.shown) == (other.line, other.errors, other.shown)


def test_it_does_not_grow():
    kind = LearnedKind(2, Whole())
    taught(kind, batches(128), rows_cost)
    size = len(pickle.dumps(kind))
    taught(kind, batches(20_000, seed=8), rows_cost)
    assert len(pickle.dumps(kind)) < 1.2 * size


def test_a_fit_is_not_below_the_start_by_more_than_that_was_above_what_was_measured_of_batches_as_large():
    kind = LearnedKind(2, Whole())
    taught(kind, batches(600), rows_cost)
    assert kind.by_fit
    line = kind.line
    scale, add_s, mosts = line.start
    for rows, held, predicted_s in [(100, 90_000, 0.0058), (40, 36_000, 0.00472), (40, 0, 0.01), (100, 10**9, 0.01)]:
        most, start_s = mosts[region(rows)], scale * predicted_s + add_s
        own_s = line.scale * predicted_s + line.add_s + line.each_s[0] * rows + line.each_s[1] * held
        assert exp(Z * LEAST_SPREAD) <= most < 1.5
        assert line.seconds(predicted_s, (rows, held), rows) == pytest.approx(max(own_s, start_s / most))
        assert line.seconds(predicted_s, (rows, held)) == pytest.approx(own_s)  # of batches of any size
    # Where it has seen enough of late it is the fit's own answer.
    own_s = line.seconds(0.0058, (100, 90_000))
    assert line.seconds(0.0058, (100, 90_000), 100) == own_s == pytest.approx(rows_cost(0, 0.0058, (100, 0)), rel=0.03)
    # Far fewer rows than of late, and the start stands against it.
    assert line.seconds(0.00472, (40, 36_000), 40) > 1.1 * line.seconds(0.00472, (40, 36_000))
    # Of sizes of which nothing was seen the start knows no more than the fit.
    assert mosts[region(10**6)] == float("inf")
    assert line.seconds(0.01, (10**6, 0), 10**6) == line.seconds(0.01, (10**6, 0))


OF_WINDOWS = {0: 0.0, 1: 2e-3, 3: 5e-3, 5: 8e-3}
"""Seconds of drafting beside what is predicted: the first draft has a pass of its own, and each further one another."""


def window_cost(number, predicted_s, sums):
    return 1.2 * (predicted_s + OF_WINDOWS[sums[2]])


def windows_of(order, seed=0):
    """Predicted seconds, and requests, KV tokens and drafts of steps with these numbers of drafts."""
    random = np.random.default_rng(seed)
    held = random.integers(8_000, 12_000, len(order))
    return [
        (0.004 + 2e-8 * int(tokens) + 1e-4 * window, (8, int(tokens), window))
        for tokens, window in zip(held, order, strict=True)
    ]


def test_what_a_group_takes_is_kept_while_others_run():
    """A few steps of each number of drafts, then 5,000 of one. Without groups two seconds of it take all else along."""
    order = [3] * 10 + [0] * 12 + [1] * 12 + [5] * 12 + [3] * 5000
    grouped, alone = LearnedKind(3, Whole(), 2), LearnedKind(3, Whole())
    for kind in (grouped, alone):
        taught(kind, windows_of(order), window_cost)
    errors = {}
    for name, kind in (("grouped", grouped), ("alone", alone)):
        asked = windows_of([0, 1, 5], seed=1)
        errors[name] = max(abs(kind.line.seconds(*one) / window_cost(0, *one) - 1.0) for one in asked)
    assert errors["grouped"] < 0.04
    assert errors["alone"] > 0.2
    assert grouped.groups == {3: 5010, 0: 12, 1: 12, 5: 12}


def test_a_group_that_runs_for_the_first_time_is_taken_at_its_word():
    """Far from what was expected, it is neither an outlier nor another device: 12 steps of it say what it takes, and
    nothing else is forgotten."""
    kind = LearnedKind(3, Whole(), 2)
    taught(kind, windows_of([3] * 400), window_cost)
    weight = kind.fit.weight
    errors = taught(kind, windows_of([0] * 12), window_cost)
    assert abs(errors[0]) > 0.3
    assert abs(errors[-1]) < 0.03
    assert kind.fit.weight > weight
    (asked,) = windows_of([3], seed=3)
    assert kind.line.seconds(*asked) == pytest.approx(window_cost(0, *asked), rel=0.03)


def test_a_device_that_changes_changes_what_every_group_takes():
    kind = LearnedKind(3, Whole(), 2)
    taught(kind, windows_of([0] * 200 + [3] * 200), window_cost)
    taught(kind, windows_of([3] * 400), lambda number, predicted_s, sums: 1.5 * window_cost(number, predicted_s, sums))
    (asked,) = windows_of([3], seed=3)
    assert kind.line.seconds(*asked) == pytest.approx(1.5 * window_cost(0, *asked), rel=0.03)
