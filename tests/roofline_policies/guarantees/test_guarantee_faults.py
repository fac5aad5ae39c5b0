"""Guarantee: whatever fails, the launch settings hold from then on and requests go on."""

from math import inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roofline_policies.contract.decision import Knob
from roofline_policies.policies import Composition, Proposal
from roofline_policies.slo.objectives import Objectives, Slo
from roofline_policies.testing import LinearSteps, Machine
from roofline_policies.testing.server import STALLED_AFTER
from tests.roofline_policies.guarantees.guarantee_plants import POLICIES, examples, machines, objectives, run, traffic

BUSY = [(0.1 * i, (100, 3000, 12_000)[i % 3], 40, None) for i in range(30)]
LONG = [(0.1 * i, (100, 3000, 12_000)[i % 3], 400, None) for i in range(10)]
TARGETS = Objectives(Slo(ttft_s=2.0, itl_s=0.03))


def check_fallback(done, machine, named):
    assert done.finished
    assert named in done.fallback_reason
    settled = [moment.knobs for moment in done.moments if any("fallback" in c.reason for c in moment.changes)]
    after = False
    for moment in done.moments:
        after = after or any("fallback" in change.reason for change in moment.changes)
        assert not after or moment.knobs == machine.launch
    assert len(settled) <= 1
    assert done.moments[-1].knobs == machine.launch


@pytest.mark.parametrize("name", POLICIES)
@examples(10)
@given(
    machine=machines,
    promised=objectives,
    asked=traffic,
    seconds=st.sampled_from([nan, inf, -inf, 0.0, -1.0]),
    at=st.integers(1, 40),
    field=st.sampled_from(["step_s", "done_s"]),
)
def test_a_time_that_cannot_be(name, machine, promised, asked, seconds, at, field):
    seconds = nan if field == "done_s" and seconds in (0.0, -1.0) else seconds

    def tamper(record):
        return record._replace(**{field: seconds}) if record.iteration == at else record

    done = run(name, machine, promised, asked, tamper=tamper)
    assert done.finished
    if done.fallback_reason is not None:
        check_fallback(done, machine, f"iteration {at} reports")


@pytest.mark.parametrize("name", POLICIES)
@examples(10)
@given(
    machine=machines,
    promised=objectives,
    asked=traffic,
    seconds=st.sampled_from([1e-12, 1e-3, 1e3, 1e12]),
    every=st.integers(1, 5),
)
def test_times_that_are_far_off_but_can_be(name, machine, promised, asked, seconds, every):
    def tamper(record):
        return record._replace(step_s=seconds, seconds=seconds) if record.iteration % every == 0 else record

    done = run(name, machine, promised, asked, tamper=tamper)
    assert done.finished
    assert done.fallback_reason is None


@pytest.mark.parametrize("name", POLICIES)
def test_records_that_never_come(name):
    machine = Machine()
    done = run(name, machine, TARGETS, LONG, tamper=lambda record: None)
    assert len(done.steps) > STALLED_AFTER
    check_fallback(done, machine, "none reported its work")


@pytest.mark.parametrize("name", POLICIES)
@examples(8)
@given(machine=machines, promised=objectives, asked=traffic, lost=st.integers(2, 7))
def test_records_that_come_now_and_then(name, machine, promised, asked, lost):
    done = run(name, machine, promised, asked, tamper=lambda record: None if record.iteration % lost else record)
    assert done.finished
    assert done.fallback_reason is None
    assert all(machine.bounds.contains(moment.knobs) for moment in done.moments)


class Breaks:
    """Works for a while, then raises, or proposes what is no value."""

    def __init__(self, after, how):
        self.after, self.how = after, how

    def propose(self, view):
        if view.decisions < self.after:
            return (Proposal("Breaks", Knob.MAX_RUNNING_REQUESTS, 2, "to be seen"),)
        if self.how is RuntimeError:
            raise RuntimeError("broken on purpose")
        return (Proposal("Breaks", Knob.PREFILL_CHUNK_TOKENS, self.how, "nonsense"),)


@pytest.mark.parametrize("how", [RuntimeError, nan, inf, "512", None])
@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_that_breaks(name, how):
    machine = Machine(max_running_requests=8, noise=0.1)
    for after in (0, 7):
        done = run(Composition((POLICIES[name], Breaks(after, how))), machine, TARGETS, BUSY)
        check_fallback(done, machine, "broken on purpose" if how is RuntimeError else repr(how))


class Odd(LinearSteps):
    """A predictor whose answers are no times."""

    def step_s(self, **step):
        return self.base_s


@pytest.mark.parametrize("seconds", [nan, inf, 0.0, -1.0])
@pytest.mark.parametrize("overlap", [False, True])
def test_a_predictor_that_answers_nonsense(seconds, overlap):
    machine = Machine(overlap=overlap)
    done = run("predictive", machine, TARGETS, BUSY, predictor=Odd(base_s=seconds))
    assert done.finished
    assert all(machine.bounds.contains(moment.knobs) for moment in done.moments)
