"""What SpeculationWindow is held to on a decode loop with drafts: against every fixed number, and against foresight."""

from __future__ import annotations

from itertools import pairwise

import pytest

from roofline_policies.policies import SpeculationWindow
from roofline_policies.steps.acceptance import Acceptance
from roofline_policies.steps.speculation import ShareOf, Speculation
from roofline_policies.testing import LinearSteps
from roofline_policies.testing.drafting import DraftingLoop, TimesAsLong

TARGET = LinearSteps()  # 5 ms, 20 us a row, 10 us a request, 30 ns a token of context
DRIFT = ((0.0, 0.0), (10.0, 0.0), (11.0, -2.5), (20.0, -2.5), (21.0, 1.0))


def loop(requests=8, chances=(0.75, 0.7, 0.65), share=0.1, drift=(), **fields):
    acceptance = Acceptance(chances, drift=drift)
    speculation = Speculation(ShareOf(TARGET, share), 7, acceptance, extends_at_zero=False)
    load = requests if isinstance(requests, tuple) else ((0.0, requests),)
    fields = {"noise": 0.03, "told": TimesAsLong(TARGET, 0.8), **fields}
    return DraftingLoop(TARGET, speculation, load, **fields)


@pytest.mark.parametrize("share", [0.05, 0.3])
@pytest.mark.parametrize("chances", [(0.9, 0.88), (0.7, 0.6), (0.3, 0.2)], ids=["often", "usually", "seldom"])
@pytest.mark.parametrize("requests", [4, 32, 160])
def test_what_does_not_change_is_served_as_by_the_best_fixed_number(requests, chances, share):
    """Trying and first mistakes included: they are once, and the run is 30 s long."""
    ran = loop(requests, chances, share, seconds=30.0)
    best = max(ran.fixed(window).tokens_per_s for window in ran.windows)
    assert ran.under(SpeculationWindow())[0].tokens_per_s >= 0.975 * best


@pytest.mark.parametrize("requests", [8, 64])
def test_acceptance_that_drifts_is_followed(requests):
    ran = loop(requests, drift=DRIFT, seconds=30.0)
    ours = ran.under(SpeculationWindow())[0].tokens_per_s
    assert ours >= max(ran.fixed(window).tokens_per_s for window in ran.windows)
    assert ours >= 0.95 * ran.foreseen().tokens_per_s


def test_batches_that_swing_are_followed():
    ran = loop(((0.0, 2), (6.0, 200), (12.0, 16), (18.0, 96), (24.0, 2)), seconds=30.0)
    ours = ran.under(SpeculationWindow())[0].tokens_per_s
    assert ours >= 0.99 * max(ran.fixed(window).tokens_per_s for window in ran.windows)
    assert ours >= 0.95 * ran.foreseen().tokens_per_s


def test_no_batch_is_served_far_worse_than_a_smaller_one_or_than_without_drafts():
    """What drafts bring ends where the batch fills the device; nothing else may happen there."""
    speeds = []
    for requests in (1, 2, 4, 8, 16, 32, 64, 128, 256):
        ran = loop(requests, seconds=15.0)
        speeds.append(ran.under(SpeculationWindow())[0].tokens_per_s)
        assert speeds[-1] >= 0.97 * ran.fixed(0).tokens_per_s
    assert all(larger >= 0.97 * smaller for smaller, larger in pairwise(speeds))


def test_drafts_that_always_fail_end_at_none_and_stay_cheap():
    ran = loop(16, (0.0,), seconds=60.0)
    made, controller = ran.under(SpeculationWindow())
    assert controller.knobs.speculation_window == 0 or made.trace[-1][0] > 59.0
    assert made.tokens_per_s >= 0.985 * ran.fixed(0).tokens_per_s
    first_s = 2.0
    probing_s = [
        end - start
        for (start, window), (end, _) in zip(made.trace, [*made.trace[1:], (made.seconds, 0)], strict=True)
        if window and start > first_s
    ]
    assert probing_s  # it goes on looking
    assert sum(probing_s) <= 0.05 * made.seconds
    assert max(probing_s) <= 0.15


def test_what_is_accepted_again_is_drafted_again():
    ran = loop(16, (0.8, 0.8), drift=((0.0, -8.0), (20.0, -8.0), (20.1, 0.0)), seconds=40.0)
    made, controller = ran.under(SpeculationWindow())
    back_s = next(second for second, window in made.trace if second > 20.1 and window)
    assert back_s <= 32.0
    assert controller.knobs.speculation_window == 7 or made.windows.get(7, 0.0) + made.windows.get(5, 0.0) > 5.0


def test_a_target_per_gap_is_kept():
    """With 64 requests 7 drafts take 25 ms and more; 12 ms hold one draft or none."""
    ran = loop(64, (0.95, 0.95), gap_s=0.012, seconds=20.0, noise=0.01)
    made, controller = ran.under(SpeculationWindow())
    late_s = sum(seconds for window, seconds in made.windows.items() if ran.fixed(window).longest_s > 0.012)
    assert late_s <= 1.0  # the launch's three drafts, and what was tried
    assert controller.knobs.speculation_window in (0, 1)


def test_equal_runs_have_equal_results():
    one, other = (loop(8, drift=DRIFT, seconds=8.0).under(SpeculationWindow())[0] for _ in range(2))
    assert (one.tokens, one.seconds, one.trace) == (other.tokens, other.seconds, other.trace)
