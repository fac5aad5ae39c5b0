"""The command from its arguments to its table, with made-up metrics in the place of SGLang."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import bench.sweep.run
from bench.slo import JudgedSlo
from bench.sweep.__main__ import main
from bench.virtual.arms import VirtualArm
from bench.virtual.processes import Crash
from roofline_policies.errors import EXIT_BAD_INPUT
from tests.bench.sweep.cells import overrides, row

Work = Callable[..., Any]
Answer = Callable[[int, VirtualArm], Any]


class Runner:
    """Stands in for processes: answers the tasks in order, and remembers which arms it was asked for, and by
    what each of them is judged."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.judged: list[list[JudgedSlo]] = []
        self.answer: Answer = lambda index, arm: (row(arm.name, 60 if arm.fixed else 30 + 10 * index), 2.5)
        monkeypatch.setattr(bench.sweep.run, "run_each", self.run_each)

    def run_each(
        self, work: Work, tasks: Sequence[tuple[Any, ...]], processes: int, progress: object
    ) -> Iterator[tuple[int, Any]]:
        for index, (_, arm, judges) in enumerate(tasks):
            self.asked.append(arm.name)
            self.judged.append([slo for slo, _ in judges])
            answer = self.answer(index, arm)
            yield index, answer if isinstance(answer, Crash) else ([answer[0]] * len(judges), answer[1])


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> Runner:
    return Runner(monkeypatch)


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    return overrides(f"out_dir={tmp_path / 'out'}", "processes=1")


