"""A controller that goes on with another policy."""

import pytest

from roofline_policies.contract.decision import Bounds, Knob, Knobs, Range
from roofline_policies.contract.view import QueueState
from roofline_policies.control.controller import Controller, ControllerSettings, State
from roofline_policies.policies import Proposal, Static
from roofline_policies.slo.objectives import Slo
from tests.roofline_policies.records import CEILINGS, record
from tests.roofline_policies.views import BOUNDS, LAUNCH

BUSY = QueueState(running=8, waiting=4, next_prefill_tokens=4000)
RUNNING, CHUNK = Knob.MAX_RUNNING_REQUESTS, Knob.PREFILL_CHUNK_TOKENS
NARROW = Bounds({**BOUNDS.ranges, RUNNING: Range(1, 16), CHUNK: Range(64, 512, 64)}, BOUNDS.immovable)


class Says:
    def __init__(self, knob, value):
        self.answer = Proposal("Says", knob, value, "because")

    def propose(self, view):
        return (self.answer,)


class Raises:
    def propose(self, view):
        raise ZeroDivisionError("no seconds")


def controller(policy, **settings):
    return Controller(
        policy, ceilings=CEILINGS, bounds=BOUNDS, launch=LAUNCH, slo=Slo(),
        settings=ControllerSettings(**settings), started_s=0.0,
    )  # fmt: skip


def adopt(loop, now_s, policy, slo=None, bounds=BOUNDS, **settings):
    return loop.adopt(now_s, policy, slo or Slo(), ControllerSettings(**settings), bounds)


def test_knobs_keep_their_value_and_follow_the_new_policy():
    loop = controller(Says(RUNNING, 32))
    assert loop.decide(0.0, BUSY).knobs.max_running_requests == 32
    assert adopt(loop, 5.0, Says(CHUNK, 512), Slo(itl_s=0.03)) == ()
    assert loop.knobs == Knobs(32, 2048)
    assert loop.decide(5.1, BUSY).knobs == Knobs(32, 512)
    assert loop.view(5.1, BUSY).slo.itl_s == 0.03


def test_knobs_out_of_the_new_bounds_move_into_them_and_the_log_says_why():
    loop = controller(Static())
    changes = adopt(loop, 5.0, Static(), bounds=NARROW)
    assert {(change.knob, change.old, change.new, change.policy) for change in changes} == {
        (RUNNING, 64, 16, "controller"), (CHUNK, 2048, 512, "controller"),
    }  # fmt: skip
    assert {entry.change for entry in loop.changes.recent()} == set(changes)
    assert loop.bounds.contains(loop.knobs)
    # Nobody speaks: what costs nothing goes back to the launch setting, as far as the bounds let it.
    assert loop.decide(5.1, BUSY).knobs == Knobs(16, 512)
    adopt(loop, 6.0, Static())
    assert loop.decide(6.1, BUSY).knobs == Knobs(64, 2048)


def test_static_asks_the_cap_of_another_policy_back():
    loop = controller(Says(RUNNING, 32))
    assert loop.decide(0.0, BUSY).knobs.max_running_requests == 32
    adopt(loop, 5.0, Static())
    (change,) = loop.decide(5.1, BUSY).changes
    assert (change.knob, change.old, change.new, change.reason) == (RUNNING, 32, 64, "the launch setting")
    assert loop.decide(5.2, BUSY).changes == ()


def test_a_dwell_goes_on_and_takes_as_long_as_the_new_settings_say():
    loop = controller(Says(RUNNING, 32))
    loop.decide(0.0, BUSY)
    adopt(loop, 0.5, Says(RUNNING, 48), dwell_s=2.0)
    assert loop.decide(1.9, BUSY).knobs.max_running_requests == 32
    assert loop.decide(2.0, BUSY).knobs.max_running_requests == 48


def test_a_costly_knob_that_had_to_move_dwells():
    loop = controller(Static())
    adopt(loop, 5.0, Says(RUNNING, 4), bounds=NARROW, dwell_s=1.0)
    assert loop.decide(5.9, BUSY).knobs.max_running_requests == 16
    assert loop.decide(6.0, BUSY).knobs.max_running_requests == 4


def test_a_policy_that_was_given_up_is_followed_by_one_that_decides():
    loop = controller(Raises())
    loop.decide(1.0, BUSY)
    assert loop.state is State.FALLBACK
    adopt(loop, 9.0, Says(RUNNING, 16))
    assert (loop.state, loop.fallback_reason) == (State.ACTIVE, None)
    assert loop.decide(9.1, BUSY).knobs.max_running_requests == 16


def test_overruns_of_the_last_policy_are_not_the_next_ones():
    loop = controller(Static(), budget_s=1e-9, overruns=2)
    loop.decide(1.0, BUSY)
    adopt(loop, 2.0, Static(), budget_s=1e-9, overruns=2)
    loop.decide(3.0, BUSY)
    assert loop.state is State.ACTIVE
    loop.decide(4.0, BUSY)
    assert loop.state is State.FALLBACK


def test_a_decision_is_due_at_once():
    loop = controller(Static(), decide_every_s=10.0)
    loop.decide(0.0, BUSY)
    adopt(loop, 1.0, Says(RUNNING, 16), decide_every_s=10.0)
    assert loop.decide(1.1, BUSY).knobs.max_running_requests == 16


def test_what_was_observed_is_kept_and_weighed_by_the_new_settings():
    loop = controller(Static(), half_life_s=1.0, overhead_below=0.0)
    loop.observe(record(1.0, 1.0, flops=80))
    totals, point = loop.decode.totals(), loop.decode.point()
    adopt(loop, 1.0, Static(), half_life_s=2.0, overhead_below=1.0, gaps=1.0)
    assert (loop.iterations, loop.decode.totals(), loop.decode.point()) == (1, totals, point)
    loop.observe(record(3.0, 1.0, flops=20))
    assert loop.decode.point().flops_per_s == pytest.approx((0.5 * 80 + 20) / 1.5)
    assert loop.decode.point().bound.value == "overhead"
    loop.observe(record(3.5, 0.5))
    assert loop.view(3.5, BUSY).itl_s == 0.5  # one gap counts, so the last one
