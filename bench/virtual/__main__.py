"""SGLang's real scheduler on a virtual clock: arms side by side on a modelled device; a table, a JSON line, a report.

    python -m bench.virtual traffic=azure traffic.path=TRACE traffic.window_s=600 arms=[default,fixed_grid,adaptive]

Any key of conf/bench/virtual.yaml can be overridden in hydra's syntax, as percentiles=[50,99,99.9], the
percentiles of the latencies that tables show. Equal seeds give equal bytes, whatever the machine.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bench.command import leave_when_asked, listed, overrides_of
from bench.composition import read_config, writable
from bench.report.headlines import note_lines, verdict_lines
from bench.report.metrics import Metrics, paired_ratios, summarise
from bench.report.notes import notes_of
from bench.report.records import ArmRun, write_run
from bench.report.rendering import verdict_table, write_report
from bench.virtual.oracles import highest_attainment, oracles, with_regret
from bench.virtual.processes import Crash, run_each
from bench.virtual.settings import VirtualSettings
from bench.virtual.task import run_and_summarise
from roofline_policies.errors import EXIT_BAD_INPUT, InputError

GROUPS = ("traffic", "hardware", "model", "slo", "draft", "arm")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: 0, EXIT_BAD_INPUT before anything ran, 1 if every arm crashed."""
    epilog = f"groups of conf/ (traffic=azure, arms=[default,adaptive]):\n{listed(GROUPS)}"
    overrides = overrides_of(argv, "virtual", __doc__, epilog=epilog)
    try:
        settings = VirtualSettings.from_config(read_config("virtual", overrides))
        writable(settings.out_dir, "virtual")
    except InputError as error:
        print(error, file=sys.stderr)
        return EXIT_BAD_INPUT
    for note in settings.notes:  # while there is time to think better of it
        print(f"traffic: {note.text}", file=sys.stderr)
    leave_when_asked()
    try:
        runs, rows = run_all(settings)
    except KeyboardInterrupt:
        print("interrupted; no report was written", file=sys.stderr)
        return 130
    result = result_of(settings, rows) | {"notes": notes_of(runs, settings.experiment.device.notes)}
    (settings.out_dir / "result.json").write_text(json.dumps(result) + "\n", encoding="utf-8")
    report = write_report(settings.out_dir / "report.html", result, runs)
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(verdict_table(result))
    for line in [*note_lines(result), *verdict_lines(result)]:
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"report: {report}", highlight=False, soft_wrap=True)
    print(json.dumps(result))
    return 1 if all(run.crash for run in runs) else 0


def run_all(settings: VirtualSettings) -> tuple[list[ArmRun], list[Metrics]]:
    """Every arm once, in the order of the configuration; an arm that failed is a run marked as crashed."""
    total = len(settings.experiment.requests)
    if settings.experiment.closed is not None:
        total += len(settings.experiment.closed.warmup)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    found: dict[int, tuple[ArmRun, Metrics]] = {}
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bars = [progress.add_task(arm.name, total=total, start=False) for arm in settings.arms]

        def told(index: int, done: int, now_s: float) -> None:
            progress.start_task(bars[index])
            name = settings.arms[index].name
            progress.update(bars[index], completed=done, description=f"{name} at {now_s:.0f} s")

        tasks = [(settings.experiment, arm, settings.usd_per_h) for arm in settings.arms]
        for index, outcome in run_each(run_and_summarise, tasks, settings.processes, told):
            name = settings.arms[index].name
            if isinstance(outcome, Crash):
                run = ArmRun(name, 0, (), (), outcome.problem, outcome.tail)
                row = summarise(run, settings.experiment.slo, settings.usd_per_h, settings.experiment.percentiles)
                progress.update(bars[index], description=f"{name}: crashed")
                progress.console.print("\n".join([f"{name}: {run.crash}", *run.log_tail]), markup=False, soft_wrap=True)
            else:
                run, row, cost = outcome
                progress.update(bars[index], completed=total, description=f"{name}: {cost}")
            write_run(run, settings.out_dir)
            found[index] = (run, row)
    ordered = [found[index] for index in range(len(settings.arms))]
    return [run for run, _ in ordered], [row for _, row in ordered]


def result_of(settings: VirtualSettings, rows: Sequence[Metrics]) -> dict[str, Any]:
    """Everything the run found, ready for JSON: settings, the oracles, one row per arm, ratios to the baseline."""
    experiment = settings.experiment
    device, slo = experiment.device, experiment.slo
    fixed = [arm.name for arm in settings.arms if arm.fixed]
    best = oracles(rows, fixed)
    return {
        "name": settings.name,
        "executor": "virtual clock",
        "device": {
            "name": device.ceilings.device,
            "count": device.tp_size,
            "model": device.model.name,
            "kv_tokens": device.kv_tokens,
            "steps": device.source,
        },
        "slo": slo.described(),
        "slo_text": str(slo),
        "seed": experiment.seed,
        "repeats": 1,
        "baseline": settings.baseline,
        "usd_per_h": settings.usd_per_h,
        "percentiles": list(experiment.percentiles),
        "requests": len(experiment.requests),
        "requests_clipped": settings.clipped,
        "traffic_notes": [note.described() for note in settings.notes],
        "traffic": dict(settings.traffic),
        "server_args": list(experiment.server_args),
        "arms": {arm.name: arm.launched for arm in settings.arms},
        "oracles": best,
        "runs": with_regret(rows, best, highest_attainment(rows, fixed)),
        "ratios": paired_ratios(rows, settings.baseline),
    }


if __name__ == "__main__":
    sys.exit(main())
