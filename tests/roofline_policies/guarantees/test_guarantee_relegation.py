"""Guarantee: who is passed over because they cannot be in time is passed over for so long and no longer."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roofline_policies.contract.decision import Knob
from roofline_policies.slo.objectives import Objectives, Slo
from roofline_policies.testing import LinearSteps, Machine
from tests.roofline_policies.guarantees.guarantee_plants import (
    drawn,
    examples,
    longest_step_s,
    machines,
    predictive,
    run,
)

RELEGATE_FOR_S = 3


@examples(20)
@given(
    machine=machines, seed=st.integers(0, 10**6), ttft_s=st.sampled_from([0.2, 0.5, 1.5]),
    itl_s=st.sampled_from([None, 0.05]),
)  # fmt: skip
def test_after_that_time_nobody_who_came_later_starts_before_them(machine, seed, ttft_s, itl_s):
    """So they are served after relegate_for_s and the work of those that came before them, given room for them."""
    machine = replace(machine, max_running_requests=64, kv_tokens=400_000)
    asked = drawn(seed, 60, 15.0, 20_000)
    policy = predictive(SloGuard={"relegate_for_s": RELEGATE_FOR_S})
    done = run(policy, machine, Objectives(Slo(ttft_s=ttft_s, itl_s=itl_s)), asked)
    assert done.finished
    # Requests that come while a step is launched are received together, and came at the same time as far as anybody
    # knows. The order follows the next decision; the step that is launched then was chosen before.
    step_s = longest_step_s(done)
    late_s = RELEGATE_FOR_S + 3.0 * step_s
    for passed in done.answers:
        if not passed.relegated:
            continue
        for other in done.answers:
            if other.request.arrival_s > passed.request.arrival_s + step_s and other.started_s < passed.started_s:
                assert other.started_s <= passed.request.arrival_s + late_s


def test_requests_are_relegated_in_these_runs_at_all():
    policy = predictive(SloGuard={"relegate_for_s": RELEGATE_FOR_S})
    machine = Machine(prefill_chunk_tokens=2048, bias=2.0)
    done = run(policy, machine, Objectives(Slo(ttft_s=0.5)), drawn(1, 60, 15.0, 20_000))
    waited_s = [answer.started_s - answer.request.arrival_s for answer in done.answers if answer.relegated]
    assert len(waited_s) > 5
    assert max(waited_s) > RELEGATE_FOR_S


@pytest.mark.parametrize("movable", [True, False])
@pytest.mark.parametrize("pair_s", [5e-10, 1e-8])
@pytest.mark.parametrize("tokens", [200, 900])
def test_short_prompts_are_in_time_beside_one_in_flight_that_cannot_be(movable, pair_s, tokens):
    """https://github.com/sgl-project/sglang/issues/34623

    It takes 2 to 14 s where 1.5 s are promised, and goes first where nothing else waits."""
    times = LinearSteps(pair_s=pair_s)
    machine = Machine(immovable={} if movable else {Knob.MIXED_CHUNK: "it was launched so"})
    shorts = [(1.1 + 0.2 * place, tokens, 40, None) for place in range(8)]
    asked = [(0.0, 100, 2000, None)] * 4 + [(1.0, 60_000 if pair_s < 1e-9 else 30_000, 5, None), *shorts]
    done = run("predictive", machine, Objectives(Slo(ttft_s=1.5, itl_s=0.1)), asked, times=times, predictor=times)
    assert all(answer.ttft_s <= 1.5 for answer in done.answers[5:])
    assert done.answers[4].relegated
    assert done.finished
