"""Guarantee: nobody starves. Everybody finishes, prompts are not put off for long, tokens do not stay away for long."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roofline_policies.contract.decision import Knob
from roofline_policies.device.roofline import Bound
from roofline_policies.model.batch import BatchShape
from roofline_policies.policies import PrefillDeferral, RidgePrefillDeferral
from roofline_policies.slo.objectives import Objectives, Slo
from roofline_policies.testing import LinearSteps, Machine, fake_point, fake_view
from tests.roofline_policies.guarantees.guarantee_plants import (
    DEFERRAL,
    POLICIES,
    examples,
    limited,
    longest_step_s,
    machines,
    objectives,
    run,
    stretches,
    traffic,
)  # fmt: skip

EXCLUSIVE = {Knob.MIXED_CHUNK: "its drafts need decode steps of their own"}


@pytest.mark.parametrize("name", POLICIES)
@examples(25)
@given(machine=limited, promised=objectives, asked=traffic)
def test_everybody_finishes_and_no_prompt_is_put_off_for_long(name, machine, promised, asked):
    done = run(name, machine, promised, asked)
    assert done.finished
    assert done.fallback_reason is None
    for since_s, until_s, steps in stretches(done):
        if name == "ridge":
            assert steps == 1
        else:
            assert until_s - since_s <= DEFERRAL.longest_defer_s + longest_step_s(done)


STREAM = [(0.0, 50, 400, None), (0.0, 80, 400, None)] + [(0.05 * i, 20_000, 2, None) for i in range(1, 25)]
"""Long prompts that never cease, and two answers that want to go on beside them."""


def check_stream(name, machine, itl_s):
    """https://github.com/sgl-project/sglang/issues/32549"""
    done = run(name, machine, Objectives(Slo(itl_s=itl_s)), STREAM)
    assert done.finished
    # The ridge rule does not predict: it finds the stall to be over while the last prefill is in flight already, and
    # the decode step comes behind that one.
    steps = 2 if name == "ridge" else 1
    for answer in done.answers[:2]:
        assert max(answer.gaps_s) <= DEFERRAL.longest_stall_s + steps * longest_step_s(done)


@pytest.mark.parametrize("name", POLICIES)
@examples(10)
@given(machine=machines, itl_s=st.sampled_from([0.03, 0.005, 0.1]), movable=st.booleans())
def test_decode_is_not_starved_by_a_stream_of_long_prompts(name, machine, itl_s, movable):
    machine = replace(machine, immovable={} if movable else EXCLUSIVE, max_running_requests=64, kv_tokens=400_000)
    check_stream(name, machine, itl_s)


@pytest.mark.parametrize("name", POLICIES)
@examples(8)
@given(machine=machines, movable=st.booleans())
def test_decode_is_not_starved_where_nobody_has_a_target_either(name, machine, movable):
    machine = replace(machine, immovable={} if movable else EXCLUSIVE, max_running_requests=64, kv_tokens=400_000)
    check_stream(name, machine, None)


@pytest.mark.parametrize("name", POLICIES)
def test_decode_is_not_starved_by_prefill_that_is_not_compute_bound(name):
    check_stream(name, Machine(prefill_chunk_tokens=256, immovable=EXCLUSIVE), None)


def check_nothing_is_deferred(done):
    """https://github.com/sgl-project/sglang/issues/32880"""
    assert all(moment.queue.kv_use < 0.05 for moment in done.moments)
    # Where the longest stall ends a token is due: that is no veto of prompts but the guarantee above.
    near_s = DEFERRAL.longest_stall_s - 2.0 * longest_step_s(done)
    for since_s, _, _ in stretches(done):
        running = [a.token_s for a in done.answers if a.token_s[0] <= since_s < a.token_s[-1]]
        waits_s = [since_s - max(at_s for at_s in token_s if at_s <= since_s) for token_s in running]
        assert max(waits_s, default=0.0) >= near_s


