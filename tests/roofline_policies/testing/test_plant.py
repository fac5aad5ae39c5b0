"""The model of a scheduler that policies are tested on: nothing is lost, and simple traffic takes what paper says."""

import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roofline_policies.contract.decision import Knob
from roofline_policies.contract.view import ForwardMode
from roofline_policies.errors import FieldError
from roofline_policies.policies import BatchSize, PrefillDeferral, Proposal, SloGuard, Static, compose
from roofline_policies.slo.objectives import Objectives, Slo
from roofline_policies.testing import LinearSteps, Machine, Plant

PREDICTIVE = compose(BatchSize(), PrefillDeferral(), SloGuard())
TRAFFIC = [(0.1 * i, (100, 3000, 12_000)[i % 3], 1 + 7 * i % 40, None) for i in range(25)]
TICK = LinearSteps(base_s=1.0, token_s=0.0, row_s=0.0, context_s=0.0, pair_s=0.0)

requests = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.4, 1.3, 3.0]), st.integers(1, 20_000), st.integers(1, 60), st.sampled_from([None, 1]),
    ),
    min_size=1, max_size=25,
)  # fmt: skip
machines = st.builds(
    Machine, max_running_requests=st.integers(1, 16), prefill_chunk_tokens=st.sampled_from([64, 512, 8192]),
    mixed_chunk=st.booleans(), kv_tokens=st.integers(20_060, 60_000), bias=st.sampled_from([0.5, 1.0, 2.0]),
    noise=st.sampled_from([0.0, 0.1, 0.2]), delay_steps=st.integers(0, 4), overlap=st.booleans(),
)  # fmt: skip


class Says:
    def __init__(self, knob, value):
        self.answer = Proposal("Says", knob, value, "because")

    def propose(self, view):
        return (self.answer,)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(requests, machines, st.booleans())
def test_nothing_is_lost(asked, machine, predictive):
    objectives = Objectives(Slo(itl_s=0.05), {1: Slo(ttft_s=0.5)})
    run = Plant(PREDICTIVE if predictive else Static(), machine, objectives=objectives).run(asked)
    assert run.finished
    assert [tuple(answer.request) for answer in run.answers] == asked
    assert sum(step.prompt_tokens for step in run.steps) == sum(prompt for _, prompt, _, _ in asked)
    assert sum(step.rows for step in run.steps) == sum(output - 1 for _, _, output, _ in asked)
    for answer in run.answers:
        assert answer.token_s[0] > answer.request.arrival_s
        assert all(gap > 0 for gap in answer.gaps_s)
    for before, after in pairwise(run.steps):
        assert after.start_s >= before.done_s
        assert after.launched_s >= before.launched_s
    for step in run.steps:
        assert step.rows <= machine.max_running_requests
        assert step.prompt_tokens <= machine.prefill_chunk_tokens
    assert all(moment.queue.kv_use <= 1.0 for moment in run.moments)


def test_equal_seeds_give_equal_runs_and_other_seeds_others():
    def run(seed, noise=0.1):
        return Plant(PREDICTIVE, Machine(noise=noise), objectives=Objectives(Slo(itl_s=0.05)), seed=seed).run(TRAFFIC)

    assert run(3) == run(3)
    assert run(3) != run(4)
    assert run(3, noise=0.0) == run(4, noise=0.0)


@pytest.mark.parametrize("overlap", [False, True])
def test_one_request_takes_what_paper_says(overlap):
    steps = LinearSteps(base_s=1.0, token_s=0.01, row_s=0.1, context_s=0.001, pair_s=1e-6)
    (answer,) = Plant(Static(), Machine(overlap=overlap), times=steps).run([(5.0, 1000, 3, None)]).answers
    first_s = 1.0 + 0.01 * 1000 + 0.1 + 0.001 * 1000 + 1e-6 * 1000 * 1001 / 2
    assert answer.ttft_s == pytest.approx(first_s)
    # The two decode steps attend to the prompt and to the one and two tokens that there are.
    assert answer.gaps_s == pytest.approx([1.0 + 0.01 + 0.1 + 0.001 * n + 1e-6 * n for n in (1001, 1002)])


def test_a_prompt_is_cut_into_chunks_and_bias_scales_every_step():
    run = Plant(Static(), Machine(prefill_chunk_tokens=512, bias=1.5), times=TICK).run([(0.0, 1200, 1, None)])
    assert [step.prompt_tokens for step in run.steps] == [512, 512, 176]
    assert [step.done_s for step in run.steps] == pytest.approx([1.5, 3.0, 4.5])


