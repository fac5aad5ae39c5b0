"""What the units of a sweep say together. Pure functions over metric rows; docs/metrics.md has the formulas."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from bench.virtual.oracles import highest_attainment, oracles, with_regret

Row = Mapping[str, Any]
Ratios = Mapping[str, float | None]
"""Per arm; None where the arm crashed, or there is nothing above 0 to divide by."""

SHOWN = (
    "status", "crash", "goodput_per_s", "good_tokens_per_s", "weighted_goodput_per_s", "weighted_good_tokens_per_s",
    "missed", "attainment", "ttft_p50_s", "ttft_p99_s",
    "longest_tenth_ttft_p99_s", "itl_p99_s", "usd_per_million_tokens", "retractions", "cache_hit_rate", "deferrals",
    "longest_wait_s", "completed", "short", "empty", "aborted", "errors", "goodput_arrivals_per_s", "duration_s",
    "last_arrival_s", "ended_99_s", "drain_s", "longest_request_s", "tokens_per_chunk", "tpot_mean_s", "policy_state",
    "fallback_reason", "classes", "regret", "regret_attainment", "regret_per_phase",
)  # fmt: skip
"""Metrics of a unit that the JSON line repeats, beside every percentile of LATENCIES; the result file has all."""

LATENCIES = ("ttft", "itl", "e2e")


@dataclass(frozen=True, slots=True)
class Judged:
    """One cell with all its units.

    oracle: what ``bench.virtual.oracles.oracles`` found among the fixed arms. rows: per arm its metrics, with regrets.
    ratios: goodput over the oracle's. token_ratios, weighted_ratios, weighted_token_ratios: good tokens, weighted
    goodput and weighted good tokens, each over the most of any fixed arm. cost_ratios: dollars per token over those of
    the oracle's arm. attainment_ratios: attainment over the highest of any fixed arm, which no request that hangs
    decides. others, against: by name of a further oracle, what it found, and goodput over its.
    """

    name: str
    place: Mapping[str, str]
    oracle: Mapping[str, Any]
    rows: Mapping[str, Row]
    ratios: Ratios
    token_ratios: Ratios
    weighted_ratios: Ratios
    weighted_token_ratios: Ratios
    cost_ratios: Ratios
    attainment_ratios: Ratios
    others: Mapping[str, Mapping[str, Any]]
    against: Mapping[str, Ratios]

    @property
    def oracle_attainment(self) -> float | None:
        """Share of requests that met the SLO under the best fixed setting; None where none lived."""
        overall = self.oracle["overall"]
        return overall and float(overall["attainment"])

    def counts(self, least_attainment: float) -> bool:
        """Whether the best fixed setting serves enough of the traffic for ratios to it to mean something."""
        return self.oracle_attainment is not None and self.oracle_attainment >= least_attainment


def judged(
    name: str,
    place: Mapping[str, str],
    rows: Sequence[Row],
    fixed: Collection[str],
    others: Mapping[str, Collection[str]] | None = None,
) -> Judged:
    """A cell from the rows of its arms. fixed: the arms that the oracle is picked from; others: of further oracles."""
    found = oracles(rows, list(fixed))
    further = {label: oracles(rows, list(names)) for label, names in (others or {}).items()}
    highest = highest_attainment(rows, fixed)
    completed = {row["arm"]: row for row in with_regret(rows, found, highest)}
    lived = [row for row in rows if row["arm"] in fixed and row["status"] == "ok"]

    def to_most(metric: str) -> dict[str, float | None]:
        most = max((row.get(metric) or 0.0 for row in lived), default=None)
        return {arm: _over(row, metric, most) for arm, row in completed.items()}

    best = completed[found["overall"]["arm"]] if found["overall"] else None
    # Of one machine, dollars per token are as tokens per second of it are to each other, whatever its price is.
    speed = None if best is None else best.get("total_tokens_per_s")
    speeds = {arm: _over(row, "total_tokens_per_s", speed) for arm, row in completed.items()}
    return Judged(
        name,
        place,
        found,
        completed,
        ratios=_ratios(completed, found),
        token_ratios=to_most("good_tokens_per_s"),
        weighted_ratios=to_most("weighted_goodput_per_s"),
        weighted_token_ratios=to_most("weighted_good_tokens_per_s"),
        cost_ratios={arm: 1 / ratio if ratio else None for arm, ratio in speeds.items()},
        attainment_ratios={arm: _over(row, "attainment", highest) for arm, row in completed.items()},
        others=further,
        against={label: _ratios(completed, one) for label, one in further.items()},
    )


def summary(cells: Sequence[Judged], arms: Sequence[str], least_attainment: float) -> list[dict[str, Any]]:
    """Per arm: the smallest, median and largest ratio over the cells that count, and its crashes in all cells.

    ``cells``: how many cells gave a ratio; a crash gives none. ``worst``: the cell of the smallest. ``good_tokens``,
    ``weighted``, ``weighted_tokens``, ``attainment`` and ``against`` have the same of the other ratios.
    ``cost_median``: of the cost ratios.
    """
    counted = [cell for cell in cells if cell.counts(least_attainment)]
    labels = list(dict.fromkeys(label for cell in cells for label in cell.against))
    table = []
    for arm in arms:
        waits = [cell.rows[arm].get("longest_tenth_ttft_p99_s") for cell in counted]
        table.append({
            "arm": arm,
            **_spread({cell.name: cell.ratios[arm] for cell in counted}),
            "crashes": sum(cell.rows[arm]["status"] != "ok" for cell in cells),
            "good_tokens": _spread({cell.name: cell.token_ratios[arm] for cell in counted}),
            "weighted": _spread({cell.name: cell.weighted_ratios[arm] for cell in counted}),
            "weighted_tokens": _spread({cell.name: cell.weighted_token_ratios[arm] for cell in counted}),
            "attainment": _spread({cell.name: cell.attainment_ratios[arm] for cell in counted}),
            "against": {
                label: _spread({cell.name: cell.against[label][arm] for cell in counted}) for label in labels
            },
            "cost_median": _median([cell.cost_ratios[arm] for cell in counted]),
            "longest_tenth_ttft_p99_median_s": _median(waits),
        })  # fmt: skip
    return table


def by_value(cells: Sequence[Judged], axis: str) -> dict[str, list[Judged]]:
    """The cells at each value of one axis, in the order of the cells."""
    found: dict[str, list[Judged]] = {}
    for cell in cells:
        found.setdefault(cell.place[axis], []).append(cell)
    return found


def cell_result(cell: Judged) -> dict[str, Any]:
    """The cell, ready for JSON: where it lies, its oracles, and the shown metrics of every arm with its ratios."""
    return {
        "cell": cell.name,
        "place": dict(cell.place),
        "oracles": cell.oracle,
        "other_oracles": dict(cell.others),
        "arms": {
            arm: {
                **{metric: row.get(metric) for metric in (*SHOWN, *_percentiles(row))},
                "ratio": cell.ratios[arm],
                "good_token_ratio": cell.token_ratios[arm],
                "weighted_ratio": cell.weighted_ratios[arm],
                "weighted_token_ratio": cell.weighted_token_ratios[arm],
                "cost_ratio": cell.cost_ratios[arm],
                "attainment_ratio": cell.attainment_ratios[arm],
                "against": {label: ratios[arm] for label, ratios in cell.against.items()},
            }
            for arm, row in cell.rows.items()
        },
    }


def _percentiles(row: Row) -> list[str]:
    return [key for key in row if key.startswith(tuple(f"{name}_p" for name in LATENCIES))]


def _spread(ratios: Mapping[str, float | None]) -> dict[str, Any]:
    known = {name: ratio for name, ratio in ratios.items() if ratio is not None}
    return {
        "min": min(known.values(), default=None),
        "median": median(known.values()) if known else None,
        "max": max(known.values(), default=None),
        "worst": min(known, key=lambda name: known[name], default=None),
        "cells": len(known),
    }


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(median(known)) if known else None


def _ratios(rows: Mapping[str, Row], found: Mapping[str, Any]) -> dict[str, float | None]:
    best = found["overall"]["goodput_per_s"] if found["overall"] else None
    return {arm: _over(row, "goodput_per_s", best) for arm, row in rows.items()}


def _over(row: Row, metric: str, best: float | None) -> float | None:
    value = row.get(metric)
    return None if row["status"] != "ok" or value is None or not best else float(value / best)
