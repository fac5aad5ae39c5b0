"""Guarantee: equal inputs give equal decisions, byte for byte, in whatever order policies are listed."""

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roofline_policies.policies import Composition
from tests.roofline_policies.guarantees.guarantee_plants import POLICIES, examples, limited, objectives, run, traffic


@pytest.mark.parametrize("name", POLICIES)
@examples(8)
@given(machine=limited, promised=objectives, asked=traffic, seed=st.integers(0, 9), data=st.data())
def test_equal_inputs_give_equal_decisions_and_order_does_not_matter(name, machine, promised, asked, seed, data):
    policy = POLICIES[name]
    first = run(policy, machine, promised, asked, seed=seed)
    assert repr(run(policy, machine, promised, asked, seed=seed)) == repr(first)
    order = data.draw(st.sampled_from(list(permutations(policy.policies))))
    assert repr(run(Composition(order), machine, promised, asked, seed=seed)) == repr(first)
