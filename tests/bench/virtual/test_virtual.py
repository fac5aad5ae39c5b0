"""``python -m bench.virtual`` from its arguments to its report, with SGLang's real scheduler."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import bench.virtual.__main__ as command
from bench.composition import read_config
from bench.report.metrics import summarise
from bench.report.records import ArmRun, RequestRecord
from bench.virtual.arms import VirtualArm
from bench.virtual.processes import Crash, run_each
from bench.virtual.settings import Experiment, VirtualSettings
from bench.virtual.task import run_and_summarise
from roofline_policies.errors import InputError
from roofline_policies.steps.host_time import HostTime, RequestPath
from tests import ROOT

LENGTHS = "prompt_median: {prompt}, prompt_sigma: 0.8, output_median: 12, output_sigma: 0.6"
PHASE = f"duration_s: 3, rate_per_s: {{rate}}, {LENGTHS}"
CHAT, LONG = PHASE.format(rate=6, prompt=800), PHASE.format(rate=4, prompt=6000)
TRAFFIC = f"traffic.phases=[{{name: chat, {CHAT}}}, {{name: long, {LONG}}}]"
GRID = "grid: {prefill_chunk_tokens: [512, 8192], max_running_requests: [64]}"
ARMS = f"default: {{}}, adaptive: {{policy: adaptive}}, broken: {{server_args: [--no-such-flag]}}, few: {{{GRID}}}"
CHOSEN = (TRAFFIC, "~arms", f"+arms={{{ARMS}}}", "slo.itl_s=0.03", "usd_per_h=3", "price.noise=0.05")
NAMES = ["default", "adaptive", "broken", "exclusive_c512_r64", "exclusive_c8192_r64"]


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    """The command takes SIGTERM for itself."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("first") / "a" / "b"


@pytest.fixture(scope="module")
def ran(out: Path) -> tuple[int, str, str]:
    """The command's exit code, what it printed, and what it said on the way."""
    return run_command(out)


def run_command(out: Path) -> tuple[int, str, str]:
    told, said = out.parent / "told", out.parent / "said"
    out.parent.mkdir(parents=True, exist_ok=True)
    with told.open("w") as stdout, said.open("w") as stderr, redirect_stdout(stdout), redirect_stderr(stderr):
        code = command.main([f"out_dir={out}", *CHOSEN])
    return code, told.read_text(), said.read_text()


def test_a_crashed_arm_is_shown_and_the_others_are_compared(ran: tuple[int, str, str], out: Path) -> None:
    code, told, said = ran
    assert code == 0
    table, line = told.rstrip("\n").rsplit("\n", 1)
    assert "crashed 1 of 1" in table
    assert "goodput req/s" in table
    assert "adaptive against default: " in table
    assert f"report: {out / 'report.html'}" in table
    result = json.loads(line)
    assert line + "\n" == (out / "result.json").read_text()
    assert [(row["arm"], row["status"]) for row in result["runs"]] == [
        (name, "crashed" if name == "broken" else "ok") for name in NAMES
    ]
    broken = result["runs"][2]
    assert broken["crash"] == "SystemExit: 2"
    assert (broken["goodput_per_s"], broken["regret"], broken["requests"]) == (None, None, 0)
    assert result["ratios"]["broken/default"] == {}
    assert result["ratios"]["adaptive/default"]["goodput_per_s"]["pairs"] == 1
    reason = "unrecognized arguments: --no-such-flag"
    assert reason in said
    assert reason in (out / "report.html").read_text()


def documented() -> set[str]:
    """The JSON keys of the table of docs/metrics.md that says what is reported per run."""
    page = (ROOT / "docs" / "metrics.md").read_text()
    table = page.partition("## Per run\n")[2].partition("\n## ")[0]
    cells = [line.split("|")[2] for line in table.splitlines() if line.startswith("|")]
    return {key for cell in cells for key in re.findall(r"`(\w+)`", cell)}


