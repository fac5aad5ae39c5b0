"""Storms: SGLang's real scheduler on the virtual clock, every knob at random in every decision."""

import json
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from bench.storm import rounds
from bench.storm.__main__ import main, report
from bench.storm.load import URGENT, leaves_after_s, storm_load
from bench.storm.round import Result, Round
from bench.storm.rounds import OWN_ORDERS, draw_round, retracting
from bench.virtual.processes import Crash, run_each
from roofline_policies.contract.decision import Knob
from roofline_policies.policies.compose import merged
from roofline_policies.testing import Storm, fake_bounds, fake_view

REQUESTS = 90


def test_a_storm_speaks_of_every_knob_that_can_be_moved_within_its_range():
    bounds, seen = fake_bounds(), {}
    for decisions in range(400):
        for proposal in merged(Storm(3), fake_view(decisions=decisions)):
            seen.setdefault(proposal.knob, set()).add(proposal.value)
            assert bounds.clamp(proposal.knob, proposal.value) == proposal.value
    movable = {knob for knob in Knob if bounds.movable(knob)}
    assert set(seen) == movable
    for knob in movable:
        ends = {bounds.ranges[knob].low, bounds.ranges[knob].high} if knob in bounds.ranges else {False, True}
        assert ends <= seen[knob]


def test_equal_seeds_give_equal_storms_and_equal_loads():
    for seed in range(20):
        view = fake_view(decisions=seed)
        assert Storm(1).propose(view) == Storm(1).propose(view) != Storm(2).propose(view)
        load = {"most_prompt_tokens": 500, "most_output_tokens": 9, "interarrival_s": 0.1}
        assert storm_load(seed, 50, **load) == storm_load(seed, 50, **load) != storm_load(seed + 1, 50, **load)
        assert draw_round(seed, 50) == draw_round(seed, 50)


def test_a_load_has_bursts_with_a_new_prefix_and_a_long_prompt_behind_them():
    requests = storm_load(0, 400, most_prompt_tokens=3000, most_output_tokens=64, interarrival_s=0.1)
    assert [request.arrival_s for request in requests] == sorted(request.arrival_s for request in requests)
    assert all(1 <= request.prompt_tokens <= 3000 and 1 <= request.output_tokens <= 64 for request in requests)
    assert {request.priority for request in requests} == {None, URGENT}
    together = {}
    for request in requests:
        together.setdefault((request.arrival_s, request.prefix_blocks), []).append(request)
    assert max(len(shared) for (_, blocks), shared in together.items() if blocks) > 8


def test_clients_leave_as_often_as_they_are_told_to():
    assert all(leaves_after_s(0, index, 0.0, 5.0) is None for index in range(100))
    leaving = [leaves_after_s(0, index, 0.3, 5.0) for index in range(1000)]
    assert 250 < sum(after_s is not None for after_s in leaving) < 350
    assert all(0 <= after_s <= 5 for after_s in leaving if after_s is not None)


RESULT = Result(10, 9, 1, 0, 100, 20, 3, 5.0, None)


@pytest.mark.parametrize(
    ("results", "code"),
    [
        ([RESULT, RESULT], 0),
        ([RESULT, replace(RESULT, served=8, lost=1)], 1),
        ([replace(RESULT, problem="AssertionError: ")], 1),
        ([], 1),
    ],
)
def test_what_is_lost_is_in_the_exit_code_and_in_the_last_line(results, code, capsys):
    assert report("virtual", [("a server", one) for one in results]) == code
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["requests"] == 10 * len(results)
    bad = [one for one in results if one.lost or one.problem]
    assert line["problems"] == [{"server": "a server", **asdict(one)} for one in bad]


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["virtual", "--iterations", "0"], "--iterations"),
        (["virtual", "--seconds", "x"], "--seconds"),
        (["live"], "--model-path"),
        (["live", "--model-path", "nowhere"], "--model-path: 'nowhere': holds no config.json"),
        ([], "form"),
    ],
)
def test_what_cannot_be_used_is_named_before_anything_runs(argv, named, capsys):
    try:
        code = main(argv)
    except SystemExit as leaving:  # argparse
        code = leaving.code
    assert code == 2
    assert named in capsys.readouterr().err


switches = st.sampled_from(["--enable-mixed-chunk", "--disable-radix-cache", "--disable-overlap-schedule"])