def test_requests_beyond_the_cap_wait_for_a_place():
    run = Plant(Static(), Machine(max_running_requests=1, overlap=False), times=TICK).run([(0.0, 10, 3, None)] * 2)
    assert [answer.token_s for answer in run.answers] == [(1.0, 2.0, 3.0), (4.0, 5.0, 6.0)]


def test_requests_beyond_the_pool_wait_for_room():
    run = Plant(Static(), Machine(kv_tokens=20, overlap=False), times=TICK).run([(0.0, 10, 3, None)] * 2)
    assert [answer.token_s for answer in run.answers] == [(1.0, 2.0, 3.0), (4.0, 5.0, 6.0)]


def test_prefill_alone_makes_the_running_wait_and_with_them_does_not():
    asked = [(0.0, 10, 4, None), (0.5, 1500, 1, None)]

    def run(mixed):
        machine = Machine(prefill_chunk_tokens=1000, mixed_chunk=mixed, overlap=False)
        return Plant(Static(), machine, times=TICK).run(asked)

    assert run(False).answers[0].token_s == (1.0, 4.0, 5.0, 6.0)
    assert run(True).answers[0].token_s == (1.0, 2.0, 3.0, 4.0)
    assert [step.mode for step in run(True).steps[1:3]] == [ForwardMode.MIXED] * 2


def test_a_knob_that_keeps_prompts_out_does_so_while_others_decode():
    asked = [(0.0, 10, 4, None), (0.5, 10, 1, None)]
    run = Plant(Says(Knob.DEFER_PREFILL, True), Machine(overlap=False), times=TICK).run(asked)
    assert [answer.token_s[0] for answer in run.answers] == [1.0, 5.0]
    assert [step.deferred for step in run.steps] == [False, True, True, True, False]


def test_with_deadlines_the_tighter_class_goes_first():
    asked = [(0.0, 100, 2, None), (0.1, 100, 1, None), (0.1, 100, 1, 1)]
    objectives = Objectives(Slo(ttft_s=50.0), {1: Slo(ttft_s=20.0)})
    machine = Machine(prefill_chunk_tokens=100, overlap=False)
    in_order = Plant(Static(), machine, times=TICK, objectives=objectives).run(asked)
    by_deadline = Plant(SloGuard(), machine, times=TICK, objectives=objectives).run(asked)
    assert [answer.token_s[0] for answer in in_order.answers] == [1.0, 2.0, 3.0]
    assert [answer.token_s[0] for answer in by_deadline.answers] == [1.0, 3.0, 2.0]


def test_records_come_later_by_the_delay():
    class Counts:
        def __init__(self):
            self.known = []

        def propose(self, view):
            self.known.append(view.decode_step_s is not None)
            return ()

    def first_known(delay):
        policy = Counts()
        Plant(policy, Machine(delay_steps=delay, overlap=False), times=TICK).run([(0.0, 10, 20, None)])
        return policy.known.index(True)

    assert [first_known(delay) for delay in (0, 1, 4)] == [first_known(0) + delay for delay in (0, 1, 4)]


@pytest.mark.parametrize(
    ("request_", "key"), [((0.0, 0, 1, None), "requests"), ((0.0, 1, 0, None), "requests"),
                          ((-1.0, 1, 1, None), "requests"), ((0.0, 300, 300, None), "requests")],
)  # fmt: skip
def test_requests_that_cannot_be_are_refused(request_, key):
    with pytest.raises(FieldError) as refused:
        Plant(Static(), Machine(kv_tokens=500)).run([request_])
    assert refused.value.key == key


@pytest.mark.parametrize(
    "change", [{"max_running_requests": 0}, {"prefill_chunk_tokens": 0}, {"kv_tokens": 0}, {"bias": 0.0},
               {"noise": 0.4}, {"delay_steps": -1}],
)  # fmt: skip
def test_machines_that_cannot_be_are_refused(change):
    with pytest.raises(FieldError):
        replace(Machine(), **change)


def test_testing_a_policy_needs_no_more_than_this_package():
    code = """
import sys
from roofline_policies.policies import Static
from roofline_policies.testing import Plant, fake_view

assert Plant(Static()).run([(0.0, 100, 2, None)]).finished and Static().propose(fake_view()) == ()
print({"torch", "sglang", "numpy", "hydra", "triton", "datasketches"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("set()\n", "")
