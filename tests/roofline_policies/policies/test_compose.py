from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roofline_policies.contract.decision import Knob, Knobs
from roofline_policies.errors import FieldError
from roofline_policies.policies import Composition, Kind, Proposal, Static, Strength, compose
from roofline_policies.policies.compose import merge
from tests.roofline_policies.views import view

CHUNK = Knob.PREFILL_CHUNK_TOKENS
NOW = view(Knobs(32, 1000))


def target(value, policy="P", strength=Strength.OPTIMISER, knob=CHUNK):
    return Proposal(policy, knob, value, f"{policy} wants {value}", Kind.TARGET, strength)


def cap(value, policy="P", knob=CHUNK):
    return Proposal(policy, knob, value, f"{policy} caps at {value}", Kind.CAP)


@dataclass(frozen=True)
class Says:
    proposals: tuple

    def propose(self, view):
        return self.proposals


def test_caps_combine_by_minimum():
    assert merge(NOW, [cap(700), cap(300), cap(500)]) == (cap(300),)


def test_guards_outrank_optimisers():
    guard = target(900, "guard", Strength.GUARD)
    assert merge(NOW, [target(100, "a"), guard, target(2000, "b")]) == (guard,)


def test_of_one_direction_the_nearest_stands():
    assert merge(NOW, [target(1500, "a"), target(1100, "b")]) == (target(1100, "b"),)
    assert merge(NOW, [target(500, "a"), target(900, "b")]) == (target(900, "b"),)


def test_opposite_directions_keep_the_current_value_and_name_both():
    (merged,) = merge(NOW, [target(1500, "b"), target(500, "a")])
    assert merged.value == 1000
    assert merged.reason == "a and b want opposite directions"


def test_targets_and_caps_of_one_knob_both_pass():
    assert set(merge(NOW, [target(1500), cap(1200)])) == {target(1500), cap(1200)}


def test_a_cap_of_false_forbids_deferral():
    off, on = cap(False, knob=Knob.DEFER_PREFILL), cap(True, knob=Knob.DEFER_PREFILL)
    assert merge(NOW, [on, off]) == (off,)


proposals = st.lists(
    st.builds(
        Proposal,
        policy=st.sampled_from(["a", "b", "c"]),
        knob=st.sampled_from([Knob.MAX_RUNNING_REQUESTS, CHUNK]),
        value=st.integers(1, 2000),
        reason=st.just("because"),
        kind=st.sampled_from(Kind),
        strength=st.sampled_from(Strength),
    ),
    max_size=6,
)


@given(proposals, st.randoms())
def test_order_does_not_matter(proposals, random):
    shuffled = list(proposals)
    random.shuffle(shuffled)
    key = lambda p: (p.knob, p.kind)  # noqa: E731
    assert sorted(merge(NOW, proposals), key=key) == sorted(merge(NOW, shuffled), key=key)


@given(proposals)
def test_at_most_one_target_and_one_cap_per_knob_and_merging_again_changes_nothing(proposals):
    once = merge(NOW, proposals)
    assert len({(p.knob, p.kind) for p in once}) == len(once)
    assert merge(NOW, once) == once


def test_a_composition_is_a_policy_and_nests():
    inner = compose(Says((cap(700, "a"),)), Says(()))
    outer = compose(inner, Says((cap(300, "b"),)))
    assert outer.propose(NOW) == (cap(300, "b"),)


def test_refuses_what_is_no_policy():
    with pytest.raises(FieldError, match=r"propose\(view\)"):
        Composition((Static(), 3))
