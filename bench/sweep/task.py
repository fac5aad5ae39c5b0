"""What a process does for the units of a sweep that one run decides: run it, and send back the metrics alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bench.report.metrics import Metrics, summarise
from bench.report.records import ArmRun
from bench.slo import JudgedSlo
from bench.virtual.arms import VirtualArm
from bench.virtual.processes import Crash
from bench.virtual.settings import Experiment
from bench.virtual.task import run_and_summarise

Judge = tuple[JudgedSlo, float | None]
"""What a run is judged by: the SLO, and the price of the machine in dollars per hour."""


def run_unit(
    experiment: Experiment, arm: VirtualArm, judges: Sequence[Judge], told: Callable[[int, float], None]
) -> tuple[list[Metrics], float]:
    """The arm's metrics by each of the judges, and the seconds of one core that the run took.

    An arm with a policy aims at the SLO of ``experiment``: no other judges it.
    """
    run, first, cost = run_and_summarise(experiment, arm, judges[0][1], told)
    return [
        first,
        *(summarise(run, slo, usd_per_h, experiment.percentiles) for slo, usd_per_h in judges[1:]),
    ], cost.cpu_s


def crashed_row(arm: VirtualArm, judge: Judge, crash: Crash) -> Metrics:
    """The metrics of a unit that failed: its message, and nothing measured."""
    return summarise(ArmRun(arm.name, 0, (), (), crash.problem, crash.tail), *judge)
