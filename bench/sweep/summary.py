"""What the units of a sweep say together. Pure functions over metric rows; docs/metrics.md has the formulas."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from bench.virtual.oracles import oracles, with_regret

Row = Mapping[str, Any]

SHOWN = (
    "status", "crash", "goodput_per_s", "attainment", "ttft_p50_s", "ttft_p99_s", "itl_p99_s", "retractions",
    "cache_hit_rate", "deferrals", "longest_wait_s", "errors", "policy_state", "fallback_reason", "regret",
    "regret_per_phase",
)  # fmt: skip
"""Metrics of a unit that the JSON line repeats; the result file has all of them."""


@dataclass(frozen=True, slots=True)
class Judged:
    """One cell with all its units.

    oracle: what ``bench.virtual.oracles.oracles`` found. rows: per arm its metrics, with regrets. ratios: per arm its
    goodput over the oracle's; None where the arm crashed, or there is no oracle above 0.
    """

    name: str
    place: Mapping[str, str]
    oracle: Mapping[str, Any]
    rows: Mapping[str, Row]
    ratios: Mapping[str, float | None]

    @property
    def oracle_attainment(self) -> float | None:
        """Share of requests that met the SLO under the best fixed setting; None where none lived."""
        overall = self.oracle["overall"]
        return overall and float(overall["attainment"])

    def counts(self, least_attainment: float) -> bool:
        """Whether the best fixed setting serves enough of the traffic for ratios to it to mean something."""
        return self.oracle_attainment is not None and self.oracle_attainment >= least_attainment


def judged(name: str, place: Mapping[str, str], rows: Sequence[Row], fixed: Collection[str]) -> Judged:
    """A cell from the rows of its arms. fixed: the arms that the oracle is picked from."""
    found = oracles(rows, list(fixed))
    best = found["overall"]["goodput_per_s"] if found["overall"] else None
    completed = {row["arm"]: row for row in with_regret(rows, found)}
    return Judged(name, place, found, completed, {arm: _ratio(row, best) for arm, row in completed.items()})


def summary(cells: Sequence[Judged], arms: Sequence[str], least_attainment: float) -> list[dict[str, Any]]:
    """Per arm: the smallest, median and largest ratio over the cells that count, and its crashes in all cells.

    ``cells``: how many cells gave a ratio; a crash gives none. ``worst``: the cell of the smallest.
    """
    table = []
    for arm in arms:
        ratios = {c.name: c.ratios[arm] for c in cells if c.counts(least_attainment)}
        known = {name: ratio for name, ratio in ratios.items() if ratio is not None}
        table.append({
            "arm": arm,
            "min": min(known.values(), default=None),
            "median": median(known.values()) if known else None,
            "max": max(known.values(), default=None),
            "worst": min(known, key=lambda name: known[name], default=None),
            "cells": len(known),
            "crashes": sum(cell.rows[arm]["status"] != "ok" for cell in cells),
        })  # fmt: skip
    return table


def cell_result(cell: Judged) -> dict[str, Any]:
    """The cell, ready for JSON: where it lies, its oracles, and the shown metrics of every arm with its ratio."""
    return {
        "cell": cell.name,
        "place": dict(cell.place),
        "oracles": cell.oracle,
        "arms": {
            arm: {**{metric: row.get(metric) for metric in SHOWN}, "ratio": cell.ratios[arm]}
            for arm, row in cell.rows.items()
        },
    }


def _ratio(row: Row, best: float | None) -> float | None:
    if row["status"] != "ok" or row["goodput_per_s"] is None or not best:
        return None
    return float(row["goodput_per_s"] / best)
