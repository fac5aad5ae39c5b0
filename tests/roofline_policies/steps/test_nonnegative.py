"""The recursive fit against scipy's solver of the same problem, and what it is asked to keep."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import nnls

from roofline_policies.steps.nonnegative import DOUBT, LEAST_SHARE, NonNegativeFit

MEMORY = 64.0


def count(fit, rows, targets):
    """Pairs, a row of features each."""
    fit.observe(np.asarray(rows, float).T.tolist(), np.asarray(targets, float).tolist())


def oracle(rows, targets, memory=MEMORY):
    """The same squares by scipy: rows times the root of their weights, and a row of belief for each further feature."""
    weights = (1 - 1 / memory) ** np.arange(len(rows) - 1, -1, -1.0)
    squares = (weights[:, None] * rows**2).sum(axis=0)
    belief = np.diag(np.sqrt(DOUBT * squares))[1:]
    root = np.sqrt(weights)
    found, _ = nnls(np.vstack([rows * root[:, None], belief]), np.append(targets * root, np.zeros(len(belief))))
    return found


def drawn(seed, count, features):
    """Rows whose features are of orders of magnitude apart and in part of each other."""
    random = np.random.default_rng(seed)
    rows = random.uniform(0.2, 1.0, (count, features))
    rows[:, 2:] = 0.5 * rows[:, 2:] + 0.5 * rows[:, 1:2]
    return rows * 10.0 ** np.arange(features)


@pytest.mark.parametrize("block", [1, 3, 8])
@pytest.mark.parametrize("features", [2, 4, 6])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_is_the_decayed_non_negative_least_squares(seed, features, block):
    rows = drawn(seed, 240, features)
    truth = np.array([1.3, 0.5, 0.0, 0.4, 0.0, 0.2])[:features] * 10.0 ** -np.arange(features)
    targets = rows @ truth * np.random.default_rng(9).uniform(0.9, 1.1, len(rows))
    fit = NonNegativeFit(features, MEMORY)
    for start in range(0, len(rows), block):
        count(fit, rows[start : start + block], targets[start : start + block])
    for _ in range(300):
        fit.descend()
    found, expected = np.array(fit.coefficients), oracle(rows, targets)
    assert found / truth[0] * 10.0 ** np.arange(features) == pytest.approx(
        expected / truth[0] * 10.0 ** np.arange(features), abs=1e-6
    )


def test_a_round_after_each_block_keeps_up():
    """Of rows that go on as they were, the solution is near without further rounds."""
    rows = drawn(4, 800, 4)
    targets = rows @ [0.8, 0.05, 0.002, 0.0]
    fit = NonNegativeFit(4, MEMORY)
    for start in range(0, len(rows), 8):
        count(fit, rows[start : start + 8], targets[start : start + 8])
    assert rows[-50:] @ fit.coefficients == pytest.approx(rows[-50:] @ oracle(rows, targets), rel=0.01)


def test_what_nothing_tells_apart_is_all_the_first_features():
    fit = NonNegativeFit(3, MEMORY)
    for _ in range(500):
        count(fit, [[1.0, 50.0, 3.0]], [1.4])
    first, *others = fit.coefficients
    assert first == pytest.approx(1.4)
    assert others == [0.0, 0.0]


def test_features_that_never_occur_stay_at_nothing():
    fit, without = NonNegativeFit(3, MEMORY), NonNegativeFit(2, MEMORY)
    for amount in range(1, 200):
        count(fit, [[1.0, amount, 0.0]], [2.0 + amount])
        count(without, [[1.0, amount]], [2.0 + amount])
    assert fit.coefficients == [*without.coefficients, 0.0]


def test_forgetting_makes_room_and_moves_nothing():
    fit, rows = NonNegativeFit(3, MEMORY), drawn(5, 200, 3)
    count(fit, rows, rows @ [1.0, 0.1, 0.0])
    for _ in range(100):
        fit.descend()
    before = list(fit.coefficients)
    fit.forget(1.0)
    assert fit.weight == 1.0
    fit.descend()
    assert fit.coefficients == pytest.approx(before, rel=1e-6, abs=1e-9)
    count(fit, rows[:8], 2 * rows[:8] @ [1.0, 0.1, 0.0])
    assert rows[:8] @ fit.coefficients == pytest.approx(2 * rows[:8] @ before, rel=0.1)


values = st.floats(1e-6, 1e6)
amounts = st.one_of(st.just(0.0), st.floats(1e-9, 1e12))
pairs = st.lists(st.tuples(values, amounts, amounts, values), min_size=1, max_size=12)


@given(st.lists(pairs, max_size=12))
def test_whatever_is_counted_coefficients_are_finite_and_none_is_below_nothing(blocks):
    fit = NonNegativeFit(3, MEMORY)
    for block in blocks:
        count(fit, [row[:3] for row in block], [row[3] for row in block])
        first, *others = fit.coefficients
        assert np.isfinite(fit.coefficients).all()
        assert min(others) >= 0.0
        assert first >= LEAST_SHARE * fit.targets[0] / fit.products[0][0] * (1 - 1e-9)
