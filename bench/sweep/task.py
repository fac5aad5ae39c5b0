"""What a process does for one unit of a sweep: run an arm in a cell, and send back the metrics alone."""

from __future__ import annotations

from collections.abc import Callable

from bench.metrics import Metrics, summarise
from bench.records import ArmRun
from bench.virtual.arms import VirtualArm
from bench.virtual.processes import Crash
from bench.virtual.settings import Experiment
from bench.virtual.task import run_and_summarise


def run_unit(
    experiment: Experiment, arm: VirtualArm, usd_per_h: float | None, told: Callable[[int, float], None]
) -> tuple[Metrics, float]:
    """The arm's metrics, and the seconds of one core that they took."""
    _, row, cost = run_and_summarise(experiment, arm, usd_per_h, told)
    return row, cost.cpu_s


def crashed_row(experiment: Experiment, arm: VirtualArm, usd_per_h: float | None, crash: Crash) -> Metrics:
    """The metrics of a unit that failed: its message, and nothing measured."""
    return summarise(ArmRun(arm.name, 0, (), (), crash.problem, crash.tail), experiment.slo, usd_per_h)
