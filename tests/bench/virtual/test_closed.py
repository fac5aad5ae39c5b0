"""Closed-loop traffic through SGLang's real scheduler on the virtual clock."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.composition import read_config
from bench.report.metrics import summarise
from bench.report.records import ArmRun
from bench.virtual.arms import VirtualArm
from bench.virtual.processes import Crash, run_each
from bench.virtual.settings import Experiment
from bench.virtual.task import run_and_summarise
from roofline_policies.steps.host_time import RequestPath


def experiment(*overrides: str) -> Experiment:
    words = ("traffic=closed", "output_cap_tokens=null", "traffic.prompt_tokens=300", "traffic.output_tokens=20")
    return Experiment.from_config(read_config("virtual", [*words, *overrides]))[0]


def run(*experiments: Experiment) -> list[ArmRun]:
    tasks = [(one, VirtualArm("default"), None) for one in experiments]
    found = dict(run_each(run_and_summarise, tasks, 2, lambda *_: None))
    for outcome in found.values():
        assert not isinstance(outcome, Crash), outcome
    return [found[index][0] for index in range(len(tasks))]


def most_in_flight(served: ArmRun) -> int:
    moments = [(one.scheduled_s, 1) for one in served.records] + [(one.token_s[-1], -1) for one in served.records]
    now = most = 0
    for _, change in sorted(moments):  # an end comes before what is sent at the same moment
        now += change
        most = max(most, now)
    return most


def test_slots_are_filled_at_once_and_each_sends_when_its_answer_is_there() -> None:
    common = ("traffic.concurrency=4", "traffic.range_ratio=0.5", "traffic.prompts_per_slot=6")
    varied = experiment(*common, "traffic.warmup_per_slot=0")
    warmed = experiment(*common, "traffic.warmup_per_slot=2")
    way = RequestPath(ingress_s=0.0625, egress_s=0.03125)
    plain, far, warm = run(varied, replace(varied, path=way), warmed)
    for served in (plain, far, warm):
        assert len(served.records) == 24
        assert all(one.completed for one in served.records)
        assert [one.output_tokens for one in served.records] == [one.output_tokens for one in varied.requests]
        assert most_in_flight(served) == 4
        ends = sorted(one.token_s[-1] for one in served.records)
        sent = [one.scheduled_s for one in served.records]
        assert sent == sorted(sent)
        assert sent[:4] == [sent[0]] * 4
        # The n-th that is sent after the first four is sent when the n-th answer is whole.
        assert sent[4:] == pytest.approx(ends[:20], abs=1e-9)
        assert [one.sent_s for one in served.records] == sent
    assert plain.records[0].scheduled_s == 0.0
    assert far.records[0].started_s == way.ingress_s
    # What only warms up is in no record, and all of it ended before the first that counts.
    assert warm.records[0].scheduled_s > 0.0
    assert warm.samples == () or warm.samples[0].t_s >= warm.records[0].scheduled_s
    figures = summarise(warm, varied.slo, None)
    assert figures["duration_s"] == pytest.approx(warm.records[-1].end_s - warm.records[0].scheduled_s, rel=0.2)
    assert figures["completed"] == 24


def test_requests_of_one_length_stay_in_step() -> None:
    (served,) = run(experiment("traffic.concurrency=5", "traffic.prompts_per_slot=3"))
    waves = [{one.scheduled_s for one in served.records[place : place + 5]} for place in (0, 5, 10)]
    assert [len(wave) for wave in waves] == [1, 1, 1]
