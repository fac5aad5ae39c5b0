"""What it costs others that some ask: who counts as whom, and runs of SGLang's scheduler, up to the table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import fairness
from bench.composition import read_config
from bench.fairness import NOBODY, Fairness, compared, row
from bench.report.records import ArmRun, RequestRecord, ServerSample
from bench.slo import JudgedSlo
from bench.traffic.asks import asking
from roofline_policies.errors import EXIT_BAD_INPUT

SMALL = (
    "overrides=['traffic.max_requests=12','traffic.max_output_tokens=4','traffic.max_prompt_tokens=200']",
    "cells={near: ['traffic.rate_scale=1'], past: []}",
    "share=0.4",
)


def record(index: int, first_s: float) -> RequestRecord:
    return RequestRecord(index, "", 0.0, 0.0, (first_s,), first_s, 10, 0, 1, finish="length")


def test_those_that_ask_and_those_that_do_not_are_counted_apart_by_the_servers_slo() -> None:
    told = {"asked": 2, "moved": 1, "refused": 1, "last": None}
    samples = (ServerSample(0.0, ranks=({"asked_slo": {"asked": 0}},)), ServerSample(1.0, ranks=({"asked_slo": told},)))
    records = tuple(record(index, first_s) for index, first_s in enumerate([0.5, 0.5, 3.0, 0.5, 3.0]))
    found = row(ArmRun("a", 0, records, samples), JudgedSlo(ttft_s=1.0), [False, True, True, False, False])
    assert found == {"others": 2, "askers": 1, "asked_slo": told}


def test_a_run_is_held_against_its_own_cell_in_which_nobody_asks() -> None:
    rows: dict[tuple[str, str, str], dict[str, Any]] = {
        ("a", "near", NOBODY): {"others": 100, "askers": 10},
        ("a", "near", "fast"): {"others": 94, "askers": 11},
        ("a", "past", NOBODY): {"others": 50, "askers": 0},
        ("a", "past", "fast"): {"others": 55, "askers": 3},
    }
    found = {
        (one["arm"], one["cell"], one["asks"]): (one["others_ratio"], one["askers_ratio"]) for one in compared(rows)
    }
    assert found["a", "near", "fast"] == (0.94, 1.1)
    assert found["a", "past", "fast"] == (1.1, None)
    assert found["a", "near", NOBODY] == (1.0, 1.0)


def test_the_runs_of_a_cell_differ_in_what_those_that_ask_ask_for() -> None:
    settings = Fairness.from_config(read_config("fairness", SMALL))
    runs = settings.runs()
    assert len(runs) == 2 * (1 + len(settings.asks)) == 22
    drawn = asking(12, 0.4, 0)
    for (_, cell, name), experiment, _ in runs:
        asked = settings.asks.get(name)
        assert [one.slo for one in experiment.requests] == [asked if asks else None for asks in drawn]
        quiet = settings.cells[cell]
        assert [one.arrival_s for one in experiment.requests] == [one.arrival_s for one in quiet.requests]


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("arms=[nobody]", "arms = 'nobody': no such arm"),
        ("cells=null", "cells"),
        ("share=2", "fairness: share = 2"),
        ("+asks.nothing=null", "asks: nothing: asks for nothing"),
        ("policy_set=['slo.requests.itl_s=[2,1]']", "slo.requests.itl_s"),
        ("overrides=['traffic.rate=3']", "traffic.rate"),
    ],
)
def test_what_cannot_be_used_is_said_before_anything_runs(
    capsys: pytest.CaptureFixture[str], override: str, told: str
) -> None:
    assert fairness.main([*SMALL, override]) == EXIT_BAD_INPUT
    assert told in capsys.readouterr().err


@pytest.mark.slow
def test_by_default_nobody_loses_by_what_others_ask(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """SGLang's scheduler: what those that ask send is heard, granted as far as others have it, and costs nothing."""
    cells = "+cells={past: ['traffic.rate_scale=2','sample_every_s=0.05']}"
    chosen = ["~cells", cells, "~asks", "+asks={all: {ttft_s: 10, itl_s: 0.001}}"]
    assert fairness.main([SMALL[0], *chosen, "share=0.6", f"out_dir={tmp_path}", "processes=1"]) == 0
    out = capsys.readouterr().out
    result = json.loads(out.splitlines()[-1])
    assert result == json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    quiet, asked = result["runs"]
    told = asked["asked_slo"]  # of the last sample, before the last requests have come
    assert 1 <= told["asked"] == told["moved"] <= sum(asking(12, 0.6, 0))
    assert quiet["asked_slo"]["asked"] == 0
    assert asked["others_ratio"] == asked["askers_ratio"] == 1.0
    assert f"{told['asked']} of {told['asked']}" in out