def test_every_arm_has_every_metric_that_is_documented(ran: tuple[int, str, str]) -> None:
    result = json.loads(ran[1].rstrip("\n").rsplit("\n", 1)[1])
    keys = documented()
    assert {"goodput_per_s", "ttft_p99_s", "longest_wait_s", "deferrals", "policy_state"} <= keys
    elsewhere = {"policy_time_p50_s", "policy_time_p99_s", "policy_state", "fallback_reason", "knob_changes"}
    elsewhere |= {"draft_acceptance", "drafts_rejected_per_token"}  # nothing drafts here
    for row in result["runs"]:
        assert keys <= set(row), row["arm"]
        if row["status"] == "ok":
            assert {key for key in keys - elsewhere if row[key] is None} == set(), row["arm"]
            assert row["completed"] == row["requests"] == result["requests"] > 0
            assert row["errors"] == row["slip_p99_s"] == 0
            assert set(row["phases"]) == {"chat", "long"}
    by = {row["arm"]: row for row in result["runs"]}
    assert by["adaptive"]["policy_state"] == "active"
    assert by["adaptive"]["knob_changes"] > 0
    assert by["default"]["policy_state"] is by["default"]["knob_changes"] is None


def test_oracles_are_the_best_of_the_fixed_arms(ran: tuple[int, str, str]) -> None:
    result = json.loads(ran[1].rstrip("\n").rsplit("\n", 1)[1])
    by = {row["arm"]: row for row in result["runs"]}
    overall = result["oracles"]["overall"]
    assert overall["goodput_per_s"] == max(by[name]["goodput_per_s"] for name in NAMES[3:])
    for phase, found in result["oracles"]["per_phase"]["phases"].items():
        assert found["attainment"] == max(by[name]["phases"][phase]["attainment"] for name in NAMES[3:])
    assert by[overall["arm"]]["regret"] == 0
    assert by["adaptive"]["regret"] == 1 - by["adaptive"]["goodput_per_s"] / overall["goodput_per_s"]


def test_records_are_what_the_rows_are_made_of(ran: tuple[int, str, str], out: Path) -> None:
    result = json.loads(ran[1].rstrip("\n").rsplit("\n", 1)[1])
    lines = (out / "default.0.requests.jsonl").read_text().splitlines()
    records = tuple(RequestRecord(**json.loads(line)) for line in lines)
    assert [one.index for one in records] == list(range(result["requests"]))
    assert all(len(one.token_s) == one.output_tokens_asked and one.sent_s == one.scheduled_s for one in records)
    chosen = settings(*CHOSEN)
    again = summarise(ArmRun("default", 0, records, ()), chosen.experiment.slo, 3.0)
    row = result["runs"][0]
    for key in ("goodput_per_s", "ttft_p99_s", "itl_p99_s", "e2e_p50_s", "usd_per_million_tokens", "longest_wait_s"):
        assert row[key] == again[key]
    assert (out / "adaptive.0.server.jsonl").stat().st_size > 0


def test_a_second_run_beside_a_busy_core_prints_the_same_bytes(
    ran: tuple[int, str, str], out: Path, tmp_path: Path
) -> None:
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        code, told, _ = run_command(tmp_path / "second" / "run")
    finally:
        busy.kill()
        busy.wait()
    assert code == 0
    # Whether, and not where: the difference of such lines is nothing to read.
    assert (told.rsplit("\n", 2)[1] == ran[1].rsplit("\n", 2)[1]) is True
    again = tmp_path / "second" / "run"
    files = sorted(file.name for file in out.glob("*.jsonl"))
    assert len(files) == 2 * len(NAMES)
    assert [name for name in files if (again / name).read_bytes() != (out / name).read_bytes()] == []


def test_nothing_but_crashes_exits_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arms = ("~arms", "+arms={broken: {server_args: [--no-such-flag]}}", "baseline=broken")
    assert command.main([f"out_dir={tmp_path}", TRAFFIC, *arms]) == 1
    (row,) = json.loads(capsys.readouterr().out.rstrip("\n").rsplit("\n", 1)[1])["runs"]
    assert row["status"] == "crashed"


def test_an_interruption_is_said_and_leaves_no_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "run_each", interrupted)
    assert command.main([f"out_dir={tmp_path}"]) == 130
    assert capsys.readouterr().err.endswith("interrupted; no report was written\n")
    assert not (tmp_path / "report.html").exists()


def settings(*overrides: str) -> VirtualSettings:
    return VirtualSettings.from_config(read_config("virtual", overrides))


