"""The best fixed setting picked after the fact, and how far every arm stays behind it; pure functions of rows."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def oracles(rows: Sequence[Row], fixed: Collection[str]) -> dict[str, Any]:
    """What the best of the ``fixed`` arms reached, overall and in each phase.

    ``overall``: the arm with the highest goodput, its goodput and attainment; None without a fixed arm that lived.
    ``per_phase``: for each phase the fixed arm under which most of its requests met their SLO; ``attainment``: of a
    server that could have run each phase under its own best arm, and changed between them for nothing. Of equals, the
    first stands.
    """
    lived = [row for row in rows if row["arm"] in fixed and row["status"] == "ok"]
    if not lived:
        return {"overall": None, "per_phase": None}
    best = max(lived, key=lambda row: row["goodput_per_s"] or 0.0)
    phases = {}
    met = total = 0.0
    for phase in best["phases"]:
        top = max(lived, key=lambda row: row["phases"][phase]["attainment"])["arm"]
        of_top = next(row["phases"][phase] for row in lived if row["arm"] == top)
        phases[phase] = {"arm": top, "attainment": of_top["attainment"]}
        met += of_top["attainment"] * of_top["requests"]
        total += of_top["requests"]
    return {
        "overall": {"arm": best["arm"], "goodput_per_s": best["goodput_per_s"], "attainment": best["attainment"]},
        "per_phase": {"phases": phases, "attainment": met / total},
    }


def highest_attainment(rows: Sequence[Row], fixed: Collection[str]) -> float | None:
    """The largest share of requests that met the SLO under any of the ``fixed`` arms; None where none lived."""
    return max((row["attainment"] for row in rows if row["arm"] in fixed and row["status"] == "ok"), default=None)


def with_regret(rows: Sequence[Row], found: Mapping[str, Any], highest: float | None = None) -> list[dict[str, Any]]:
    """The rows with ``regret``, the share of the overall oracle's goodput that the arm does not reach (negative: it
    does better); ``regret_attainment``, the same of ``highest``, what ``highest_attainment`` found; and
    ``regret_per_phase``, the same of the per-phase oracle's attainment. None without an oracle, or where that is at 0.
    """
    overall, per_phase = found["overall"], found["per_phase"]
    return [
        {
            **row,
            "regret": _short_of(row["goodput_per_s"], overall and overall["goodput_per_s"]),
            "regret_attainment": _short_of(row["attainment"], highest),
            "regret_per_phase": _short_of(row["attainment"], per_phase and per_phase["attainment"]),
        }
        for row in rows
    ]


def _short_of(reached: float | None, best: float | None) -> float | None:
    return None if reached is None or not best else 1.0 - reached / best
