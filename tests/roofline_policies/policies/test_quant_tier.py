from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roofline_policies.contract.decision import Bounds, Knob, Range
from roofline_policies.contract.view import QueueState
from roofline_policies.device.roofline import Bound
from roofline_policies.errors import FieldError
from roofline_policies.policies import Kind, QuantTier, RidgeQuantTier, Strength
from roofline_policies.slo.objectives import Slo
from tests.roofline_policies.views import BOUNDS, LAUNCH, point, view

KNOB = Knob.QUANT_TIER
MOVABLE = Bounds({**BOUNDS.ranges, KNOB: Range(0, 1)}, {})
SOON = Slo(ttft_s=1.0)


def seen(tier=0, *, waiting=4, tokens=2000, relegated=0, bounds=MOVABLE, **fields):
    queue = QueueState(waiting=waiting, next_prefill_tokens=tokens, relegated=relegated)
    return view(replace(LAUNCH, quant_tier=tier), queue=queue, **fields)._replace(bounds=bounds)


def only(proposals):
    (proposal,) = proposals
    assert proposal.knob is KNOB
    assert (proposal.kind, proposal.strength) == (Kind.TARGET, Strength.OPTIMISER)
    return proposal


def test_relegated_requests_engage_eight_bits():
    proposal = only(QuantTier().propose(seen(relegated=3)))
    assert proposal.value == 1
    assert proposal.reason == "3 waiting requests cannot be in time: prefill in 8 bits"


def test_prompts_that_take_long_for_the_target_engage_eight_bits():
    proposal = only(QuantTier().propose(seen(tokens=6000, slo=SOON, prefill_tokens_per_s=1e4)))
    assert proposal.value == 1
    assert proposal.reason == (
        "the next 6000 prompt tokens are predicted to take 600 ms, over 50% of the TTFT target of 1000 ms: "
        "prefill in 8 bits"
    )
    assert QuantTier(0.7).propose(seen(tokens=6000, slo=SOON, prefill_tokens_per_s=1e4)) == ()


def test_the_share_itself_is_in_time():
    assert QuantTier().propose(seen(tokens=5000, slo=SOON, prefill_tokens_per_s=1e4)) == ()


@pytest.mark.parametrize("fields", [{}, {"slo": SOON}, {"prefill_tokens_per_s": 1.0}])
def test_without_a_rate_or_a_target_only_relegated_requests_count(fields):
    assert QuantTier().propose(seen(**fields)) == ()
    assert only(QuantTier().propose(seen(relegated=1, **fields))).value == 1


def test_back_to_the_launch_precision_when_nothing_is_late():
    proposal = only(QuantTier().propose(seen(tier=1, slo=SOON, prefill_tokens_per_s=1e4)))
    assert proposal.value == 0
    assert proposal.reason == "no prompt is predicted to be late: back to the launch precision"
    assert QuantTier().propose(seen(tier=1, relegated=2)) == ()


@given(
    tier=st.integers(0, 1), tokens=st.integers(0, 100_000), relegated=st.integers(0, 3),
    rate=st.none() | st.floats(1, 1e6), target=st.none() | st.floats(0.01, 100), share=st.floats(0.01, 1),
)  # fmt: skip
def test_the_tier_after_a_proposal_is_the_rules(tier, tokens, relegated, rate, target, share):
    now = seen(tier, tokens=tokens, relegated=relegated, slo=Slo(ttft_s=target), prefill_tokens_per_s=rate)
    late = relegated > 0 or (rate is not None and target is not None and tokens / rate > share * target)
    proposals = QuantTier(share).propose(now)
    assert (only(proposals).value if proposals else tier) == late
    assert not proposals or proposals[0].value != tier  # silent where the tier stays


def test_ridge_engages_eight_bits_for_a_compute_bound_prefill_that_others_wait_for():
    proposal = only(RidgeQuantTier().propose(seen(prefill=point(Bound.COMPUTE, 0.8))))
    assert proposal.value == 1
    assert proposal.reason == (
        "prefill is compute-bound at 80% of the compute ceiling and 4 requests wait: prefill in 8 bits"
    )
    assert RidgeQuantTier().propose(seen(tier=1, prefill=point(Bound.COMPUTE))) == ()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "prefill is not compute-bound: 8 bits would gain little"),
        ({"prefill": point(Bound.MEMORY)}, "prefill is not compute-bound: 8 bits would gain little"),
        ({"prefill": point(Bound.OVERHEAD)}, "prefill is not compute-bound: 8 bits would gain little"),
        ({"prefill": point(Bound.COMPUTE), "waiting": 0}, "nothing waits: back to the launch precision"),
    ],
)
def test_ridge_goes_back_else(fields, reason):
    proposal = only(RidgeQuantTier().propose(seen(tier=1, **fields)))
    assert (proposal.value, proposal.reason) == (0, reason)
    assert RidgeQuantTier().propose(seen(tier=0, **fields)) == ()


@pytest.mark.parametrize("policy", [QuantTier(), RidgeQuantTier()])
def test_idle_where_the_tier_cannot_be_moved(policy):
    late = {"relegated": 3, "prefill": point(Bound.COMPUTE)}
    assert policy.idle_reason(seen(**late)) is None
    fixed = Bounds(BOUNDS.ranges, {KNOB: "the device has no 8-bit products"})
    for stuck, reason in (
        (seen(None, bounds=fixed, **late), "the device has no 8-bit products"),
        (seen(0, bounds=fixed, **late), "the device has no 8-bit products"),
        (seen(0, bounds=BOUNDS, **late), "only one precision was loaded"),
        (seen(None, **late), "only one precision was loaded"),
    ):
        assert policy.idle_reason(stuck) == reason
        assert policy.propose(stuck) == ()


@pytest.mark.parametrize("share", [0.0, -1.0, 1.1, float("nan")])
def test_refuses_a_share_out_of_range(share):
    with pytest.raises(FieldError) as raised:
        QuantTier(share)
    assert raised.value.key == "late_share"
