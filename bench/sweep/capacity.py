"""The highest load that an arm is up to, between those of a sweep. Pure functions; docs/metrics.md has the formula."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any


@dataclass(frozen=True, slots=True)
class Point:
    """A cell as capacities see it. attainment: per arm, the share of requests that met the SLO; None for a crash."""

    place: Mapping[str, str]
    rate_scale: float
    attainment: Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class Capacity:
    """A load as ``traffic.rate_scale``. sign: empty, or which side of ``rate_scale`` the capacity lies on."""

    rate_scale: float
    sign: str = ""

    def __str__(self) -> str:
        return f"{self.sign} {self.rate_scale:.3g}".lstrip()


def capacity(loads: Sequence[tuple[float, float | None]], least: float) -> Capacity:
    """The highest load at which attainment is ``least``: between two measured ones, along a straight line.

    ``loads``: rate scales with their attainment, in ascending order; None, of a crash, is as 0.
    """
    met = [(load, attained or 0.0) for load, attained in loads]
    if met[-1][1] >= least:
        return Capacity(met[-1][0], ">=")
    for (low, above), (high, below) in reversed(list(pairwise(met))):
        if above >= least > below:
            return Capacity(low + (above - least) / (above - below) * (high - low))
    return Capacity(met[0][0], "<")


def capacities(
    points: Sequence[Point], arms: Sequence[str], along: str, least: float, baseline: str | None
) -> dict[str, Any]:
    """Ready for JSON: for each place on the axes other than ``along`` every arm's capacity, and each arm's over the
    baseline's. A place whose loads do not differ has none; a capacity that is only bounded gives no ratio.
    """
    panels: dict[tuple[str, ...], list[Point]] = {}
    for point in points:
        rest = tuple(name for axis, name in point.place.items() if axis != along)
        panels.setdefault(rest, []).append(point)
    found: dict[str, dict[str, Capacity]] = {}
    loads: dict[str, list[float]] = {}
    for rest, panel in panels.items():
        ordered = sorted(panel, key=lambda point: point.rate_scale)
        scales = [point.rate_scale for point in ordered]
        if len(set(scales)) < max(2, len(scales)):
            continue
        name = ", ".join(rest) or "all"
        loads[name] = scales
        found[name] = {
            arm: capacity([(point.rate_scale, point.attainment[arm]) for point in ordered], least) for arm in arms
        }
    return {
        "attainment": least,
        "baseline": baseline,
        "places": [
            {
                "place": name,
                "loads": loads[name],
                "arms": {arm: {"rate_scale": one.rate_scale, "sign": one.sign, "text": str(one)}
                         for arm, one in of_arms.items()},
            }
            for name, of_arms in found.items()
        ],
        "summary": [] if baseline is None else [_compared(found, arm, baseline) for arm in arms],
    }  # fmt: skip


def _compared(found: Mapping[str, Mapping[str, Capacity]], arm: str, baseline: str) -> dict[str, Any]:
    ratios = {
        place: of_arms[arm].rate_scale / of_arms[baseline].rate_scale
        for place, of_arms in found.items()
        if not of_arms[arm].sign and not of_arms[baseline].sign
    }
    return {
        "arm": arm,
        "min": min(ratios.values(), default=None),
        "median": median(ratios.values()) if ratios else None,
        "max": max(ratios.values(), default=None),
        "worst": min(ratios, key=lambda place: ratios[place], default=None),
        "places": len(ratios),
    }
