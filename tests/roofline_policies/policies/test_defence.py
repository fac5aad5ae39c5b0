"""Defence: closed forms of what a target costs, the choice by its price, and whole runs where it pays and where not."""

from itertools import pairwise
from math import inf

import pytest

from roofline_policies.contract.decision import Knob
from roofline_policies.control.transitions import DWELL_AT_LEAST_S
from roofline_policies.policies import BatchSize, Composition, Defence, PrefillDeferral, SloGuard, Static
from roofline_policies.policies.defence import CLOSE_ENOUGH, _Load
from roofline_policies.slo.demand import Demand, Target
from roofline_policies.slo.objectives import Objectives, Slo
from roofline_policies.steps.correction import CorrectedSteps
from roofline_policies.testing import LinearSteps, Machine, Plant, fake_bounds, fake_view

STEPS = LinearSteps(base_s=0.015, token_s=5e-5, row_s=1e-4, context_s=0.0, pair_s=0.0)
"""A decode step takes more than half of a tight target, as on a large model."""

TIGHT, LOOSE = Target(0.025, 0.3), Target(0.1, 0.7)
PROMPT, ANSWER = 1500.0, 200.0


def demand(rate, *targets):
    return Demand(rate, PROMPT, 0.0, ANSWER, PROMPT, targets or (TIGHT, LOOSE))


def seen(asked, now=0, **fields):
    return fake_view(
        **{"predictor": STEPS, "demand": asked, "relegated": 3, "waiting": 9, "decisions": 0,
           "defended_from_us": now, "max_running_requests": 256, **fields}
    )  # fmt: skip


def wanted(asked, now=0, **fields):
    found = Defence().propose(seen(asked, now, **fields))
    assert all(proposal.knob is Knob.DEFENDED_FROM_US for proposal in found)
    return [proposal.value for proposal in found]


@pytest.mark.parametrize("limit_s", [0.05, 0.1, 0.3])
def test_what_can_be_served_for_ever_is_the_batch_whose_prompts_fit_into_a_gap(limit_s):
    """N requests take base + N (row + token) of a mixed step, and N / L of them come in each: p / L tokens a request.

    One prompt costs a row of its own; without a margin the largest N fills the limit."""
    load = _Load(CorrectedSteps(STEPS), demand(7.0), 4096.0, 1 << 20)
    margin = CorrectedSteps(STEPS).margin(prefill=True, decode=True, rows=200)
    each_s = STEPS.row_s + STEPS.token_s * (1.0 + PROMPT / ANSWER)
    exact = (limit_s / margin - STEPS.base_s - STEPS.row_s) / each_s
    found = load.requests_per_s(limit_s, mixed=True)
    served = exact / (ANSWER * limit_s / margin)
    assert CLOSE_ENOUGH**2 * served <= found <= 1.02 * served


def test_where_not_even_the_least_chunk_fits_nothing_can_be_served():
    load = _Load(CorrectedSteps(STEPS), demand(7.0), 256.0, 8192)
    assert load.requests_per_s(0.02, mixed=True) == 0.0
    assert load.requests_per_s(0.03, mixed=True) > 0.0


def test_a_loose_target_serves_more_than_a_tight_one():
    load = _Load(CorrectedSteps(STEPS), demand(7.0), 256.0, 8192)
    served = [load.requests_per_s(limit_s, mixed=True) for limit_s in (0.025, 0.03, 0.05, 0.1, 0.5)]
    assert served == sorted(served)


def test_the_tight_class_is_given_up_where_that_loses_less():
    (found,) = Defence().propose(seen(demand(7.0)))
    assert found.value == 100_000
    assert found.reason.startswith("7.0 requests come a second; with tokens within 100 ms ")
    assert found.reason.endswith("of what is asked for in time")


def test_it_is_kept_while_prompts_keep_up_whatever_is_predicted():
    assert wanted(demand(7.0), relegated=0, prompt_due_s=0.2) == []
    assert wanted(demand(7.0), relegated=0, prompt_due_s=-0.2) == [100_000]


def test_it_is_kept_where_it_is_most_of_what_is_asked_for():
    assert wanted(demand(7.0, Target(0.03, 0.97), Target(0.1, 0.03))) == []


def test_weights_decide_and_not_numbers():
    few = [Target(0.03, 0.97), Target(0.1, 0.03)]
    assert wanted(demand(7.0, *few), now=100_000) == [0]
    assert wanted(demand(7.0), now=100_000) == []


def test_it_is_taken_back_when_what_comes_can_be_served():
    assert wanted(demand(0.5), now=100_000, relegated=0) == [0]


def test_the_lightest_load_gives_nobody_up():
    assert wanted(demand(0.5)) == []


def test_where_all_have_one_target_nobody_is_given_up_and_who_was_is_taken_back():
    alone = demand(7.0, Target(0.025, 1.0))
    assert wanted(alone) == []
    assert wanted(alone, now=100_000) == [0]


