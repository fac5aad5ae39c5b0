"""The acceptance process: closed forms, levels, errors."""

from __future__ import annotations

import math
from statistics import fmean, pstdev

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roofline_policies.errors import FieldError
from roofline_policies.steps.acceptance import Acceptance

chance = st.floats(0, 1)
inner = st.floats(1e-6, 1 - 1e-6)
chains = st.lists(chance, min_size=1, max_size=6).map(tuple)
drafts = st.integers(0, 12)
levels = st.floats(-20, 20)


@settings(deadline=None)
@given(chance, drafts)
def test_one_probability_for_all_is_a_geometric_series(p, steps):
    expected = steps if p == 1 else p * (1 - p**steps) / (1 - p)
    assert Acceptance((p,)).mean_accepted(steps) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_a_chain_by_hand():
    chain = Acceptance((0.8, 0.5, 0.25))
    assert chain.probabilities(2) == (0.8, 0.5)
    assert chain.probabilities(5) == (0.8, 0.5, 0.25, 0.25, 0.25)
    assert [chain.mean_accepted(k) for k in range(5)] == pytest.approx([0, 0.8, 1.2, 1.3, 1.325])


@settings(deadline=None)
@given(chains, drafts)
def test_the_mean_is_that_of_the_distribution_of_runs(per_position, steps):
    """Summed over runs instead of over places: P(run = n) is the product of n successes and a failure."""
    probabilities = Acceptance(per_position).probabilities(steps)
    mean = total = 0.0
    for run in range(steps + 1):
        happens = math.prod(probabilities[:run]) * (1 - probabilities[run] if run < steps else 1)
        mean, total = mean + run * happens, total + happens
    assert total == pytest.approx(1)
    assert Acceptance(per_position).mean_accepted(steps) == pytest.approx(mean, abs=1e-9)


@settings(deadline=None)
@given(chains, st.integers(1, 12))
def test_more_drafts_never_accept_fewer_nor_more_than_one_more(per_position, steps):
    chain = Acceptance(per_position)
    more = chain.mean_accepted(steps) - chain.mean_accepted(steps - 1)
    assert -1e-12 <= more <= 1 + 1e-12


@settings(deadline=None)
@given(inner, levels)
def test_a_level_shifts_the_logit(p, level):
    (shifted,) = Acceptance((p,)).probabilities(1, level)
    assert 0 <= shifted <= 1
    assert shifted == pytest.approx(p * math.exp(level) / (1 - p + p * math.exp(level)), rel=1e-6)


@settings(deadline=None)
@given(chains, drafts, levels, st.floats(0, 5))
def test_a_higher_level_never_accepts_less(per_position, steps, level, more):
    chain = Acceptance(per_position)
    assert chain.mean_accepted(steps, level + more) >= chain.mean_accepted(steps, level) - 1e-9


@settings(deadline=None)
@given(levels, drafts)
def test_certain_is_certain_at_every_level(level, steps):
    assert Acceptance((1.0,)).mean_accepted(steps, level) == steps
    assert Acceptance((0.0,)).mean_accepted(steps, level) == 0


def test_levels_are_normal_around_zero():
    found = [Acceptance((0.5,), spread=0.7, seed=5).level(str(n)) for n in range(20_000)]
    assert abs(fmean(found)) < 4 * 0.7 / math.sqrt(len(found))
    assert pstdev(found) == pytest.approx(0.7, abs=4 * 0.7 / math.sqrt(2 * len(found)))
    beyond = sum(abs(level) > 1.4 for level in found) / len(found)
    assert beyond == pytest.approx(0.0455, abs=4 * math.sqrt(0.0455 * 0.9545 / len(found)))


def test_without_spread_all_requests_are_alike():
    assert {Acceptance((0.5,), seed=5).level(str(n)) for n in range(100)} == {0.0}


@settings(deadline=None)
@given(st.integers(-(2**70), 2**70), st.text(max_size=40))
def test_keys_and_levels_follow_from_the_seed_and_the_id(seed, request):
    one, again = (Acceptance((0.5,), spread=1.0, seed=seed) for _ in range(2))
    assert (one.key(request), one.level(request)) == (again.key(request), again.level(request))
    assert 0 <= one.key(request) < 2**64
    assert math.isfinite(one.level(request))


def test_keys_of_other_requests_and_seeds_differ():
    keys = {Acceptance((0.5,), seed=seed).key(str(n)) for seed in range(-20, 20) for n in range(250)}
    assert len(keys) == 40 * 250


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ({"per_position": ()}, "per_position"),
        ({"per_position": (0.5, 1.1)}, "per_position"),
        ({"per_position": (-0.1,)}, "per_position"),
        ({"per_position": (float("nan"),)}, "per_position"),
        ({"per_position": (0.5,), "spread": -1.0}, "spread"),
        ({"per_position": (0.5,), "spread": float("inf")}, "spread"),
    ],
)
def test_what_is_no_process_is_refused(arguments, key):
    with pytest.raises(FieldError, match=key):
        Acceptance(**arguments)
