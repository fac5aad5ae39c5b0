"""Measured runs of real servers, each on the virtual clock: predicted over measured, a table, a plot, a JSON line.

    python -m bench.silicon runs=FILE.csv

A run's server is launched as conf/bench/arguments says. The same command again runs only what is missing. Runs that
cannot be predicted are listed with the reason. Any key of conf/bench/silicon.yaml can be overridden in hydra's syntax.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bench.command import leave_when_asked, listed, overrides_of
from bench.composition import read_config, writable
from bench.silicon.fit import constants_of
from bench.silicon.page import write_page
from bench.silicon.settings import ARM, SiliconSettings, Task
from bench.silicon.summary import (
    FIGURES,
    by,
    compared,
    error_table,
    errors,
    ranking,
    refused_table,
    run_table,
    split,
)
from bench.silicon.task import predict
from bench.sweep.store import Outcome, ResultFile
from bench.sweep.tables import Shown
from bench.virtual.processes import Crash, run_each
from bench.virtual.settings import Experiment
from roofline_policies.device.hardware import match_device
from roofline_policies.errors import EXIT_BAD_INPUT, InputError
from roofline_policies.steps.costs import FRONT

GROUPS = ("arguments",)
HOUR_S = 3600.0


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: 0, EXIT_BAD_INPUT before anything ran, 1 if no run was predicted."""
    epilog = f"groups of conf/bench:\n{listed(GROUPS)}"
    overrides = overrides_of(argv, "silicon", __doc__, epilog=epilog)
    leave_when_asked()
    console = Console(stderr=True)
    try:
        conf = read_config("silicon", overrides)
        settings = SiliconSettings.from_config(conf, lambda line: console.print(line, soft_wrap=True))
        writable(settings.out_dir, "silicon")
        for one in settings.refused:
            console.print(f"{one.run.run} is not predicted: {one.reason}", soft_wrap=True, markup=False)
        with ResultFile(settings.out_dir / "results.jsonl") as results:
            for outcome in _missing(settings, results, console):
                results.add(outcome)
            outcomes = {task.key: results.outcomes[task.key] for task in settings.tasks}
    except InputError as error:
        print(error, file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted; what had finished is kept, the same command goes on from there", file=sys.stderr)
        return 130
    result = result_of(settings, outcomes)
    shown = tables(result)
    (settings.out_dir / "silicon.json").write_text(json.dumps(result) + "\n", encoding="utf-8")
    page = write_page(settings.out_dir / "silicon.html", result, [*shown, run_table(result["rows"])])
    out = Console(width=None if sys.stdout.isatty() else 200)
    for table in shown:
        out.print(table.rich())
        if settings.markdown:
            print(table.markdown())
    out.print(f"every run: {page}", highlight=False, soft_wrap=True)
    print(json.dumps({key: value for key, value in result.items() if key != "rows"}))
    return 0 if any("predicted" in row for row in result["rows"]) else 1


def _missing(settings: SiliconSettings, results: ResultFile, console: Console) -> Iterator[Outcome]:
    """What became of each run that has no result yet, as it ends, the shortest first; runs that are alike run once."""
    wanted = {task.key: task for task in reversed(settings.tasks)}
    missing = [
        task
        for task in wanted.values()
        if (found := results.outcomes.get(task.key)) is None or (found.crashed and settings.retry_crashed)
    ]
    if not missing:
        return
    missing.sort(key=lambda task: (_iterations(task), task.run.run))
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, speed_estimate_period=HOUR_S) as progress:
        bar = progress.add_task("runs", total=len(wanted), completed=len(wanted) - len(missing))
        tasks = [(task.experiment, ARM, task.full) for task in missing]
        for index, result in run_each(predict, tasks, settings.processes, lambda *_: None):
            task = missing[index]
            progress.advance(bar)
            if isinstance(result, Crash):
                lines = [f"{task.run.run} crashed: {result.problem}", *result.tail]
                progress.console.print("\n".join(lines), markup=False, soft_wrap=True)
                row = {"status": "crashed", "crash": result.problem}
                yield Outcome(task.key, task.run.run, row, result.tail)
            else:
                row, cpu_s = result
                if not console.is_terminal:
                    progress.console.print(_line(task, row, cpu_s), markup=False, highlight=False, soft_wrap=True)
                yield Outcome(task.key, task.run.run, row, cpu_s=cpu_s)


