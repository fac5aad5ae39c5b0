"""SGLang's scheduler speculating on a virtual clock, against closed forms and a process that draws number by number.

Each run takes a process of its own; all of them are started once for the module.
"""

from __future__ import annotations

import dataclasses
import math
import random
from itertools import pairwise

import pytest

from roofline_policies.model.batch import BatchShape
from roofline_policies.steps.acceptance import Acceptance
from roofline_policies.steps.host_time import HostTime
from tests.sglang_patches.virtual.oracle_acceptance import runs_of
from tests.sglang_patches.virtual.runs import in_children
from tests.sglang_patches.virtual.speculative_runs import DRAFT, TARGET, TICK_S, Case, serve

CHOOSER = random.Random(7)
TOGETHER = tuple((0.0, CHOOSER.randrange(20, 300), CHOOSER.randrange(1, 400)) for _ in range(40))
# The same requests a long time apart, in another order of arrival.
APART = tuple((8.0 * (len(TOGETHER) - n), prompt, output) for n, (_, prompt, output) in enumerate(TOGETHER))
FEW = TOGETHER[:12]
LONG = tuple((0.05 * n, 30, 300) for n in range(12))

CASES = {
    "three": Case(TOGETHER),
    "again": Case(TOGETHER),
    "apart": Case(APART),
    "one": Case(FEW, steps=1, cap=None),
    "head": Case(FEW, steps=5, head=True, acceptance=Acceptance((0.9, 0.7, 0.5), spread=1.5, seed=1), shared=16),
    "mixed": Case(
        tuple((0.3 * n, prompt, output) for n, (_, prompt, output) in enumerate(TOGETHER[:16])), head=True,
        server_args=("--enable-mixed-chunk", "--chunked-prefill-size", "64"),
    ),
    "never": Case(FEW, acceptance=Acceptance((0.0,))),
    "always": Case(FEW, steps=4, acceptance=Acceptance((1.0,)), server_args=("--disable-overlap-schedule",)),
    "alone": Case(((0.0, 50, 200),), host=HostTime()),
    "tight": Case(LONG, steps=4, kv_tokens=1100, cap=320, server_args=("--schedule-conservativeness", "0.1")),
    "tight_head": Case(
        LONG, steps=2, head=True, kv_tokens=1100, cap=320, shared=20,
        server_args=("--schedule-conservativeness", "0.1", "--disable-overlap-schedule"),
    ),
    "watched": Case(FEW, policy="adaptive"),
    "turns": Case(
        ((0.0, 50, 200),), acceptance=Acceptance((1.0,)), host=HostTime(), windows=(0, 1, 3),
        server_args=("--disable-overlap-schedule",),
    ),
    "turns_together": Case(TOGETHER, windows=(0, 1, 3)),
    "average": Case(LONG, acceptance=Acceptance((0.0,)), windows=(0, 1, 3), rule="average"),
    "foreseen": Case(LONG, acceptance=Acceptance((0.0,)), windows=(0, 1, 3), rule="foresight"),
}  # fmt: skip


