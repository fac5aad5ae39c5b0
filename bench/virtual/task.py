"""What a process does for one arm: run it and sum it up."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from bench.report.metrics import Metrics, summarise
from bench.report.records import ArmRun
from bench.virtual.arms import VirtualArm
from bench.virtual.settings import Experiment


@dataclass(frozen=True, slots=True)
class Cost:
    """What a run took this machine, which no figure of the run depends on. cpu_s: of its process, start included."""

    iterations: int
    cpu_s: float

    def __str__(self) -> str:
        return f"{self.iterations} iterations, {self.cpu_s:.1f} s of one core"


def run_and_summarise(
    experiment: Experiment, arm: VirtualArm, usd_per_h: float | None, told: Callable[[int, float], None]
) -> tuple[ArmRun, Metrics, Cost]:
    """The arm's run, its metrics and what it took."""
    from bench.virtual.run import run_arm  # here: it imports SGLang, which the process that asks for this need not do

    began_s = time.process_time()
    run, iterations = run_arm(experiment, arm, told)
    return (
        run,
        summarise(run, experiment.slo, usd_per_h, experiment.percentiles),
        Cost(iterations, time.process_time() - began_s),
    )