def _iterations(task: Task) -> int:
    """About so many: every step gives each slot a token."""
    return len(task.experiment.requests) // task.run.concurrency * task.run.output_tokens


def _line(task: Task, row: dict[str, Any], cpu_s: float) -> str:
    ratios = compared(task.run, row, constants_of(catalogue_of(task.experiment))[FRONT])["ratios"]
    told = ", ".join(f"{name} {ratios[name]:.2f}" for name in FIGURES)
    return f"{task.run.run} {task.run.group}: {told}; {row['iterations']} iterations, {cpu_s:.1f} s of one core"


def result_of(settings: SiliconSettings, outcomes: dict[str, Outcome]) -> dict[str, Any]:
    """Everything that was found, ready for JSON; nothing in it depends on when or where a run was predicted."""
    rows = [
        {**compared(task.run, outcomes[task.key].row, constants_of(device)[FRONT]), "catalogue": device}
        for task in settings.tasks
        for device in (catalogue_of(task.experiment),)
    ]
    known = [row for row in rows if "predicted" in row]
    halves = split(settings.groups)
    for row in rows:
        row["half"] = halves[row["group"]]
    return {
        "name": "silicon",
        "executor": "virtual clock",
        "runs": len(rows) + len(settings.refused),
        "predicted": len(known),
        "all": errors(known),
        "halves": by(known, lambda row: str(row["half"])),
        "devices": by(known, lambda row: f"{row['device']}, {row['half']}"),
        "groups": by(known, lambda row: str(row["group"])),
        "versions": by(known, lambda row: str(row["sglang"] or "not told")),
        "ranking": ranking(known),
        "split": halves,
        "constants": {device: constants_of(device) for device in sorted({row["catalogue"] for row in rows})},
        "crashed": {row["run"]: row["crash"] for row in rows if "crash" in row},
        "refused": [{"run": one.run.run, "group": one.run.group, "reason": one.reason} for one in settings.refused],
        "rows": rows,
    }


def catalogue_of(experiment: Experiment) -> str:
    """The catalogue's name of the device that is modelled, or its own where the catalogue has none."""
    name = experiment.device.ceilings.device
    return match_device(name) or name


def tables(result: dict[str, Any]) -> list[Shown]:
    """What the terminal and the page show above the single runs."""
    note = "ratio: predicted over measured, median; error: how far off, median and P90"
    groups = {f"{name} ({result['split'][name]})": told for name, told in result["groups"].items()}
    ranked = result["ranking"]
    right = tuple(f"{ranked[name]['right']} of {ranked[name]['pairs']}" for name in FIGURES)
    shown = [
        error_table("By model, device and layout", "group", groups, note),
        error_table("By device and half", "device", {**result["devices"], **result["halves"], "all": result["all"]}),
        error_table("By SGLang version", "version", result["versions"]),
        Shown(
            "Ranking of concurrencies",
            "pairs of points that differ in concurrency alone and were not measured as good as equal",
            ("in the right order", "TTFT", "TPOT", "tokens/s"), (("pairs", *right),),
        ),
    ]  # fmt: skip
    if result["refused"] or result["crashed"]:
        lost = [{"run": run, "group": "", "reason": f"crashed: {why}"} for run, why in result["crashed"].items()]
        shown.append(refused_table([*result["refused"], *lost]))
    return shown


if __name__ == "__main__":
    sys.exit(main())