def test_requests_without_a_target_can_be_all_that_is_defended():
    asked = demand(9.0, Target(0.016, 0.2), Target(inf, 0.8))
    assert wanted(asked) == [10**9]


def test_nothing_is_said_where_nothing_is_known():
    assert wanted(None) == []
    assert wanted(demand(7.0), predictor=None) == []
    fixed = fake_bounds(immovable={Knob.DEFENDED_FROM_US: "nothing decodes"})
    assert wanted(demand(7.0), bounds=fixed) == []
    assert Defence().idle_reason(seen(demand(7.0), bounds=fixed)) == "nothing decodes"


def test_what_is_chosen_does_not_undo_its_own_reason():
    """The same demand with the choice made asks for nothing else, at any load."""
    for tenth in range(1, 150):
        asked = demand(tenth / 10)
        found = wanted(asked)
        if found:
            assert wanted(asked, now=found[0]) == []


def test_the_static_policy_takes_back_who_was_given_up():
    found = Static().propose(seen(demand(7.0), now=100_000))
    assert [(proposal.knob, proposal.value) for proposal in found] == [(Knob.DEFENDED_FROM_US, 0)]
    assert Static().propose(seen(demand(7.0))) == ()


CLASSES = Objectives(Slo(ttft_s=4.0, itl_s=0.1), {10: Slo(ttft_s=1.0, itl_s=0.025)})
PARTS = (BatchSize(), PrefillDeferral(), SloGuard())
WITH, WITHOUT = Composition((*PARTS, Defence())), Composition(PARTS)


def traffic(per_s, seconds, tight):
    """Every ``tight``-th request is of the tight class; lengths in turn, so that nothing depends on a seed."""
    sizes = [(800, 150), (2600, 250), (1200, 200), (500, 120), (2400, 280)]
    return [
        (number / per_s, *sizes[number % len(sizes)], 10 if number % tight == 0 else None)
        for number in range(int(per_s * seconds))
    ]


def run(policy, asked, noise=0.0, objectives=CLASSES):
    machine = Machine(max_running_requests=256, noise=noise)
    return Plant(policy, machine, objectives=objectives, times=STEPS, predictor=STEPS).run(asked)


def met(done, objectives=CLASSES):
    good = 0
    for answer in done.answers:
        slo = objectives.of(answer.request.priority)
        late = sum(gap > slo.itl_s for gap in answer.gaps_s)
        good += answer.ttft_s <= slo.ttft_s and late <= 0.01 * len(answer.gaps_s)
    return good / len(done.answers)


def moves(done):
    return [(at_s, change.new) for at_s, change in done.changes() if change.knob is Knob.DEFENDED_FROM_US]


def test_on_a_server_past_its_limit_for_the_tight_class_giving_it_up_pays():
    asked = traffic(7.0, 40.0, 3)
    given_up, kept = run(WITH, asked), run(WITHOUT, asked)
    assert moves(given_up)
    assert met(given_up) > 1.3 * met(kept)


def test_on_a_server_with_room_nothing_is_decided_otherwise():
    asked = traffic(1.0, 40.0, 3)
    assert moves(run(WITH, asked)) == []
    assert run(WITH, asked).steps == run(WITHOUT, asked).steps


def test_with_one_class_nothing_is_decided_otherwise():
    asked, one = traffic(7.0, 20.0, 3), Objectives(Slo(ttft_s=1.0, itl_s=0.025))
    assert run(WITH, asked, objectives=one).steps == run(WITHOUT, asked, objectives=one).steps


def test_it_comes_back_when_the_rush_is_over():
    rush = traffic(7.0, 30.0, 3)
    calm = [(at_s + 30.0, *rest) for at_s, *rest in traffic(0.8, 60.0, 3)]
    assert [value for _, value in moves(run(WITH, rush + calm))][-1] == 0


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.2])
@pytest.mark.parametrize("per_s", [3.0, 5.0, 7.0])
def test_it_does_not_swing(per_s, noise):
    changed = moves(run(WITH, traffic(per_s, 40.0, 3), noise))
    dwell_s = DWELL_AT_LEAST_S[Knob.DEFENDED_FROM_US]
    assert all(later - earlier >= dwell_s for (earlier, _), (later, _) in pairwise(changed))
    assert len([at_s for at_s, _ in changed if at_s < 40.0]) <= 2


@pytest.mark.parametrize("fields", [{"rows_per_request": 4}, {"speculation_window": 0}], ids=["drafts", "at_none_now"])
def test_idle_where_steps_may_yield_several_tokens(fields):
    asked = next(load for load in (demand(rate) for rate in (4.0, 6.0, 8.0, 12.0, 20.0)) if wanted(load))
    assert wanted(asked, **fields) == []
    assert "drafts" in Defence().idle_reason(seen(asked, **fields))
