"""What it costs others that some requests ask for targets of their own: a table, a JSON line.

    python -m bench.fairness "overrides=['traffic=bimodal','slo.itl_s=0.05']"

The same traffic on the virtual clock, once with nobody asking and once per way of asking. Everybody is judged by the
server's SLO, whatever was asked. Any key of conf/bench/fairness.yaml can be overridden in hydra's syntax. Equal seeds
give equal results.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench.checks import count, number, only, section, text, texts
from bench.command import leave_when_asked, overrides_of
from bench.composition import read_config, writable
from bench.report.one_request import meets
from bench.report.records import ArmRun
from bench.slo import JudgedSlo
from bench.traffic.asks import Asks, ask, asking
from bench.virtual.arms import VirtualArm, read_arms
from bench.virtual.processes import Crash, run_each
from bench.virtual.settings import Experiment
from bench.virtual.task import run_and_summarise
from roofline_policies.errors import EXIT_BAD_INPUT, InputError

KEYS = ("name", "arms", "policy_set", "share", "overrides", "cells", "asks", "least_ratio", "out_dir", "processes")
NOBODY = "nobody asks"

Key = tuple[str, str, str]
"""Arm, cell, way of asking."""


@dataclass(frozen=True, slots=True)
class Fairness:
    """A checked configuration; see conf/bench/fairness.yaml for each key. cells: experiments in which nobody asks."""

    arms: tuple[VirtualArm, ...]
    share: float
    cells: Mapping[str, Experiment]
    asks: Mapping[str, Any]
    least_ratio: float
    out_dir: Path
    processes: int

    @classmethod
    def from_config(cls, conf: Mapping[str, Any]) -> Fairness:
        """Raises:
        InputError: a key or a value that cannot be used, here or in what the experiments are made of.
        """
        only(conf, "fairness", KEYS)
        common, asks = texts(conf, "overrides", "fairness"), section(conf.get("asks"), "asks")
        for name, slo in asks.items():
            if slo is None:
                raise InputError("asks for nothing", where="asks", key=name, allowed="e.g. {ttft_s: 0.5}")
        cells = {
            name: Experiment.from_config(read_config("virtual", [*common, *texts(given, name, "cells")]))[0]
            for given in (section(conf.get("cells"), "cells"),)
            for name in given
        }
        if not cells or not asks:
            key = "asks" if cells else "cells"
            raise InputError("is empty", where="fairness", key=key, allowed="at least one")
        more, slo = texts(conf, "policy_set", "fairness"), next(iter(cells.values())).slo
        arms = tuple(
            arm if arm.policy is None else replace(arm, policy_set=(*arm.policy_set, *more))
            for arm in read_arms(conf.get("arms"), slo)
        )
        for experiment in cells.values():
            experiment.check(arms)
        return cls(
            arms=arms,
            share=number(conf, "share", "fairness", low=0.0, high=1.0),
            cells=cells,
            asks=asks,
            least_ratio=number(conf, "least_ratio", "fairness", low=0.0),
            out_dir=Path(text(conf, "out_dir", "fairness")),
            processes=count(conf, "processes", "fairness"),
        )

    def runs(self) -> list[tuple[Key, Experiment, VirtualArm]]:
        """Every run by its arm, cell and way of asking."""
        found = []
        for arm in self.arms:
            for cell, quiet in self.cells.items():
                found.append(((arm.name, cell, NOBODY), quiet, arm))
                for name, slo in self.asks.items():
                    requests = tuple(ask(quiet.requests, Asks(self.share, slo), quiet.seed))
                    found.append(((arm.name, cell, name), replace(quiet, requests=requests), arm))
        return found


def good(run: ArmRun, slo: JudgedSlo, among: Sequence[bool]) -> int:
    """How many of the requests that ``among`` has by their places in the traffic meet the SLO."""
    return sum(among[record.index] and meets(record, slo) for record in run.records)


def row(run: ArmRun, slo: JudgedSlo, asks: Sequence[bool]) -> dict[str, Any]:
    """What came of one run, ready for JSON: good requests among those that do not ask and those that do, and what the
    server counted of what was asked."""
    told = next((sample.ranks[0].get("asked_slo") for sample in reversed(run.samples) if sample.ranks), None)
    others = [not one for one in asks]
    return {"others": good(run, slo, others), "askers": good(run, slo, asks), "asked_slo": told}


def compared(rows: Mapping[Key, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each run with its ratios to that of its arm and cell in which nobody asks; None to 0."""
    found = []
    for (arm, cell, name), one in rows.items():
        quiet = rows[arm, cell, NOBODY]
        ratios = {f"{who}_ratio": one[who] / quiet[who] if quiet[who] else None for who in ("others", "askers")}
        found.append({"arm": arm, "cell": cell, "asks": name, **one, **ratios})
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: 0, EXIT_BAD_INPUT before anything ran, 1 if a run crashed."""
    overrides = overrides_of(argv, "fairness", __doc__)
    try:
        settings = Fairness.from_config(read_config("fairness", overrides))
        writable(settings.out_dir, "fairness")
    except InputError as error:
        print(error, file=sys.stderr)
        return EXIT_BAD_INPUT
    leave_when_asked()
    runs = settings.runs()
    rows: dict[Key, dict[str, Any]] = {}
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("runs", total=len(runs))
        tasks = [(experiment, arm, None) for _, experiment, arm in runs]
        for index, outcome in run_each(run_and_summarise, tasks, settings.processes, lambda *_: None):
            progress.advance(bar)
            key, experiment, _ = runs[index]
            if isinstance(outcome, Crash):
                print("\n".join([f"{', '.join(key)}: {outcome.problem}", *outcome.tail]), file=sys.stderr)
                return 1
            asks = asking(len(experiment.requests), settings.share, experiment.seed)
            rows[key] = row(outcome[0], experiment.slo, asks)
    found = compared({key: rows[key] for key, *_ in runs})
    Console(width=None if sys.stdout.isatty() else 200).print(table(found, settings.least_ratio))
    result = {
        "name": "fairness",
        "arms": {arm.name: arm.launched for arm in settings.arms},
        "share": settings.share,
        "slo": {name: str(one.slo) for name, one in settings.cells.items()},
        "requests": {name: len(one.requests) for name, one in settings.cells.items()},
        "least_ratio": settings.least_ratio,
        "runs": found,
    }
    (settings.out_dir / "result.json").write_text(json.dumps(result) + "\n", encoding="utf-8")
    print(json.dumps(result))
    return 0


def table(found: Sequence[Mapping[str, Any]], least_ratio: float) -> Table:
    """A line per run: good requests among those that ask for nothing and those that ask, against nobody asking."""
    drawn = Table(
        "traffic", "who asks, for", "others good", "ratio", "askers good", "ratio", "granted other than asked"
    )
    for one in found:
        told, ratio = one["asked_slo"] or {}, one["others_ratio"]
        mark = " !" if ratio is not None and ratio < least_ratio else ""
        other = f"{told.get('moved', 0) + told.get('refused', 0)} of {told['asked']}" if told.get("asked") else ""
        drawn.add_row(
            one["arm"], one["cell"], one["asks"], str(one["others"]), _told(ratio) + mark, str(one["askers"]),
            _told(one["askers_ratio"]), other,
        )  # fmt: skip
    return drawn


def _told(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.3f}"


if __name__ == "__main__":
    sys.exit(main())
