"""Guarantee: the server is only ever asked for what it can do, and costly knobs move no more often than they may."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roofline_policies.contract.decision import Knob
from roofline_policies.control.transitions import COSTLY_KNOBS
from roofline_policies.policies import Kind, Proposal, Strength
from tests.roofline_policies.guarantees.guarantee_plants import (
    CONTROLLER,
    POLICIES,
    examples,
    limited,
    objectives,
    run,
    traffic,
)


def check(done, machine):
    bounds, launch = machine.bounds, machine.launch
    for moment in done.moments:
        assert bounds.contains(moment.knobs)
        assert all(moment.knobs.get(knob) == launch.get(knob) for knob in bounds.immovable)
    last_s = {}
    for at_s, change in done.changes():
        assert change.knob not in bounds.immovable
        assert change.reason
        if change.knob in COSTLY_KNOBS:
            assert at_s - last_s.get(change.knob, -math.inf) >= CONTROLLER.dwell_s
            last_s[change.knob] = at_s
    for step in done.steps:
        assert step.prompt_tokens <= machine.prefill_chunk_tokens
        assert step.rows <= machine.max_running_requests


@pytest.mark.parametrize("name", POLICIES)
@examples(20)
@given(machine=limited, promised=objectives, asked=traffic)
def test_knobs_stay_in_bounds_and_costly_ones_move_once_per_dwell(name, machine, promised, asked):
    check(run(name, machine, promised, asked), machine)


class Wild:
    """Proposes anything of everything, over and over."""

    def __init__(self, values):
        self.values = values

    def propose(self, view):
        start = view.decisions % len(self.values)
        chosen = self.values[start:] + self.values[:start]
        return tuple(
            Proposal("Wild", knob, value, "at random", kind, strength)
            for knob, (value, kind, strength) in zip(Knob, chosen * len(Knob), strict=False)
        )


wishes = st.tuples(
    st.integers(-(10**12), 10**12) | st.booleans() | st.floats(-1e9, 1e9, allow_nan=False),
    st.sampled_from(Kind), st.sampled_from(Strength),
)  # fmt: skip


@examples(20)
@given(machine=limited, promised=objectives, asked=traffic, values=st.lists(wishes, min_size=1, max_size=12))
def test_no_wish_moves_a_knob_out_of_bounds(machine, promised, asked, values):
    done = run(Wild(values), machine, promised, asked)
    check(done, machine)
    assert done.fallback_reason is None