@pytest.fixture(scope="module")
def outcomes():
    return dict(zip(CASES, in_children(serve, *CASES.values()), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_every_token_is_delivered_once_and_nothing_is_left_behind(outcomes, name):
    case, outcome = CASES[name], outcomes[name]
    assert [len(times) for times in outcome.token_s] == [output for _, _, output in case.asks]
    assert outcome.errors == [None] * len(case.asks)
    assert outcome.kv_left == case.kv_tokens
    assert outcome.rows_left == outcome.most_running
    assert outcome.idle_checks > 0
    assert outcome.overlap == ("--disable-overlap-schedule" not in case.server_args)


@pytest.mark.parametrize("name", ["three", "apart", "one", "head", "never", "always", "watched"])
def test_tokens_come_in_the_runs_that_the_process_draws(outcomes, name):
    """One after the other or all together: what a request is granted depends on its id and place alone."""
    case = CASES[name]
    expected = [runs_of(case.acceptance, str(n), case.steps, output) for n, (_, _, output) in enumerate(case.asks)]
    assert outcomes[name].runs() == expected


def test_drafts_that_are_never_accepted_give_a_token_a_step_and_others_all_of_them(outcomes):
    assert {count for runs in outcomes["never"].runs() for count in runs} == {1}
    assert outcomes["never"].accepted[1:] == [0, 0, 0]
    for runs in outcomes["always"].runs():
        assert set(runs[1:-1]) <= {5}
    assert outcomes["always"].accepted[:-1] == [0, 0, 0, 0]


def test_the_mean_run_is_the_sum_of_products(outcomes):
    """Within 4 standard errors; the second moment of a run is the sum of (2 i - 1) P(run >= i)."""
    case, accepted = CASES["three"], outcomes["three"].accepted
    mean = 0.8 + 0.8 * 0.6 + 0.8 * 0.6 * 0.6
    variance = 0.8 + 3 * 0.8 * 0.6 + 5 * 0.8 * 0.6 * 0.6 - mean**2
    count = sum(accepted)
    found = sum(run * times for run, times in enumerate(accepted)) / count
    assert case.acceptance.mean_accepted(3) == pytest.approx(mean)
    assert count > 2500
    assert abs(found - mean) < 4 * math.sqrt(variance / count)


def test_equal_seeds_give_equal_bytes(outcomes):
    assert dataclasses.astuple(outcomes["three"]) == dataclasses.astuple(outcomes["again"])


def test_a_step_takes_the_drafts_the_verify_step_and_the_extend_step(outcomes):
    """Two drafts of a row, then 4 rows through both models: 64 + 2 a row of the target, 8 + 1 a row of the draft."""
    outcome = outcomes["alone"]
    step_s = (2 * (8 + 1) + (64 + 2 * 4) + (8 + 4)) * TICK_S
    moments = sorted(set(outcome.token_s[0]))
    assert {after - before for before, after in pairwise(moments)} == {step_s}
    prompt = BatchShape.of([(50, 0)])
    first_s = TARGET.step_s(prefill=prompt) + DRAFT.step_s(prefill=prompt)
    assert moments[0] == first_s
    assert outcome.busy_s == first_s + (outcome.iterations - 1) * step_s


def test_a_step_has_the_drafts_that_the_rule_said_and_takes_their_time(outcomes):
    """All are accepted, so K drafts give K + 1 tokens. 0: 64 + 2 of the target, 8 + 1 to catch up; 1: no draft by
    itself, 64 + 4, 8 + 2; 3: two of 8 + 1, 64 + 8, 8 + 4."""
    outcome = outcomes["turns"]
    runs = outcome.runs()[0]
    assert runs[1:-1] == ([1, 2, 4] * len(runs))[: len(runs) - 2]
    moments = sorted(set(outcome.token_s[0]))
    took = [after - before for before, after in pairwise(moments)]
    assert took == ([75 * TICK_S, 78 * TICK_S, 102 * TICK_S] * len(took))[: len(took)]
    assert outcome.told == [[run - 1] for run in runs[1:-1]] + outcome.told[len(runs) - 2 :]


def test_drafts_that_move_decide_of_no_token_twice(outcomes):
    """Runs are those of the longest chain, cut off; every step of a batch has the same number of drafts."""
    outcome = outcomes["turns_together"]
    assert all(count > 0 for count in (outcome.drafted[0], outcome.drafted[1], outcome.drafted[3]))
    assert outcome.drafted[2] == 0
    assert sum(outcome.drafted) == sum(outcome.accepted)


def test_sglangs_own_rule_and_foresight_give_up_drafts_that_fail(outcomes):
    """SGLang's takes its warm-up, then drafts one to see whether it is accepted as often as it drafts none; foresight
    never drafts."""
    average, foreseen = outcomes["average"], outcomes["foreseen"]
    assert foreseen.drafted[1:] == [0, 0, 0]
    none, one, two, three = average.drafted
    assert two == 0 < three < 0.1 * sum(average.drafted)
    assert none == pytest.approx(one, rel=0.1)
    assert average.busy_s > foreseen.busy_s


@pytest.mark.parametrize("name", ["tight", "tight_head"])
def test_under_pressure_requests_are_retracted_and_served_all_the_same(outcomes, name):
    assert outcomes[name].retractions > 0
    assert max(count for runs in outcomes[name].runs() for count in runs) == CASES[name].steps + 1


def test_a_shared_prefix_is_found_in_the_cache(outcomes):
    """SGLang's keys are pairs of tokens where a head drafts, so a prefix of n tokens is found up to n - 1."""
    assert outcomes["tight_head"].cached_tokens >= len(LONG) // 2 * 19


def test_rows_in_mixed_steps_take_one_token(outcomes):
    modes = outcomes["mixed"].modes
    assert "MIXED" in modes
    runs = [run for runs in outcomes["mixed"].runs() for run in runs]
    assert {1, 4} <= set(runs) <= {1, 2, 3, 4}


def test_a_loop_sees_every_verify_step_and_says_that_its_work_is_estimated(outcomes):
    outcome = outcomes["watched"]
    assert [record["mode"] for record in outcome.records] == [
        "prefill" if mode == "EXTEND" else mode.lower() for mode in outcome.modes
    ]
    decodes = [record for record in outcome.records if record["mode"] == "decode"]
    for record in decodes:
        rows = 4 * record["requests"]
        assert (record["new_tokens"], record["provenance"]) == (rows, ["estimated"])
        # Two drafts of a row per request, all rows through the target and the draft.
        ticks = 2 * (8 + record["requests"]) + 64 + 2 * rows + 8 + rows
        assert record["seconds"] == pytest.approx(ticks * TICK_S, abs=1e-9)
    assert sum(record["seconds"] for record in outcome.records) == pytest.approx(outcome.busy_s)
