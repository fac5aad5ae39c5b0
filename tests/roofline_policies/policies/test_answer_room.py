"""Room for running answers, against the costs that it weighs and against closed forms."""

from math import exp, log

import pytest

from roofline_policies.contract.decision import Knob
from roofline_policies.policies import AnswerRoom, Static
from roofline_policies.slo.capacity import Capacity, Resource
from roofline_policies.slo.demand import Demand
from roofline_policies.testing import LinearSteps, fake_bounds, fake_knobs, fake_view

STEPS = LinearSteps(base_s=0.01, token_s=0.0, row_s=0.0, context_s=5e-8, pair_s=0.0)
N, M, L, CONTEXT = 80, 110_000, 1500, 1000


def seen(answer_tokens=L, running=N, **queue):
    demand = Demand(4.0, 300.0, 0.0, answer_tokens, 300.0, ())
    queue = {
        "running": running, "waiting": 9, "decode_context_tokens": running * CONTEXT, "demand": demand,
        "unwritten_tokens": 200_000, "next_unwritten_tokens": 0,
        "capacities": (Capacity(Resource.KV_TOKENS, 100_000, M, CONTEXT),), **queue,
    }  # fmt: skip
    return fake_view(predictor=STEPS, decisions=0, **queue)


def proposed(view):
    found = AnswerRoom().propose(view)
    assert all(proposal.knob is Knob.NEW_TOKEN_PERMILLE for proposal in found)
    return [proposal.value for proposal in found]


def lost(room, retraction_s, step_s, share):
    """Of each second, as the policy's docstring has it."""
    return N / (L * step_s) * exp(-room / L) * retraction_s + room / M * share


@pytest.mark.parametrize("gap_s", [None, 0.05])
def test_what_is_kept_loses_less_than_more_or_less_of_it(gap_s):
    """Without targets a retraction costs a prefill of 1,000 tokens, 10.05 ms; with some an answer's time as well."""
    step_s = 0.01 + 5e-8 * N * CONTEXT
    retraction_s = 0.01 + 5e-8 * CONTEXT + (0.0 if gap_s is None else L * step_s / N)
    share = 0.01 / step_s
    room = L * log(N * M * retraction_s / (share * L**2 * step_s))
    (value,) = proposed(seen(gap_s=gap_s))
    assert value == pytest.approx(room / 200, abs=10)
    kept = value * 200.0
    best = lost(kept, retraction_s, step_s, share)
    assert best <= lost(kept + 3000, retraction_s, step_s, share)
    assert best <= lost(max(0.0, kept - 4000), retraction_s, step_s, share)


def test_room_that_the_next_prompt_keeps_free_is_not_kept_twice():
    (without,), (with_it,) = proposed(seen(gap_s=0.05)), proposed(seen(gap_s=0.05, next_unwritten_tokens=4000))
    assert without - with_it == 20
    assert proposed(seen(gap_s=0.05, next_unwritten_tokens=100_000)) == [10]  # 0 would be the server's own estimate


def test_never_more_than_all():
    assert proposed(seen(unwritten_tokens=10, gap_s=0.05)) == [1000]


@pytest.mark.parametrize(
    "queue",
    [{"waiting": 0}, {"running": 0}, {"demand": None}, {"capacities": ()}, {"unwritten_tokens": 0}],
    ids=["nobody waits", "nobody runs", "answers are not known", "memory is not known", "nothing is left to write"],
)
def test_says_nothing_where_it_decides_nothing_or_does_not_know(queue):
    assert proposed(seen()) != []
    assert proposed(seen(**queue)) == []


def test_idles_where_the_estimate_is_fixed_and_where_steps_are_not_predicted():
    fixed = fake_bounds(immovable={Knob.NEW_TOKEN_PERMILLE: "it was fixed"})
    assert proposed(seen()._replace(bounds=fixed)) == []
    assert AnswerRoom().idle_reason(seen()._replace(bounds=fixed)) == "it was fixed"
    assert AnswerRoom().idle_reason(seen()) is None
    blind = seen()._replace(steps=None)
    assert proposed(blind) == []
    assert "not predicted" in AnswerRoom().idle_reason(blind)


def test_the_static_policy_leaves_it_to_the_server_again():
    found = Static().propose(seen()._replace(knobs=fake_knobs(new_token_permille=20)))
    assert [(proposal.knob, proposal.value) for proposal in found] == [(Knob.NEW_TOKEN_PERMILLE, 0)]
    assert Static().propose(seen()) == ()