# fmt: off
DIED = [
    Round(23, 120, ("--chunked-prefill-size", "64", "--page-size", "1", "--enable-mixed-chunk"), interarrival_s=0.02),
    Round(
        24, 150, ("--chunked-prefill-size", "960", "--page-size", "64", "--disable-radix-cache"), interarrival_s=0.02
    ),
]
"""While two prompts could be part-way, the scheduler ended in the first, and requests were lost in the second."""


@st.composite
def servers(draw):
    """A server and its load, of every kind that decides how prompts are admitted."""
    page = draw(st.sampled_from([1, 16, 64]))
    arguments = ["--page-size", str(page), "--chunked-prefill-size", str(draw(st.sampled_from([64, 128, 256, 1024])))]
    arguments += draw(st.lists(switches, unique=True, max_size=2))
    order = draw(st.sampled_from(["fcfs", "fcfs", "priority", *OWN_ORDERS]))
    if order == "priority":
        arguments.append("--enable-priority-scheduling")
    elif order != "shortest-prefill-first" or "--disable-radix-cache" not in arguments:
        arguments += ["--schedule-policy", order]
    if draw(st.booleans()):
        arguments += ["--max-running-requests", str(draw(st.integers(1, 10)))]
    pressed = draw(st.booleans())
    return Round(
        draw(st.integers(0, 10**6)), REQUESTS, tuple(arguments),
        kv_tokens=4096 if pressed else 65_536,
        most_prompt_tokens=draw(st.sampled_from([300, 2000])), most_output_tokens=draw(st.sampled_from([8, 200])),
        interarrival_s=draw(st.sampled_from([0.005, 0.05])), leaving=draw(st.sampled_from([0.0, 0.2])),
    )  # fmt: skip


def served(*drawn, work=rounds.serve_in_child):
    outcomes = dict(run_each(work, [(one,) for one in drawn], 2, lambda *_: None))
    assert not [outcome.problem for outcome in outcomes.values() if isinstance(outcome, Crash)]
    return [outcomes[place] for place in range(len(drawn))]


@pytest.mark.slow
@settings(max_examples=3, phases=(Phase.explicit, Phase.generate))  # each takes seconds: none is made smaller
@given(drawn=st.lists(servers(), min_size=4, max_size=4))
@example(drawn=DIED)
def test_no_order_of_knobs_loses_a_request_or_a_token(drawn):
    """SGLang checks its memory whenever nothing runs; a leak, an assertion, a policy that fails is a problem."""
    for one, result in zip(drawn, served(*drawn), strict=True):
        assert (result.problem, result.lost) == (None, 0), one
        assert result.served + result.left == one.requests


def aligned(one, told):
    """As under deterministic inference, whose backends need a GPU: chunks are cut to multiples of 96 tokens."""
    from bench.storm.virtual import serve

    def align(server):
        server.scheduler.truncation_align_size = 96

    return serve(one, told, align)


@pytest.mark.slow
def test_chunks_that_are_aligned_leave_no_second_prompt_part_way():
    plain = [Round(seed, REQUESTS, ("--chunked-prefill-size", "256"), interarrival_s=0.01) for seed in (1, 2)]
    for result in served(*plain, work=aligned):
        assert (result.problem, result.lost) == (None, 0)


@pytest.mark.slow
def test_memory_pressure_in_a_storm_costs_no_token():
    arguments = ("--chunked-prefill-size", "256", "--schedule-conservativeness", "0.1")
    pressed = Round(5, REQUESTS, arguments, 4096, 600, 400, 0.01, leaving=0.1)
    (result,) = served(pressed)
    assert (result.problem, result.lost) == (None, 0)


@pytest.mark.slow
def test_the_command_runs_until_so_many_iterations_are_done_also_under_forced_retractions():
    arguments = ["--iterations", "300", "--requests", "60", "--processes", "1", "--seed", "5", "--retract-every", "16"]
    run = subprocess.run(
        [sys.executable, "-m", "bench.storm", "virtual", *arguments], capture_output=True, text=True, timeout=600
    )
    assert run.returncode == 0, run.stderr[-2000:]
    line = json.loads(run.stdout.splitlines()[-1])
    assert line["iterations"] >= 300
    assert line["retractions"] > 10
    assert (line["lost"], line["problems"]) == (0, [])
    assert line["served"] + line["left"] == line["requests"]


def test_forced_retractions_are_those_that_sglang_makes_for_its_own_tests():
    from sglang.srt.environ import envs

    assert retracting(None) == {}
    for name in retracting(16):
        assert hasattr(envs, name)
