"""The sweep in the terminal: arms over all cells, and cells against the best fixed setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from bench.report import ABSENT

CRASHED = "crashed"


def summary_table(result: Mapping[str, Any]) -> Table:
    """A row per arm: its goodput over the best fixed setting's, over the cells in which that attains enough."""
    counted, total = result["cells_counted"], len(result["cells"])
    title = f"{result['name']}: goodput / goodput of the best fixed setting, {counted} of {total} cells"
    caption = f"cells in which the best fixed setting meets the SLO for {result['least_attainment']:.0%} or more"
    table = Table(title=title, caption=caption, caption_justify="left")
    table.add_column("arm", no_wrap=True)
    for column in ("min", "median", "max", "cells", "crashes"):
        table.add_column(column, justify="right")
    table.add_column("worst in", overflow="fold")
    for row in result["summary"]:
        name = row["arm"] + (" (fixed)" if row["arm"] in result["fixed"] else "")
        ratios = (number(row[column]) for column in ("min", "median", "max"))
        style = "bold red" if row["crashes"] else None
        table.add_row(name, *ratios, str(row["cells"]), str(row["crashes"]), row["worst"] or ABSENT, style=style)
    return table


def cells_table(result: Mapping[str, Any]) -> Table:
    """A row per cell: how far the best fixed setting gets and which it is, and the ratio of every other arm to it."""
    arms = [arm for arm in result["arms"] if arm not in result["fixed"]]
    table = Table(title="goodput / goodput of the best fixed setting")
    table.add_column("cell")
    table.add_column("best fixed", overflow="fold")
    table.add_column("SLO met %", justify="right")
    for arm in arms:
        table.add_column(arm, justify="right")
    for cell in result["cells"]:
        best = cell["oracles"]["overall"] or {"arm": CRASHED, "attainment": None}
        met = ABSENT if best["attainment"] is None else f"{best['attainment']:.1%}".rstrip("%")
        table.add_row(cell["cell"], best["arm"], met, *ratio_texts(cell, arms))
    return table


def ratio_texts(cell: Mapping[str, Any], arms: Sequence[str]) -> list[str]:
    """The ratio of each arm in one cell of the result, as text; what there is in its place where there is none."""
    units = (cell["arms"][arm] for arm in arms)
    return [CRASHED if unit["status"] != "ok" else number(unit["ratio"]) for unit in units]


def number(value: float | None) -> str:
    """A ratio with two decimals; a dash for None."""
    return ABSENT if value is None else f"{value:.2f}"
