"""What is known of acceptance: against closed forms, and what it guarantees whatever is seen."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roofline_policies.control.acceptance import BELIEF, PRIOR, AcceptanceTracker
from roofline_policies.steps.acceptance import Acceptance

STEP_S = 0.02


def drafted(tracker, chances, window, *, seconds, start_s=0.0, requests=16, name=None, seed=1):
    """Steps of a process with these probabilities, so many seconds of them; returns when they end."""
    draw = Random(seed)
    for step in range(round(seconds / STEP_S)):
        accepted = []
        for _ in range(requests):
            chain = [draw.random() < chance for chance in chances[:window]]
            accepted.append(chain.index(False) if False in chain else window)
        tracker.observe(start_s + step * STEP_S, window, accepted, [name] * requests)
    return start_s + seconds


@settings(max_examples=15)
@given(
    chances=st.lists(st.floats(0.05, 0.95), min_size=1, max_size=5).map(tuple),
    seed=st.integers(0, 99),
)
def test_what_stays_the_same_is_found(chances, seed):
    tracker = AcceptanceTracker()
    drafted(tracker, chances, len(chances), seconds=12, requests=64, seed=seed)
    reached = 1.0
    for chance, found in zip(chances, tracker.of_all(), strict=True):
        # Weight of the fast count: 64 chains a step, 50 steps a second, half of it gone in 2 s; 5 standard errors.
        seen = 64 / STEP_S * 2.88 * reached
        assert found == pytest.approx(chance, abs=5 * (0.25 / (seen + BELIEF)) ** 0.5 + BELIEF / (seen + BELIEF))
        reached *= chance


@pytest.mark.parametrize(("before", "after"), [((0.9, 0.8), (0.3, 0.2)), ((0.2, 0.2), (0.85, 0.7))])
def test_a_drift_is_followed_within_six_half_lives(before, after):
    tracker = AcceptanceTracker()
    now_s = drafted(tracker, before, 2, seconds=30)
    drafted(tracker, after, 2, seconds=12, start_s=now_s)
    assert tracker.of_all() == pytest.approx(after, abs=0.06)


def test_positions_that_are_not_drafted_now_move_with_the_one_before():
    """0.8, 0.7, 0.6 seen; then the first alone is seen at 0.4, lower by 1.79 on the logit: 0.28 and 0.2 follow."""
    tracker = AcceptanceTracker()
    now_s = drafted(tracker, (0.8, 0.7, 0.6), 3, seconds=20, requests=64)
    now_s = drafted(tracker, (0.4,), 1, seconds=12, start_s=now_s, requests=64)
    assert tracker.of_all() == pytest.approx((0.4, 0.28, 0.2), abs=0.04)
    drafted(tracker, (0.8,), 1, seconds=12, start_s=now_s, requests=64)
    assert tracker.of_all() == pytest.approx((0.8, 0.7, 0.6), abs=0.04)


@given(st.lists(st.tuples(st.integers(1, 4), st.lists(st.integers(0, 4), min_size=1, max_size=6)), min_size=1))
def test_a_class_never_seen_is_like_all(steps):
    tracker = AcceptanceTracker()
    for number, (window, accepted) in enumerate(steps):
        tracker.observe(number * 0.1, window, accepted, [number % 2] * len(accepted))
    assert tracker.of_class(7) == tracker.of_all()
    assert len(tracker.of_all()) == tracker.positions == max(window for window, _ in steps)


@given(
    st.lists(st.tuples(st.integers(1, 6), st.lists(st.tuples(st.integers(0, 6), st.integers(0, 2)), min_size=1))),
    st.randoms(use_true_random=False),
)
def test_shares_are_shares_whatever_comes_and_in_whatever_order(steps, shuffled):
    one, other = AcceptanceTracker(), AcceptanceTracker()
    for number, (window, rows) in enumerate(steps):
        mixed = list(rows)
        shuffled.shuffle(mixed)
        one.observe(number * 0.5, window, [row[0] for row in rows], [row[1] for row in rows])
        other.observe(number * 0.5, window, [row[0] for row in mixed], [row[1] for row in mixed])
    for found in (one.of_all(), one.of_mix(), *(one.of_class(name) for name in range(3))):
        assert all(0.0 <= share <= 1.0 for share in found)
    assert one.of_mix() == pytest.approx(other.of_mix())


def test_classes_are_told_apart_and_mixed_by_what_gets_there():
    tracker = AcceptanceTracker()
    for number in range(400):
        drafted(tracker, (0.9, 0.9), 2, seconds=STEP_S, start_s=number * 2 * STEP_S, name=1, seed=2 * number)
        drafted(tracker, (0.3, 0.1), 2, seconds=STEP_S, start_s=(number * 2 + 1) * STEP_S, name=2, seed=2 * number + 1)
    assert tracker.of_class(1) == pytest.approx((0.9, 0.9), abs=0.05)
    assert tracker.of_class(2) == pytest.approx((0.3, 0.1), abs=0.06)
    easy, hard = tracker.of_class(1), tracker.of_class(2)
    mixed = tracker.of_mix({1: 3, 2: 1})
    # Tokens of a step of the mix are the mean over its requests, whatever the window.
    for window in (1, 2):
        mean = (3 * Acceptance(easy).mean_accepted(window) + Acceptance(hard).mean_accepted(window)) / 4
        assert Acceptance(mixed).mean_accepted(window) == pytest.approx(mean)


def test_a_position_that_no_chain_reached_is_like_the_one_before():
    tracker = AcceptanceTracker()
    now_s = drafted(tracker, (0.0, 0.0), 2, seconds=4)
    drafted(tracker, (0.8,), 1, seconds=20, start_s=now_s)
    first, second = tracker.of_all()
    assert first == pytest.approx(0.8, abs=0.03)
    assert second == pytest.approx(first)


def test_one_chain_that_fails_says_little():
    tracker = AcceptanceTracker()
    tracker.observe(0.0, 2, [0], [None])
    slow = BELIEF * PRIOR / (BELIEF + 1)
    assert tracker.of_all()[0] == pytest.approx(BELIEF * slow / (BELIEF + 1))
    assert tracker.of_all()[0] > 0.5


def test_before_the_first_step_nothing_is_known():
    tracker = AcceptanceTracker()
    tracker.observe(0.0, 3, [], [])
    assert tracker.of_all() == tracker.of_mix() == tracker.of_class(None) == ()
    assert tracker.positions == tracker.steps == 0


def test_classes_beyond_those_told_apart_count_among_all():
    tracker = AcceptanceTracker()
    for name in range(200):
        tracker.observe(name * 0.01, 1, [1], [name])
    assert len(tracker._classes) == 32
    assert tracker.of_class(150) == tracker.of_all()