def lines(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out.splitlines()[-1]


def test_a_sweep_runs_cell_by_cell_and_reports(
    runner: Runner, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command) == 0
    assert runner.asked == ["default", "exclusive_c2048_r64"] * 2
    shown = capsys.readouterr()
    assert "goodput / goodput of the best fixed setting, 2 of 2 cells" in shown.out
    assert "1/4 low: default, 2.5 s of one core" in shown.err
    result = json.loads(shown.out.splitlines()[-1])
    assert result == json.loads((tmp_path / "out" / "sweep.json").read_text())
    of_cells = {"worst": "low", "cells": 2}
    ratios = {"min": 0.5, "median": pytest.approx(2 / 3), "max": pytest.approx(5 / 6)}
    assert result["summary"][0] == {
        "arm": "default", **ratios, **of_cells, "crashes": 0, "good_tokens": {**ratios, **of_cells}, "against": {},
        "attainment": {**ratios, **of_cells}, "weighted": {**ratios, **of_cells},
        "weighted_tokens": {**ratios, **of_cells},
        "cost_median": pytest.approx((160 / 130 + 160 / 150) / 2), "longest_tenth_ttft_p99_median_s": 6.0,
    }  # fmt: skip
    assert (result["oracles"], result["fixed"]) == ({"fixed": ["exclusive_c2048_r64"]}, ["exclusive_c2048_r64"])
    assert (result["group_by"], result["groups"]) == (None, [])
    (place,) = result["capacity"]["places"]
    assert (place["place"], place["loads"]) == ("all", [1.0, 2.0])
    assert place["arms"]["default"]["text"] == "< 1"
    assert (tmp_path / "out" / "sweep.html").is_file()
    assert [(line["cell"], line["row"]["arm"]) for line in lines(tmp_path)] == [
        ("low", "default"), ("low", "exclusive_c2048_r64"), ("high", "default"), ("high", "exclusive_c2048_r64")
    ]  # fmt: skip


def test_all_cells_are_printed_as_markdown_on_request(
    runner: Runner, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command) == 0
    *before, result = capsys.readouterr().out.splitlines()
    assert main([*command, "markdown=true"]) == 0
    *after, again = capsys.readouterr().out.splitlines()
    assert json.loads(again) == json.loads(result)
    assert [line for line in after if line not in before] == [
        "| cell | best fixed | SLO met % | default |",
        "| --- | --: | --: | --: |",
        "| low | exclusive_c2048_r64 | 60.0 | 0.50 |",
        "| high | exclusive_c2048_r64 | 60.0 | 0.83 |",
    ]


def test_cells_below_the_least_ratio_are_listed(
    runner: Runner, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 60 requests that the fixed setting serves, default serves 30 and 50."""
    assert main(command) == 0
    assert (
        json.loads(last_line(capsys))["shortfalls"] == []
    )  # an arm without a policy is looked at when it is asked for
    assert main([*command, "examined=[default]", "markdown=true"]) == 0
    shown = capsys.readouterr().out.splitlines()
    result = json.loads(shown[-1])
    assert (result["examined"], result["least_ratio"]) == (["default"], 0.98)
    assert [(one["cell"], one["ratio"]) for one in result["shortfalls"]] == [
        ("low", 0.5),
        ("high", pytest.approx(5 / 6)),
    ]
    assert any("below 0.98 of the best fixed setting" in line for line in shown)
    best = "exclusive_c2048_r64 | 60.0 | 10.00 | first token 40; first token"
    assert [line for line in shown if line.startswith("| low | default")] == [
        f"| low | default | 0.500 | 30.0 | 10.00 | {best} 70 |"
    ]
    assert main([*command, "examined=[default]", "least_ratio=0.8"]) == 0
    assert [one["cell"] for one in json.loads(last_line(capsys))["shortfalls"]] == ["low"]


def test_groups_capacities_and_a_further_oracle_are_reported(
    runner: Runner, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    met = {"default": (95, 45), "exclusive_c2048_r64": (90, 60), "best_c512_r64": (100, 75)}
    runner.answer = lambda index, arm: (row(arm.name, met[arm.name][index // 3]), 2.5)
    grid = "{grid: {prefill_chunk_tokens: [512], max_running_requests: [64]}, oracle: best}"
    assert main([*command, f"+arms.other={grid}", "group_by=load"]) == 0
    shown = capsys.readouterr()
    assert "at load = high: goodput / goodput of the best fixed setting, 1 of 1 cells" in shown.out
    result = json.loads(shown.out.splitlines()[-1])
    assert result["oracles"] == {"fixed": ["exclusive_c2048_r64"], "best": ["best_c512_r64"]}
    assert [(group["value"], group["summary"][0]["median"]) for group in result["groups"]] == [
        ("low", pytest.approx(95 / 90)), ("high", 0.75)
    ]  # fmt: skip
    assert result["summary"][0]["against"]["best"]["min"] == 0.6
    assert [place["arms"]["default"]["text"] for place in result["capacity"]["places"]] == ["1.1"]
    (place,) = result["capacity"]["places"]
    assert place["arms"]["exclusive_c2048_r64"]["rate_scale"] == 1.0
    assert result["capacity"]["summary"][2]["median"] == pytest.approx(1.4 / 1.1)


def test_what_is_there_is_not_run_again(
    runner: Runner, command: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    main(command)
    first = last_line(capsys)
    runner.asked.clear()
    assert main(command) == 0
    shown = capsys.readouterr()
    assert (runner.asked, shown.out.splitlines()[-1]) == ([], first)
    assert "4 of 4 results are in" in shown.err
    assert main([*command, "axes.load.high=['traffic.rate_scale=3']"]) == 0
    assert runner.asked == ["default", "exclusive_c2048_r64"]
    assert len(lines(tmp_path)) == 6  # the stale ones stay, unused
    told = capsys.readouterr().err
    assert ("2 of 4 results are in" in told, "and 2 of other settings or other code" in told) == (True, True)


def test_an_interrupted_sweep_goes_on_where_it_was(
    runner: Runner, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calm = runner.answer

    def interrupted(index: int, arm: VirtualArm) -> Any:
        if index == 2:
            raise KeyboardInterrupt
        return calm(index, arm)

    runner.answer = interrupted
    assert main(command) == 130
    assert "the same command goes on from there" in capsys.readouterr().err
    path = tmp_path / "out" / "results.jsonl"
    assert len(lines(tmp_path)) == 2
    path.write_bytes(path.read_bytes() + path.read_bytes()[:50])  # killed in the middle of the third line
    runner.answer = lambda index, arm: calm(index + 2, arm)
    runner.asked.clear()
    assert main(command) == 0
    assert runner.asked == ["default", "exclusive_c2048_r64"]
    assert len({line["key"] for line in lines(tmp_path)}) == 4


def test_a_crash_is_kept_shown_and_tried_again_only_on_request(
    runner: Runner, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calm = runner.answer
    runner.answer = lambda index, arm: Crash("ValueError: no", ("the tail",)) if index == 2 else calm(index, arm)
    assert main(command) == 0
    shown = capsys.readouterr()
    assert "high: default crashed: ValueError: no\nthe tail" in shown.err
    result = json.loads(shown.out.splitlines()[-1])
    assert result["summary"][0]["crashes"] == 1
    assert (result["cells"][1]["arms"]["default"]["status"], result["cells"][1]["arms"]["default"]["ratio"]) == (
        "crashed", None
    )  # fmt: skip
    runner.asked.clear()
    assert main(command) == 0
    assert runner.asked == []
    assert last_line(capsys) == shown.out.splitlines()[-1]
    runner.answer = calm
    assert main([*command, "retry_crashed=true"]) == 0
    assert runner.asked == ["default"]
    assert json.loads(last_line(capsys))["summary"][0]["crashes"] == 0
    assert len(lines(tmp_path)) == 5


def test_if_every_unit_crashed_the_command_says_so(
    runner: Runner, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    runner.answer = lambda index, arm: Crash("OSError: gone")
    assert main(command) == 1
    result = json.loads(last_line(capsys))
    assert result["cells_counted"] == 0
    assert result["cells"][0]["oracles"] == {"overall": None, "per_phase": None}


def test_units_that_all_the_same_decides_run_once(
    runner: Runner, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Two names of one cell, two names of one arm."""
    twins = ["+arms.again={}", "axes.load.high=['traffic.rate_scale=1']"]
    assert main([*command, *twins]) == 0
    assert runner.asked == ["default", "exclusive_c2048_r64"]
    result = json.loads(last_line(capsys))
    assert [list(cell["arms"]) for cell in result["cells"]] == [["default", "exclusive_c2048_r64", "again"]] * 2
    assert result["cells"][1]["arms"]["again"]["ratio"] == 0.5


def test_what_nothing_aims_runs_once_for_all_that_judge_it(
    runner: Runner, command: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Two cells that differ in their SLO: fixed settings run once, a policy aims and runs in each."""
    grid = ["axes.load.high=['traffic.rate_scale=1','slo.ttft_s=9']", "+arms.ours={policy: adaptive}"]
    assert main([*command, *grid]) == 0
    assert runner.asked == ["default", "exclusive_c2048_r64", "ours", "ours"]
    assert [[slo.ttft_s for slo in slos] for slos in runner.judged] == [[2.0, 9.0], [2.0, 9.0], [2.0], [9.0]]
    assert "2/6 low: default, 2.5 s of one core" in capsys.readouterr().err
    assert [(line["cell"], line["row"]["arm"]) for line in lines(tmp_path)] == [
        ("low", "default"), ("high", "default"), ("low", "exclusive_c2048_r64"), ("high", "exclusive_c2048_r64"),
        ("low", "ours"), ("high", "ours"),
    ]  # fmt: skip
    runner.judged.clear()
    assert main([*command, *grid, "axes.load.low=['traffic.rate_scale=1','slo.ttft_s=8']"]) == 0
    assert [[slo.ttft_s for slo in slos] for slos in runner.judged] == [[8.0]] * 3


def test_bad_input_stops_before_anything_runs(
    runner: Runner, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "axes.load.high=['traffic.rate_scale=0']"]) == EXIT_BAD_INPUT
    shown = capsys.readouterr()
    assert shown.err == "sweep: cell high: traffic: rate_scale = 0: is out of range; allowed: a number > 0\n"
    assert (runner.asked, shown.out) == ([], "")
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("")
    assert main([*command, f"out_dir={tmp_path / 'file' / 'out'}"]) == EXIT_BAD_INPUT
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "mooncake=/data/a=b.jsonl",
            "sweep: 'mooncake=/data/a=b.jsonl': cannot be read at '=' (character 17); allowed: ",
        ),
        (
            "axes.load.high=['traffic.path=/a=b']",
            "sweep: cell high: virtual: 'traffic.path=/a=b': cannot be read at '='",
        ),
        (
            "axes.load.high=['traffic.rte_scale=2']",
            "sweep: cell high: virtual: traffic.rte_scale = 2: unknown key; did you",
        ),
        ("axs=none", "sweep: axs = 'none': unknown key; did you mean axes?; allowed: "),
    ],
)
def test_hydras_mistakes_are_put_into_words(
    runner: Runner, command: list[str], capsys: pytest.CaptureFixture[str], override: str, message: str
) -> None:
    assert main([*command, override]) == EXIT_BAD_INPUT
    told = capsys.readouterr().err
    assert told[: len(message)] == message
    assert told.count("\n") == 1
    assert runner.asked == []


def test_lines_that_are_no_results_are_told(
    runner: Runner, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "results.jsonl").write_text("nonsense\n")
    assert main(command) == 0
    assert "1 lines are no results" in capsys.readouterr().err


def test_help_lists_the_groups(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    for part in (
        "axes:     drafts, first_table, kinds, kinds_models, load, none, policy_capacity, policy_draws, "
        "policy_larger_model, policy_study, policy_third_model, told, told_wrong",
        "slack_chunks",
        "mooncake",
        "llama_3_1_8b",
        "~axes.traffic.mooncake",
    ):
        assert part in shown


def test_what_was_done_to_the_traffic_is_told_once_and_stands_beside_every_cell(
    runner: Runner, tmp_path: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command) == 0
    shown, told = capsys.readouterr()
    cells = json.loads(shown.splitlines()[-1])["cells"]
    notes = [note["text"] for note in cells[0]["traffic_notes"]]
    assert any("cut to max_prompt_tokens = 300 and max_output_tokens = 6: " in text for text in notes)
    page = (tmp_path / "out" / "sweep.html").read_text()
    for text in notes:
        assert told.count(text) == 1
        assert f"traffic of low and 1 more: {text}" in told
        assert page.count(f"<li>{text}</li>") == 2
