"""Cells in which an arm stays behind the best fixed setting, with the figures that a person needs to see why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.sweep.summary import Judged

FIGURES = ("goodput_per_s", "attainment", "duration_s", "missed")
"""Of the arm and of the best fixed setting, side by side."""


def shortfalls(
    cells: Sequence[Judged], arms: Sequence[str], least_ratio: float, least_attainment: float
) -> list[dict[str, Any]]:
    """A row for each cell that counts and arm whose ratio is below ``least_ratio``, or that crashed, the worst first.

    Each has the ratio, and FIGURES of the arm (``ours``) and of the best fixed setting (``best``); ``missed`` says how
    many requests missed what of their SLO, and a request may miss more than one thing.
    """
    found = []
    for cell in cells:
        if not cell.counts(least_attainment):
            continue
        best = cell.oracle["overall"]["arm"]
        for arm in arms:
            ratio = cell.ratios[arm]
            if cell.rows[arm]["status"] == "ok" and (ratio is None or ratio >= least_ratio):
                continue
            sides = {
                side: {"arm": one, **{figure: cell.rows[one].get(figure) for figure in FIGURES}}
                for side, one in (("ours", arm), ("best", best))
            }
            found.append({"cell": cell.name, "place": dict(cell.place), "ratio": ratio, **sides})
    return sorted(found, key=lambda one: -1.0 if one["ratio"] is None else one["ratio"])
