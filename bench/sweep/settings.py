"""A checked sweep: every cell composed, its traffic read, every policy loaded. What can be refused is refused here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.checks import count, number, section, text, texts
from bench.composition import read_config
from bench.report.percentiles import read_percentiles
from bench.slo import JudgedSlo
from bench.sweep.grid import Place, label, places
from bench.sweep.keys import arm_digest, cell_digest, environment_digest, run_digest, unit_key
from bench.sweep.task import Judge
from bench.traffic.notes import Note
from bench.virtual.arms import FIXED, VirtualArm, read_arms
from bench.virtual.settings import Experiment, usd_per_h
from roofline_policies.errors import InputError

KEYS = (
    "name", "along", "group_by", "capacity_attainment", "capacity_baseline", "least_attainment", "least_ratio",
    "examined", "out_dir", "percentiles", "processes", "retry_crashed", "markdown",
)  # fmt: skip
SECTIONS = ("axes", "arms", "overrides")


@dataclass(frozen=True, slots=True)
class Cell:
    """One virtual experiment of the grid.

    rate_scale: of its traffic. clipped: requests that were cut; notes: what was done to the trace.
    keys: per arm, of bench/sweep/keys.py; runs: per arm, equal for cells that differ in nothing but what a run of it is
    judged by.
    """

    place: Place
    experiment: Experiment
    usd_per_h: float | None
    rate_scale: float
    clipped: int
    notes: tuple[Note, ...]
    keys: Mapping[str, str]
    runs: Mapping[str, str]

    @property
    def judge(self) -> Judge:
        return self.experiment.slo, self.usd_per_h

    @property
    def name(self) -> str:
        return label(self.place)

    @property
    def offered_per_s(self) -> float | None:
        """Requests per second that the traffic asks for; None where all come at once."""
        last_s = self.experiment.requests[-1].arrival_s
        return len(self.experiment.requests) / last_s if last_s > 0 else None

    def described(self) -> dict[str, Any]:
        """What ran in the cell, ready for JSON."""
        device = self.experiment.device
        return {
            "requests": len(self.experiment.requests),
            "requests_clipped": self.clipped,
            "traffic_notes": [note.described() for note in self.notes],
            "offered_per_s": self.offered_per_s,
            "rate_scale": self.rate_scale,
            "last_arrival_s": self.experiment.requests[-1].arrival_s,
            "device": {"name": device.ceilings.device, "count": device.tp_size, "model": device.model.name},
            "slo": str(self.experiment.slo),
        }


@dataclass(frozen=True, slots=True)
class SweepSettings:
    """A checked configuration; see conf/bench/sweep.yaml for each key.

    axes: names of the values of every axis. arms: the same in every cell, grids laid out. examined: names of the arms
    whose cells below ``least_ratio`` are listed.
    """

    name: str
    axes: Mapping[str, tuple[str, ...]]
    cells: tuple[Cell, ...]
    arms: tuple[VirtualArm, ...]
    along: str | None
    group_by: str | None
    capacity_attainment: float
    capacity_baseline: str | None
    least_attainment: float
    least_ratio: float
    examined: tuple[str, ...]
    percentiles: tuple[float, ...]
    out_dir: Path
    processes: int
    retry_crashed: bool
    markdown: bool

    @property
    def oracles(self) -> dict[str, list[str]]:
        """By name, the arms that an oracle picks from, in order; ``fixed`` is first, and always there."""
        found: dict[str, list[str]] = {FIXED: []}
        for arm in self.arms:
            if arm.oracle is not None:
                found.setdefault(arm.oracle, []).append(arm.name)
        return found

    @property
    def notes(self) -> dict[str, list[str]]:
        """What was done to the traffic, each sentence once, with the names of the cells that it is true of."""
        found: dict[str, list[str]] = {}
        for cell in self.cells:
            for note in cell.notes:
                found.setdefault(note.text, []).append(cell.name)
        return found

    @classmethod
    def from_config(cls, conf: Mapping[str, Any]) -> SweepSettings:
        """The settings of a composed configuration; reads all traffic and loads all policies.

        Raises:
            InputError: a key, a value, a file or a policy cannot be used; names the cell where one is to blame.
        """
        _only_parameters(conf)
        axes = {axis: tuple(section(values, f"axes.{axis}")) for axis, values in section(conf["axes"], "axes").items()}
        for key in ("along", "group_by"):
            if conf.get(key) is not None and conf[key] not in axes:
                raise InputError("is no axis", where="sweep", key=key, value=conf[key], allowed=["null", *axes])
        for key in ("retry_crashed", "markdown"):
            if not isinstance(conf.get(key), bool):
                problem, value = "is not a choice", conf.get(key)
                raise InputError(problem, where="sweep", key=key, value=value, allowed=[False, True])
        shared = {
            "name": text(conf, "name", "sweep"),
            "along": conf.get("along"),
            "group_by": conf.get("group_by"),
            "capacity_attainment": number(conf, "capacity_attainment", "sweep", above=0.0, high=1.0),
            "least_attainment": number(conf, "least_attainment", "sweep", low=0.0, high=1.0),
            "least_ratio": number(conf, "least_ratio", "sweep", low=0.0),
            "percentiles": read_percentiles(conf, "sweep"),
            "out_dir": Path(text(conf, "out_dir", "sweep")),
            "processes": count(conf, "processes", "sweep"),
            "retry_crashed": conf["retry_crashed"],
            "markdown": conf["markdown"],
        }
        composer = _Composer(conf.get("arms"), shared["percentiles"])
        cells = tuple(composer.cell(*one) for one in places(conf["axes"], texts(conf, "overrides", "sweep")))
        arms = tuple(composer.arms(cells[0].experiment.slo))
        baseline, names = conf.get("capacity_baseline"), [arm.name for arm in arms]
        if baseline is not None and shared["along"] is not None and baseline not in names:
            allowed = ["null", *names]
            raise InputError("is not an arm", where="sweep", key="capacity_baseline", value=baseline, allowed=allowed)
        examined = _examined(conf, arms)
        return cls(axes=axes, cells=cells, arms=arms, capacity_baseline=baseline, examined=examined, **shared)


class _Composer:
    """Makes cells; arms are loaded once for each SLO they aim at."""

    def __init__(self, arms: object, percentiles: tuple[float, ...]) -> None:
        self._value, self._percentiles = arms, percentiles
        self._loaded: dict[JudgedSlo, dict[VirtualArm, str]] = {}

    def arms(self, slo: JudgedSlo) -> dict[VirtualArm, str]:
        """The arms with their digests.

        Raises:
            InputError: they cannot be used, or none of them is fixed.
        """
        if slo not in self._loaded:
            arms = read_arms(self._value, slo)
            if not any(arm.fixed for arm in arms):
                problem = "have no fixed setting, and ratios are to the best of those"
                allowed = "fixed_grid, or an arm with a grid, beside the others"
                raise InputError(problem, where="sweep", key="arms", value=[a.name for a in arms], allowed=allowed)
            self._loaded[slo] = {arm: arm_digest(arm, slo) for arm in arms}
        return self._loaded[slo]

    def cell(self, place: Place, overrides: Sequence[str]) -> Cell:
        """The cell of these overrides.

        Raises:
            InputError: one cannot be used, or the traffic, or the arms; names the cell.
        """
        try:
            conf = read_config("virtual", overrides)
            experiment, loaded = Experiment.from_config(conf)
            experiment = replace(experiment, percentiles=self._percentiles)
            price = usd_per_h(conf, experiment)
            arms = self.arms(experiment.slo)
            experiment.check(list(arms))
        except InputError as error:
            raise InputError(str(error), where=f"sweep: cell {label(place)}") from error
        run = run_digest(experiment)
        digest = cell_digest(run, experiment.slo, price, experiment.percentiles)
        keys = {arm.name: unit_key(digest, of_arm, environment_digest(arm)) for arm, of_arm in arms.items()}
        runs = {arm.name: keys[arm.name] if arm.policy else unit_key(run, of_arm, "") for arm, of_arm in arms.items()}
        faster = float(conf["traffic"].get("rate_scale", 1.0))  # a closed loop has no rate
        return Cell(place, experiment, price, faster, loaded.clipped, loaded.notes, keys, runs)


def _examined(conf: Mapping[str, Any], arms: Sequence[VirtualArm]) -> tuple[str, ...]:
    """The arms under ``examined``; for null all with a policy that no oracle picks from.

    Raises:
        InputError: one that is no arm.
    """
    if conf.get("examined") is None:
        return tuple(arm.name for arm in arms if arm.policy is not None and arm.oracle is None)
    names, known = texts(conf, "examined", "sweep"), [arm.name for arm in arms]
    for name in names:
        if name not in known:
            raise InputError("is not an arm", where="sweep", key="examined", value=name, allowed=["null", *known])
    return names


def _only_parameters(conf: Mapping[str, Any]) -> None:
    """Further keys may be parameters that overrides refer to, such as the path of a trace: texts and numbers."""
    known = (*KEYS, *SECTIONS)
    for key, value in conf.items():
        if key not in known and not isinstance(value, str | int | float | None):
            problem = "is neither a key of the sweep nor a parameter for its overrides"
            raise InputError(problem, where="sweep", key=key, allowed=[*known, "or a text or a number"])
