"""Classes of requests on the virtual clock: what the scheduler is told of them, and how each is judged."""

from __future__ import annotations

from array import array

from bench.composition import read_config
from bench.virtual.arms import VirtualArm
from bench.virtual.processes import Crash, run_each
from bench.virtual.settings import VirtualSettings
from bench.virtual.task import run_and_summarise
from sglang_patches.virtual.clock import VirtualClock
from sglang_patches.virtual.traffic import VirtualRequest, VirtualTraffic

CHOSEN = (
    "traffic.max_requests=8",
    "traffic.max_output_tokens=6",
    "traffic.max_prompt_tokens=300",
    "traffic.classes=[{priority: 10, share: 1}, {priority: 0, share: 1}]",
    "+slo.classes={10: {ttft_s: 1e-6}}",
)


def test_the_scheduler_gets_the_priority_as_a_client_would_send_it() -> None:
    def prompt() -> array[int]:
        return array("q", [1, 2, 3])

    asked = [VirtualRequest("a", 0.0, prompt, 3, 5, priority=10), VirtualRequest("b", 0.0, prompt, 3, 5)]
    messages = VirtualTraffic(VirtualClock(), asked).pull()
    assert {message.rid: message.priority for message in messages} == {"a": 10, "b": None}


def test_every_request_is_judged_by_its_class() -> None:
    experiment = VirtualSettings.from_config(read_config("virtual", ["arms=[default]", *CHOSEN])).experiment
    ((_, outcome),) = run_each(run_and_summarise, [(experiment, VirtualArm("default"), None)], 1, lambda *_: None)
    assert not isinstance(outcome, Crash), outcome
    run, row, _ = outcome
    asked = [one.priority for one in experiment.requests]
    assert [one.priority for one in run.records] == asked
    assert set(asked) == {0, 10}
    met = {name: (one["requests"], one["attainment"]) for name, one in row["classes"].items()}
    assert met == {"10": (asked.count(10), 0.0), "0": (asked.count(0), 1.0)}  # no first token comes within 1 us
    assert row["attainment"] == asked.count(0) / 8