@examples(15)
@given(machine=machines, asked=traffic)
def test_an_empty_cache_and_nobody_due_defers_nothing(machine, asked):
    check_nothing_is_deferred(run("predictive", replace(machine, kv_tokens=10**8), Objectives(), asked))


@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="the ridge rule lets decode run once between chunks of a compute-bound prefill",
)
def test_an_empty_cache_and_nobody_due_defers_nothing_under_the_ridge_rule():
    asked = [(0.0, 3000, 2, None), (0.0, 3000, 1, None)]
    check_nothing_is_deferred(run("ridge", Machine(prefill_chunk_tokens=2048, kv_tokens=10**8), Objectives(), asked))


@pytest.mark.parametrize("policy", [PrefillDeferral(), RidgePrefillDeferral()])
@examples(50)
@given(
    waiting=st.integers(0, 20), kv_use=st.sampled_from([0.0, 0.049]), target_itl_s=st.sampled_from([None, 0.001, 0.1]),
    prefills_since_decode=st.integers(0, 3), bound=st.sampled_from(Bound), chunk_in_flight=st.booleans(),
    defer_prefill=st.booleans(),
)  # fmt: skip
def test_with_nobody_running_nothing_is_deferred(policy, bound, **fields):
    view = fake_view(running=0, prefill=fake_point(bound), **fields)
    assert not any(proposal.knob is Knob.DEFER_PREFILL and proposal.value for proposal in policy.propose(view))


@examples(15)
@given(
    machine=machines, long=st.integers(2, 6), tokens=st.integers(1, 400), at_s=st.sampled_from([0.2, 0.35, 0.5, 1.0])
)
def test_a_short_prompt_is_not_kept_behind_long_ones_that_can_wait(machine, long, tokens, at_s):
    """https://github.com/sgl-project/sglang/issues/10063

    It waits for the step that runs, the one that is launched behind it, and its own; a decode step may come between.
    """
    machine = replace(machine, max_running_requests=64, kv_tokens=400_000, prefill_chunk_tokens=2048)
    asked = [(0.0, 50, 200, None), *[(0.1, 20_000, 5, None)] * long, (at_s, tokens, 5, 10)]
    done = run("predictive", machine, Objectives(Slo(), {10: Slo(ttft_s=0.5)}), asked)
    short = done.answers[-1]
    assert short.ttft_s <= 4 * longest_step_s(done)
    still = [answer for answer in done.answers[1:-1] if answer.started_s > at_s]
    assert all(answer.token_s[0] > short.token_s[0] for answer in still)


DEEP = LinearSteps(pair_s=1e-8)
"""Behind 31,000 tokens a chunk of 128 takes 50 ms, whatever runs beside it."""


@pytest.mark.parametrize("movable", [True, False])
@pytest.mark.parametrize("tokens", [40_000, 60_000])
def test_a_prompt_whose_least_chunk_fits_into_no_gap_holds_nobody_up_for_long(movable, tokens):
    """It is part-way, so whoever comes waits for it. Put off a second for each 128 tokens, it would take minutes."""
    asked = [(0.0, 100, 4000, None)] * 8 + [(1.0, tokens, 5, None), (5.0, 200, 100, None)]
    machine = Machine(kv_tokens=400_000, immovable={} if movable else EXCLUSIVE)
    done = run("predictive", machine, Objectives(Slo(ttft_s=2.0, itl_s=0.05)), asked, times=DEEP, predictor=DEEP)
    alone_s = DEEP.step_s(prefill=BatchShape.of([(tokens, 0)]))
    *running, deep, short = done.answers
    assert deep.ttft_s <= 2.0 * alone_s
    assert short.ttft_s <= deep.ttft_s
    for answer in running:
        # Two late gaps for each stall that is full, and one for each second in which a smaller batch would do.
        assert sum(gap_s > 0.05 for gap_s in answer.gaps_s) <= 2.0 * alone_s / DEFERRAL.longest_stall_s + 3
        assert max(answer.gaps_s) <= DEFERRAL.longest_stall_s
