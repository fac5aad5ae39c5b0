"""How long answers are, against the exact quantile of those that count."""

import random
from statistics import median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roofline_policies.slo.output_lengths import DOUBT, FEWEST, FEWEST_EARLY, KEPT, QUANTILE, OutputLengths

ERROR = 0.017
"""Of ranks, that the sketch states, with 99% confidence."""


def learned(lengths):
    known = OutputLengths()
    for length in lengths:
        known.add(length)
    return known


def rank_range(least, lengths):
    """Shares of the answers that are shorter, and at most as long."""
    return sum(one < least for one in lengths) / len(lengths), sum(one <= least for one in lengths) / len(lengths)


@pytest.mark.parametrize("name", ["uniform", "geometric", "two_kinds"])
@pytest.mark.parametrize("count", [100, 640, KEPT - 1, KEPT + 16, 2 * KEPT - 16])
def test_all_but_few_answers_are_at_least_as_long_within_the_stated_error(name, count):
    draw = random.Random(name)
    kinds = {
        "uniform": lambda: draw.randint(1, 4000),
        "geometric": lambda: 1 + int(draw.expovariate(1 / 300)),
        "two_kinds": lambda: draw.choice([draw.randint(1, 20), draw.randint(500, 900)]),
    }
    misses = 0
    for _ in range(30):
        lengths = [kinds[name]() for _ in range(count)]
        shorter, at_most = rank_range(learned(lengths).least(), lengths)
        misses += not (shorter - ERROR <= QUANTILE <= at_most + ERROR)
        assert shorter - 2 * ERROR <= QUANTILE <= at_most + 2 * ERROR
    assert misses <= 2


def test_what_is_long_ago_is_forgotten():
    known = learned([10] * 3 * KEPT)
    assert known.least() == 10
    for _ in range(2 * KEPT):
        known.add(700)
    assert known.least() == 700


def test_before_the_first_answer_one_token_is_counted_on():
    assert OutputLengths().least() == 1


def test_few_answers_are_no_sample_of_which_one_in_fifty_could_be_told():
    known = OutputLengths()
    for count in range(FEWEST):
        known.running([])
        assert known.least() == (1 if count < FEWEST_EARLY else 700 * count // (count + DOUBT))
        known.running([700] * 10)
        assert known.least() == 700 * (count + 10) // (count + 10 + DOUBT)
        known.add(700)
    assert known.known
    assert known.least() == 700


def test_what_came_before_there_were_enough_counts_once_there_are():
    known = learned([5] * (FEWEST // 2) + [700] * (FEWEST - 1 - FEWEST // 2))
    assert known.least() == 1
    known.add(700)
    assert known.least() == 5
    known.running([9000] * 40)
    assert known.least() == 5


@given(st.lists(st.integers(1, 5000), max_size=FEWEST - 1), st.lists(st.integers(0, 5000), max_size=80))
def test_before_there_were_enough_none_was_as_short_as_what_is_counted_on(ended, running):
    """And the more have shown it, the nearer it is."""
    known = learned(ended)
    known.running(running)
    assert 1 <= known.least() <= min([*ended, 10**6]) or known.least() == 1
    reached = sum(tokens >= known.least() for tokens in running) + len(ended)
    assert known.least() == 1 or reached >= FEWEST_EARLY
    known.running([*running, *[6000] * 5])
    more = known.least()
    known.running([*running, *[6000] * 50])
    assert known.least() >= more


@pytest.mark.parametrize("sigma", [0.35, 0.7, 1.0])
@pytest.mark.parametrize("ended", [0, 4, 16, 40])
def test_few_answers_are_shorter_than_what_is_counted_on_early(sigma, ended):
    """Log-normal lengths, one token a step. ``ended`` of 30 at a time have, the short ones first."""
    draw, shorter = random.Random(1), []
    for _ in range(200):
        lengths = [1 + int(500 * draw.lognormvariate(0.0, sigma)) for _ in range(30 + ended)]
        lasting = sorted(lengths)
        now = lasting[ended] if ended else lasting[0]
        known = learned(lasting[:ended])
        known.running([now - 1] * 30)
        shorter.append(sum(draw.lognormvariate(0.0, sigma) * 500 < known.least() - 1 for _ in range(50)) / 50)
    assert sum(shorter) / len(shorter) < 0.03


def test_once_there_were_enough_there_always_are():
    """Also just after the older answers were set aside, when there are few newer ones."""
    known = learned([40] * KEPT)
    for _ in range(FEWEST):
        known.add(40)
        assert known.least() == 40


@settings(deadline=None)
@given(st.lists(st.integers(0, 10**6), max_size=200))
def test_at_least_one_token_and_never_more_than_was_seen(lengths):
    known = OutputLengths()
    assert known.least() == 1
    for length in lengths:
        known.add(length)
        assert 1 <= known.least() <= max(1, *lengths)
        assert isinstance(known.least(), int)


def test_few_answers_do_not_stand_for_many():
    """The last 2,048 to 4,096 count: a hundred long ones in a row are no reason to expect long ones."""
    known = learned([10] * KEPT + [700] * 100)
    assert known.least() == 10


@pytest.mark.parametrize("tokens", [0, 10, 99, 100, 150, 199, 200, 5000])
def test_what_an_answer_is_expected_to_have_is_the_median_of_the_longer_ones(tokens):
    lengths = list(range(1, 201))
    longer = [length for length in lengths if length > tokens]
    expected = median(longer) if longer else tokens + 1
    assert learned(lengths * 4).expected(tokens) == pytest.approx(expected, abs=200 * ERROR + 1)
    assert learned(lengths * 4).expected(tokens) > tokens


def test_before_there_were_enough_one_more_token_is_expected():
    known = OutputLengths()
    for _ in range(FEWEST - 1):
        known.add(700)
    assert known.expected(0) == known.typical() == 1
    assert known.expected(30) == 31
    known.add(700)
    assert known.typical() == 700
    assert (known.expected(0), known.expected(699), known.expected(700)) == (700, 700, 701)
