"""A checked configuration of ``bench.silicon``: which runs can be predicted, how, and why the others cannot."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from bench.checks import count, only, text, texts
from bench.composition import read_config
from bench.silicon.arguments import ArgumentTable, Launch
from bench.silicon.models import ModelKey, built
from bench.silicon.runs import MeasuredRun, read_runs
from bench.sweep.keys import ROOT, environment_digest, run_digest, source_digest
from bench.virtual.arms import VirtualArm
from bench.virtual.device import layout
from bench.virtual.settings import CONTEXT_MARGIN, Experiment
from roofline_policies.errors import InputError

KEYS = (
    "runs", "out_dir", "only", "virtual", "arguments", "seed", "prompts_per_slot", "most_tokens_per_slot",
    "least_prompts_per_slot", "processes", "retry_crashed", "markdown",
)  # fmt: skip
ARM = VirtualArm("silicon")
SAMPLE_EVERY_S = 60.0
"""Virtual seconds between samples of the server, of which nothing is shown."""


@dataclass(frozen=True, slots=True)
class Task:
    """A run that can be predicted. full: prompts per slot that the experiment's stand for. key: of its result."""

    run: MeasuredRun
    experiment: Experiment
    full: int
    key: str


@dataclass(frozen=True, slots=True)
class Refused:
    """A run that cannot be predicted, and why."""

    run: MeasuredRun
    reason: str


@dataclass(frozen=True, slots=True)
class SiliconSettings:
    """A checked configuration.

    tasks, refused: together every chosen run, each in the order of the file. groups: of all runs of the file, so that
    which half a group is in does not depend on what was chosen.
    """

    tasks: tuple[Task, ...]
    refused: tuple[Refused, ...]
    groups: frozenset[str]
    out_dir: Path
    processes: int
    retry_crashed: bool
    markdown: bool

    @classmethod
    def from_config(cls, conf: Mapping[str, Any], told: Callable[[str], None]) -> SiliconSettings:
        """Reads the runs, builds their models (``told`` of each) and makes the experiments.

        Raises:
            InputError: a key or the file of runs cannot be used.
        """
        only(conf, "silicon", KEYS)
        every = read_runs(text(conf, "runs", "silicon"))
        runs = _chosen(every, conf)
        table = ArgumentTable.from_config(conf.get("arguments"))
        common = texts(conf, "virtual", "silicon")
        read_config("virtual", common)  # a mistake in what all share is the user's, and no run's
        plan = _Plan.from_config(conf)
        for switch in ("retry_crashed", "markdown"):
            if not isinstance(conf.get(switch), bool):
                raise InputError(
                    "is not a choice", where="silicon", key=switch, value=conf.get(switch), allowed=[True, False]
                )
        out_dir, processes = Path(text(conf, "out_dir", "silicon")), count(conf, "processes", "silicon")
        refused: dict[str, str] = {}
        planned: dict[str, tuple[Launch, Mapping[str, Any], ModelKey]] = {}
        for run in runs:
            try:
                planned[run.run] = _planned(run, table, common)
            except InputError as error:
                refused[run.run] = str(error)
        folder = out_dir / "models"
        folder.mkdir(parents=True, exist_ok=True)
        models = built(list(dict.fromkeys(key for *_, key in planned.values())), folder, processes, told)
        tasks = []
        for run in runs:
            if run.run in refused:
                continue
            launch, virtual, key = planned[run.run]
            model = models[key]
            if isinstance(model, InputError):
                refused[run.run] = model.problem
                continue
            full = launch.prompts_per_slot or plan.full
            slots = plan.prompts_per_slot(run, full)
            try:
                experiment, _ = Experiment.from_config({**virtual, **plan.sections(run, launch, slots)}, model)
            except InputError as error:
                refused[run.run] = f"{error.problem} ({error.key})" if error.key else error.problem
                continue
            tasks.append(Task(run, experiment, full, _key(experiment, full)))
        return cls(
            tuple(tasks),
            tuple(Refused(run, refused[run.run]) for run in runs if run.run in refused),
            frozenset(run.group for run in every),
            out_dir,
            processes,
            conf["retry_crashed"],
            conf["markdown"],
        )


@dataclass(frozen=True, slots=True)
class _Plan:
    """How many prompts each slot sends. full: as the benchmarks do."""

    full: int
    most_tokens: int
    least: int
    seed: int

    @classmethod
    def from_config(cls, conf: Mapping[str, Any]) -> _Plan:
        return cls(
            count(conf, "prompts_per_slot", "silicon"),
            count(conf, "most_tokens_per_slot", "silicon"),
            count(conf, "least_prompts_per_slot", "silicon", low=3),
            count(conf, "seed", "silicon", low=0),
        )

    def prompts_per_slot(self, run: MeasuredRun, full: int) -> int:
        """As many of ``full`` as ``most_tokens`` of output allow, but never fewer than ``least``."""
        return min(full, max(self.least, self.most_tokens // run.output_tokens))

    def sections(self, run: MeasuredRun, launch: Launch, slots: int) -> Mapping[str, Any]:
        """What the run's experiment has of its own."""
        traffic = {
            "kind": "closed", "concurrency": run.concurrency, "prompt_tokens": run.input_tokens,
            "output_tokens": run.output_tokens, "range_ratio": launch.range_ratio, "prompts_per_slot": slots,
        }  # fmt: skip
        return {
            "traffic": traffic,
            "seed": self.seed,
            "server_args": [*launch.server_args, *_context(run)],
            "sample_every_s": SAMPLE_EVERY_S,
        }


def _context(run: MeasuredRun) -> list[str]:
    """A context no longer than requests need: a scheduler holds a table of its length for every request it may run."""
    return ["--context-length", str(run.input_tokens + run.output_tokens + 2 * CONTEXT_MARGIN)]


def _chosen(runs: Sequence[MeasuredRun], conf: Mapping[str, Any]) -> list[MeasuredRun]:
    wanted = texts(conf, "only", "silicon")
    if not wanted:
        return list(runs)
    for one in wanted:
        if not any(one == run.run or one in run.group for run in runs):
            allowed = sorted({run.group for run in runs})
            raise InputError("is no run and in no group", where="silicon", key="only", value=one, allowed=allowed)
    return [run for run in runs if any(one == run.run or one in run.group for one in wanted)]


def _planned(
    run: MeasuredRun, table: ArgumentTable, common: Sequence[str]
) -> tuple[Launch, Mapping[str, Any], ModelKey]:
    launch = table.launch(run)
    if run.tp > launch.devices:
        problem = f"tp {run.tp} on a machine of {launch.devices} devices: ranks of more than one are not modelled"
        raise InputError(problem, where=run.run)
    if run.moe_tp * run.moe_ep not in (1, run.tp):
        raise InputError(f"experts over {run.moe_tp} x {run.moe_ep} ranks, of {run.tp}", where=run.run)
    virtual = _virtual((*launch.virtual, *common))
    return launch, virtual, ModelKey.of(launch, run.tp, layout(virtual["device"]))


@cache
def _virtual(overrides: tuple[str, ...]) -> Mapping[str, Any]:
    return read_config("virtual", overrides)


def _key(experiment: Experiment, full: int) -> str:
    """Of everything that decides a run's result: the experiment, the versions, the code."""
    told = [run_digest(experiment), full, environment_digest(ARM), _own()]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]


@lru_cache(maxsize=1)
def _own() -> str:
    return source_digest(ROOT / "bench" / "silicon" / name for name in ("journal.py", "task.py"))
