"""Looks are as frequent as they are said to be, and fall on every turn of any rhythm."""

from itertools import pairwise

import pytest

from roofline_policies.policies.looks import looks


@pytest.mark.parametrize("every", [2, 3, 5, 7, 8, 16])
def test_one_in_so_many_decisions_looks(every):
    found = [number for number in range(10_000) if looks(number, every)]
    assert abs(len(found) - 10_000 / every) <= 3
    assert found[0] == 0
    gaps = {later - sooner for sooner, later in pairwise(found)}
    assert max(gaps) <= 3 * every  # three distances at most, none of them long
    assert len(gaps) <= 3


@pytest.mark.parametrize("every", [2, 5, 8, 16])
@pytest.mark.parametrize("period", range(2, 13))
def test_every_turn_of_a_rhythm_is_looked_at(every, period):
    turns = {number % period for number in range(20 * every * period) if looks(number, every)}
    assert turns == set(range(period))
