import pytest

from roofline_policies.contract.decision import Knob, Knobs
from roofline_policies.contract.view import QueueState
from roofline_policies.device.roofline import Bound
from roofline_policies.errors import FieldError
from roofline_policies.policies import Kind, RidgeBatchSize, Strength
from roofline_policies.slo.objectives import Slo
from tests.roofline_policies.views import point, view

BUSY = QueueState(running=32, waiting=5)


def only(proposals):
    (proposal,) = proposals
    assert proposal.knob is Knob.MAX_RUNNING_REQUESTS
    assert proposal.kind is Kind.TARGET
    return proposal


def test_memory_bound_and_full_raises_the_batch():
    seen = view(Knobs(32, 512), queue=BUSY, decode=point(Bound.MEMORY, 0.1, 0.8))
    proposal = only(RidgeBatchSize(grow=1.5).propose(seen))
    assert proposal.value == 48
    assert proposal.strength is Strength.OPTIMISER
    assert proposal.reason == "decode is memory-bound at 10% of the compute ceiling and 5 requests wait"


def test_a_small_batch_grows_by_at_least_one():
    full = QueueState(running=2, waiting=1)
    assert only(RidgeBatchSize().propose(view(Knobs(2, 512), queue=full, decode=point(Bound.OVERHEAD)))).value == 3


def test_compute_bound_lowers_the_batch():
    seen = view(Knobs(32, 512), queue=BUSY, decode=point(Bound.COMPUTE, 0.9))
    proposal = only(RidgeBatchSize(shrink=0.5).propose(seen))
    assert proposal.value == 16
    assert "compute-bound at 90%" in proposal.reason


def test_a_late_decode_step_lowers_what_runs_as_a_guard():
    seen = view(Knobs(64, 512), Slo(itl_s=0.1), queue=QueueState(running=3), decode=point(Bound.MEMORY),
                decode_step_s=0.15, decode_requests=32.0)  # fmt: skip
    proposal = only(RidgeBatchSize(shrink=0.5).propose(seen))
    assert proposal.value == 16  # half of the 32 that took so long, not of the idle cap of 64 or the 3 left
    assert proposal.strength is Strength.GUARD
    assert proposal.reason == "a decode step of 32 requests takes 150 ms, over the ITL target of 100 ms"


def test_late_gaps_that_decode_does_not_cause_leave_the_batch_alone():
    seen = view(Knobs(64, 512), Slo(itl_s=0.1), queue=BUSY, decode=point(Bound.MEMORY), decode_step_s=0.02, itl_s=0.5)
    assert RidgeBatchSize().propose(seen) == ()


@pytest.mark.parametrize(
    "seen",
    [
        view(
            Knobs(32, 512), Slo(itl_s=0.1), queue=QueueState(running=0), decode=point(Bound.MEMORY), decode_step_s=9.0
        ),
        view(Knobs(32, 512), queue=BUSY),  # no decode iteration yet
        view(Knobs(32, 512), queue=QueueState(running=32, waiting=0), decode=point(Bound.MEMORY)),
        view(Knobs(32, 512), queue=QueueState(running=20, waiting=5), decode=point(Bound.MEMORY)),  # cap not reached
        view(Knobs(32, 512), Slo(itl_s=0.1), queue=BUSY, decode=point(Bound.MEMORY), decode_step_s=0.07),  # x 1.25
    ],
)
def test_says_nothing_where_the_cap_is_not_what_limits(seen):
    assert RidgeBatchSize().propose(seen) == ()


@pytest.mark.parametrize(
    ("field", "value"), [("grow", 1.0), ("grow", float("nan")), ("shrink", 0.0), ("headroom", 1.1), ("busy", -1)]
)
def test_refuses_parameters_out_of_range(field, value):
    with pytest.raises(FieldError) as raised:
        RidgeBatchSize(**{field: value})
    assert raised.value.key == field
