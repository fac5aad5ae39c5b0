"""What is asked for lately: rates and means by hand, targets told apart, and bounds on how many."""

from math import exp, inf

import pytest

from roofline_policies.slo.demand import LEAST_SPAN_S, MEMORY_S, MOST_KEPT, MOST_TARGETS, Arrivals, Target
from roofline_policies.slo.objectives import Slo


def test_nothing_is_known_before_a_request_came_and_an_answer_ended():
    arrivals = Arrivals()
    assert arrivals.now(0.0, 100.0) is None
    arrivals.add(0.0, Slo(), 10)
    assert arrivals.now(1.0, None) is None


@pytest.mark.parametrize("per_s", [2.0, 10.0])
def test_a_steady_stream_has_its_rate(per_s):
    arrivals = Arrivals()
    for number in range(int(60 * per_s)):
        arrivals.add(number / per_s, Slo(), 100, 50)
    assert arrivals.now(60.0, 30.0).requests_per_s == pytest.approx(per_s, rel=0.05)


def test_means_by_hand():
    arrivals = Arrivals()
    for tokens, cached in ((100, 0), (300, 600)):
        arrivals.add(5.0, Slo(itl_s=0.1), tokens, cached)
    found = arrivals.now(5.0, 30.0)
    span_s = MEMORY_S * (1.0 - exp(-LEAST_SPAN_S / MEMORY_S))
    assert found.requests_per_s == pytest.approx(2.0 / span_s)
    assert (found.prompt_tokens, found.cached_tokens, found.output_tokens) == (200.0, 300.0, 30.0)
    assert found.prefix_tokens == pytest.approx((100 * 100 + 300 * 900) / 400)
    assert found.targets == (Target(0.1, 1.0),)


def test_requests_count_by_their_weight_and_as_they_fade():
    arrivals = Arrivals()
    arrivals.add(0.0, Slo(itl_s=0.02, weight=3.0), 1)
    arrivals.add(0.0, Slo(), 1)
    assert arrivals.now(0.0, 1.0).targets == (Target(0.02, 0.75), Target(inf, 0.25))
    arrivals.add(MEMORY_S, Slo(), 1)
    (tight, none) = arrivals.now(MEMORY_S, 1.0).targets
    assert tight.share == pytest.approx(3.0 * exp(-1) / (4.0 * exp(-1) + 1.0))
    assert tight.share + none.share == pytest.approx(1.0)
    for second in range(20):
        arrivals.add(10 * MEMORY_S + second, Slo(), 1)
    assert arrivals.now(10 * MEMORY_S + 20, 1.0).targets == (Target(inf, 1.0),)


def test_of_too_many_targets_the_lightest_count_with_the_next_looser_one():
    arrivals = Arrivals()
    for itl_s, weight in ((0.01, 5.0), (0.02, 1.0), (0.03, 5.0), (0.04, 5.0), (0.05, 4.0)):
        arrivals.add(0.0, Slo(itl_s=itl_s, weight=weight), 1)
    assert arrivals.now(0.0, 1.0).targets == (
        Target(0.01, 0.25), Target(0.03, pytest.approx(0.3)), Target(0.04, 0.25), Target(0.05, 0.2),
    )  # fmt: skip


def test_a_number_of_its_own_in_every_request_takes_no_more_and_more_room():
    arrivals = Arrivals()
    for number in range(2000):
        arrivals.add(0.001 * number, Slo(itl_s=0.02 + 1e-5 * number), 1)
    assert len(arrivals._weights) <= MOST_KEPT + 10
    targets = arrivals.now(2.0, 1.0).targets
    assert len(targets) == MOST_TARGETS
    assert sum(one.share for one in targets) == pytest.approx(1.0)
