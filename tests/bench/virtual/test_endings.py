"""Answers that the scheduler cuts or aborts, and chunks of several tokens, on the virtual clock."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bench.composition import read_config
from bench.report.one_request import gaps_s
from bench.report.records import Ending
from bench.traffic import Request
from bench.virtual.arms import VirtualArm
from bench.virtual.processes import Crash, run_each
from bench.virtual.settings import Experiment, VirtualSettings
from bench.virtual.task import run_and_summarise

REQUESTS = (Request(0.0, 500, 400), Request(0.5, 900, 10), Request(1.0, 100, 20))


def experiment(*overrides: str) -> Experiment:
    conf = read_config("virtual", ["arms=[default]", "traffic.max_requests=1", "slo=none", *overrides])
    return VirtualSettings.from_config(conf).experiment


def small(*overrides: str) -> Experiment:
    """700 token slots: the first answer does not fit, nor does the second prompt."""
    base = experiment(*overrides)
    return replace(base, device=replace(base.device, kv_tokens=700), requests=REQUESTS)


def outcome(one: Experiment, arm: VirtualArm) -> tuple[Any, Any]:
    ((_, found),) = run_each(run_and_summarise, [(one, arm, None)], 1, lambda *_: None)
    assert not isinstance(found, Crash), found
    return found[0].records, found[1]


@pytest.mark.parametrize("told", ["output_cap_tokens=null", "output_cap_tokens=1024"])
def test_an_answer_that_memory_cuts_is_short_and_a_prompt_that_does_not_fit_aborted(told: str) -> None:
    (cut, refused, whole), row = outcome(small(told), VirtualArm("default"))
    assert (cut.ending, cut.finish, cut.error) == (Ending.SHORT, "length", None)
    assert 150 < cut.output_tokens < 200
    assert (refused.ending, refused.output_tokens) == (Ending.ABORTED, 0)
    assert whole.ending is Ending.COMPLETED
    assert whole.finish == ("length" if told.endswith("null") else "stop")
    assert [row[name] for name in ("completed", "short", "empty", "aborted", "errors")] == [1, 1, 0, 1, 0]
    assert row["attainment"] == 1 / 3


def test_tokens_of_a_step_that_drafts_share_its_time() -> None:
    base = experiment("draft=head", "output_cap_tokens=null")
    requests = (Request(0.0, 300, 200),)
    (plain,), _ = outcome(replace(base, requests=requests), VirtualArm("default"))
    (drafting,), row = outcome(replace(base, requests=requests), VirtualArm("drafting", speculation_steps=3))
    assert drafting.completed
    assert drafting.output_tokens == plain.output_tokens == 200
    chunks = len(set(drafting.token_s))
    assert row["tokens_per_chunk"] == 200 / chunks > 1.2
    gaps = gaps_s(drafting)
    assert (gaps > 0).all()
    assert gaps.sum() == pytest.approx(drafting.token_s[-1] - drafting.token_s[0])
    assert 0 < row["itl_p50_s"] <= row["icl_p50_s"]
