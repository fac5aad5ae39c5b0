"""Running the units that have no result yet, with one bar for all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

from bench.report.metrics import Metrics
from bench.sweep.settings import Cell, SweepSettings
from bench.sweep.store import Outcome
from bench.sweep.task import crashed_row, run_unit
from bench.virtual.arms import VirtualArm
from bench.virtual.processes import Crash, run_each

HOUR_S = 3600.0


@dataclass(frozen=True, slots=True)
class Unit:
    """One arm in one cell."""

    cell: Cell
    arm: VirtualArm

    @property
    def key(self) -> str:
        return self.cell.keys[self.arm.name]

    def __str__(self) -> str:
        return f"{self.cell.name}: {self.arm.name}"


def units_of(settings: SweepSettings) -> list[Unit]:
    """The work of a sweep, cell by cell; of units that all the same decides, the first stands for all."""
    found: dict[str, Unit] = {}
    for unit in (Unit(cell, arm) for cell in settings.cells for arm in settings.arms):
        found.setdefault(unit.key, unit)
    return list(found.values())


def runs_of(units: Sequence[Unit]) -> list[list[Unit]]:
    """The units by the run that decides them, in their order: a fixed setting runs alike whatever it is judged by."""
    found: dict[str, list[Unit]] = {}
    for unit in units:
        found.setdefault(unit.cell.runs[unit.arm.name], []).append(unit)
    return list(found.values())


def run_missing(missing: Sequence[Unit], total: int, processes: int, console: Console) -> Iterator[Outcome]:
    """What became of each unit, as it ends. total: units of the sweep, of which the others are there already.

    Units that run when the caller stops iterating are ended and leave nothing.
    """
    names = TextColumn("{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True))
    columns = (BarColumn(bar_width=20), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(), names)
    if not missing:
        return
    runs = runs_of(missing)
    open_runs = {index: run[0] for index, run in enumerate(runs)}
    done = total - len(missing)
    # Units take minutes: what is left is judged by all that went before, not by the last seconds.
    with Progress(*columns, console=console, expand=True, speed_estimate_period=HOUR_S) as progress:
        bar = progress.add_task(_running(open_runs, processes), total=total, completed=done)
        tasks = [(run[0].cell.experiment, run[0].arm, [unit.cell.judge for unit in run]) for run in runs]
        for index, result in run_each(run_unit, tasks, processes, lambda *_: None):
            unit, done = open_runs.pop(index), done + len(runs[index])
            progress.update(bar, completed=done, description=_running(open_runs, processes))
            outcomes = _outcomes(runs[index], result)
            if isinstance(result, Crash):
                lines = [f"{unit} crashed: {result.problem}", *result.tail]
                progress.console.print("\n".join(lines), markup=False, soft_wrap=True)
            elif not console.is_terminal:
                told = f"{done}/{total} {unit}, {result[1]:.1f} s of one core"
                progress.console.print(told, markup=False, highlight=False, soft_wrap=True)
            yield from outcomes


def _outcomes(units: Sequence[Unit], result: tuple[list[Metrics], float] | Crash) -> list[Outcome]:
    if isinstance(result, Crash):
        rows = [crashed_row(unit.arm, unit.cell.judge, result) for unit in units]
        return [Outcome(unit.key, unit.cell.name, row, result.tail) for unit, row in zip(units, rows, strict=True)]
    rows, cpu_s = result
    return [Outcome(unit.key, unit.cell.name, row, cpu_s=cpu_s) for unit, row in zip(units, rows, strict=True)]


def _running(open_runs: dict[int, Unit], processes: int) -> str:
    """Runs are started in order, so the first that are open are those that run."""
    return "; ".join(str(unit) for unit in list(open_runs.values())[:processes]) or "done"