def run(*experiments: Experiment) -> list[ArmRun]:
    tasks = [(experiment, VirtualArm("default"), None) for experiment in experiments]
    found = dict(run_each(run_and_summarise, tasks, 2, lambda *_: None))
    for outcome in found.values():
        assert not isinstance(outcome, Crash), outcome
    return [found[index][0] for index in range(len(tasks))]


def trace(folder: Path) -> str:
    """Requests far apart: blocks 1 and 2 are shared by all, the last has nothing but what was there."""
    rows = [(0, 1600, [1, 2, 3, 4]), (10, 1100, [1, 2, 9]), (20, 1024, [1, 2]), (30, 700, [7, 8])]
    lines = [
        json.dumps({"timestamp": s * 1000, "input_length": length, "output_length": 20, "hash_ids": blocks})
        for s, length, blocks in rows
    ]
    file = folder / "trace.jsonl"
    file.write_text("\n".join(lines) + "\n")
    return f"traffic.path={file}"


def test_prompts_share_what_the_trace_says_and_the_way_to_the_server_adds_to_every_time(tmp_path: Path) -> None:
    plain = settings("traffic=mooncake", trace(tmp_path)).experiment
    way = RequestPath(ingress_s=0.0625, egress_s=0.03125)
    short, long = run(plain, replace(plain, path=way))
    for served in (short, long):
        assert [one.cached_tokens for one in served.records] == [0, 1024, 1023, 0]
        assert [one.prompt_tokens for one in served.records] == [1600, 1100, 1024, 700]
        assert [one.error for one in served.records] == [None] * 4
    for near, far in zip(short.records, long.records, strict=True):
        assert far.started_s == near.scheduled_s + way.ingress_s
        assert far.scheduled_s == far.sent_s == near.scheduled_s == near.started_s
        late = [there - here for here, there in zip(near.token_s, far.token_s, strict=True)]
        assert late == pytest.approx([way.ingress_s + way.egress_s] * 20, abs=1e-9)  # rounding
        assert far.end_s == far.token_s[-1]
    assert short.records[1].token_s[0] - 10 < short.records[0].token_s[0]  # what is cached is not computed


def test_answers_beyond_the_cap_come_whole_and_what_is_open_at_the_end_is_an_error(tmp_path: Path) -> None:
    plain = settings("traffic=mooncake", trace(tmp_path), "output_cap_tokens=8").experiment
    slow = replace(plain, host=HostTime(0.05), drain_s=0.5)
    capped, cut = run(plain, slow)
    assert [len(one.token_s) for one in capped.records] == [20] * 4
    assert [one.error for one in cut.records] == [None] * 3 + ["open after 0.5 s of draining"]
    last = cut.records[3]
    assert 0 < len(last.token_s) < 20
    assert 0.5 < last.end_s - last.scheduled_s < 0.5 + 2 * 0.055  # it is seen in the pass after that
    assert last.end_s >= last.token_s[-1]


def test_what_policies_are_told_of_step_times_is_in_force() -> None:
    """The clock charges the same in all of them."""
    ways = ["auto", "roofline", "none", "h200"]
    chosen = ", ".join(f"{way}: {{policy: adaptive, policy_set: ['efficiency={way}']}}" for way in ways)
    plan = settings(TRAFFIC, "~arms", f"+arms={{{chosen}}}", "baseline=auto", "slo.itl_s=0.03")
    tasks = [(plan.experiment, arm, None) for arm in plan.arms]
    found = dict(run_each(run_and_summarise, tasks, 2, lambda *_: None))
    tokens = {}
    for index, arm in enumerate(plan.arms):
        assert not isinstance(found[index], Crash), found[index]
        tokens[arm.name] = [one.token_s for one in found[index][0].records]
    assert tokens["h200"] == tokens["auto"]  # the device's own coefficients, found by its name
    assert tokens["roofline"] != tokens["auto"]
    assert tokens["none"] != tokens["auto"]
    assert tokens["none"] != tokens["roofline"]


def test_coefficients_that_do_not_cover_the_kernels_end_before_anything_runs() -> None:
    arm = "{a: {policy: adaptive, policy_set: ['efficiency=h200']}}"
    with pytest.raises(InputError, match=r"kernel = .no_such.: no such kernel"):
        settings(
            "hardware=l4", "efficiency=roofline", "device.attention=no_such", "~arms", f"+arms={arm}", "baseline=a"
        )
