"""What a sweep shows as tables, for the terminal and for the page: arms over all cells, capacities, cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from bench.report.columns import weighted
from bench.report.one_request import MISSED
from bench.report.rendering import ABSENT

CRASHED = "crashed"
SPREAD = ("min", "median", "max")
WEIGHTED = {"weighted": "weighted", "weighted_tokens": "weighted tokens"}
"""Spreads of a summary that say something where classes have weights, and how their columns are called."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A table of texts. rows: the first text of each names it. bad: places of rows that stand out. last_wide: the last
    column holds text."""

    title: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    bad: frozenset[int] = frozenset()
    last_wide: bool = False

    def rich(self) -> Table:
        """For the terminal."""
        table = Table(title=self.title, caption=self.caption or None, caption_justify="left")
        for place, column in enumerate(self.columns):
            wide = self.last_wide and place == len(self.columns) - 1
            table.add_column(
                column, no_wrap=place == 0, justify="left" if wide or place == 0 else "right",
                overflow="fold" if wide else "ellipsis",
            )  # fmt: skip
        for place, row in enumerate(self.rows):
            table.add_row(*row, style="bold red" if place in self.bad else None)
        return table

    def markdown(self) -> str:
        """For a document: a line for the columns and one for each row; the first column on the left, as the last where
        it holds text. Title and caption are left to the document."""
        left = {0, len(self.columns) - 1} if self.last_wide else {0}
        rule = ["---" if place in left else "--:" for place in range(len(self.columns))]
        escaped = [[text.replace("|", "\\|") for text in row] for row in (self.columns, *self.rows)]
        return "\n".join(f"| {' | '.join(row)} |" for row in (escaped[0], rule, *escaped[1:]))


def tables(result: Mapping[str, Any]) -> list[Shown]:
    """Every table but that of the cells: the summary, those of the groups, costs, capacities, shortfalls."""
    whole = {"value": None, "cells": len(result["cells"]), "cells_counted": result["cells_counted"]}
    found = [summary_table(result, {**whole, "summary": result["summary"]})]
    found += [summary_table(result, group) for group in result["groups"]]
    found.append(cost_table(result))
    if result["capacity"] is not None and result["capacity"]["places"]:
        found.append(capacity_table(result))
    if result["shortfalls"]:
        found.append(shortfalls_table(result))
    return found


def summary_table(result: Mapping[str, Any], group: Mapping[str, Any]) -> Shown:
    """A row per arm: its goodput over the best fixed setting's, over the cells in which that attains enough; after it
    the same of good tokens, and of the best settings of further oracles."""
    labels = [label for label in result["oracles"] if label != "fixed"]
    of_group = "" if group["value"] is None else f" at {result['group_by']} = {group['value']}"
    counted = f"{group['cells_counted']} of {group['cells']} cells"
    columns = ["arm", *SPREAD, *(f"tokens {one}" for one in SPREAD)]
    further = WEIGHTED if weighted([unit for cell in result["cells"] for unit in cell["arms"].values()]) else {}
    columns += [f"{title} {one}" for title in further.values() for one in SPREAD]
    columns += [f"/ {label} {one}" for label in labels for one in SPREAD]
    rows = []
    for row in group["summary"]:
        spreads = [row, row["good_tokens"], *(row[key] for key in further)]
        spreads += [row["against"][label] for label in labels]
        ratios = [number(spread[one]) for spread in spreads for one in SPREAD]
        rows.append(
            (_name(result, row["arm"]), *ratios, str(row["cells"]), str(row["crashes"]), row["worst"] or ABSENT)
        )
    caption = f"cells in which the best fixed setting meets the SLO for {result['least_attainment']:.0%} or more; "
    caption += "tokens: of requests that met the SLO" + ("; weighted: by the weight of their class" if further else "")
    caption += "".join(f"; / {label}: goodput over that of the best of its settings" for label in labels)
    return Shown(
        f"{result['name']}{of_group}: goodput / goodput of the best fixed setting, {counted}",
        caption,
        (*columns, "cells", "crashes", "worst in"),
        tuple(rows),
        frozenset(place for place, row in enumerate(group["summary"]) if row["crashes"]),
        last_wide=True,
    )


def cost_table(result: Mapping[str, Any]) -> Shown:
    """A row per arm: requests that met the SLO and what a token costs against the best fixed setting, and how long the
    longest prompts wait."""
    return Shown(
        "over the same cells",
        "SLO met: share of requests over the highest of any fixed setting (no duration is in it, so no request that"
        " hangs decides it); cost: dollars per token over those of the best fixed setting, median; wait: P99 TTFT of"
        " the longest tenth of prompts, median",
        ("arm", *(f"SLO met {one}" for one in SPREAD), "cost", "wait s"),
        tuple(
            (
                _name(result, row["arm"]),
                *(number(row["attainment"][one]) for one in SPREAD),
                number(row["cost_median"]),
                number(row["longest_tenth_ttft_p99_median_s"]),
            )
            for row in result["summary"]
        ),
    )


def capacity_table(result: Mapping[str, Any]) -> Shown:
    """A row per arm: the highest load it is up to at each place on the other axes, and that over the baseline's."""
    found = result["capacity"]
    compared = {row["arm"]: row for row in found["summary"]}
    rows = []
    for arm in result["arms"]:
        ratios = [number(compared[arm][one]) for one in SPREAD] if compared else []
        rows.append((_name(result, arm), *(place["arms"][arm]["text"] for place in found["places"]), *ratios))
    ratio = f"; min, median, max: over that of {found['baseline']}, where neither is only bounded" if compared else ""
    return Shown(
        f"highest load at which {found['attainment']:.0%} of requests meet the SLO",
        f"as traffic.rate_scale, between the loads of the sweep along a straight line{ratio}",
        ("arm", *(place["place"] for place in found["places"]), *(SPREAD if compared else ())),
        tuple(rows),
    )


def cells_table(result: Mapping[str, Any]) -> Shown:
    """A row per cell: how far the best fixed setting gets and which it is, and the ratio of every other arm to it.

    Where there are further oracles, the ratios to them follow after a stroke; their own settings are left out.
    """
    labels = [label for label in result["oracles"] if label != "fixed"]
    arms = unpicked(result)
    rows = []
    for cell in result["cells"]:
        best = cell["oracles"]["overall"] or {"arm": CRASHED, "attainment": None}
        met = ABSENT if best["attainment"] is None else f"{best['attainment']:.1%}".rstrip("%")
        others = [cell["other_oracles"][label]["overall"] for label in labels]
        texts = [
            text if cell["arms"][arm]["status"] != "ok" else " / ".join([text, *_against(cell["arms"][arm], labels)])
            for arm, text in zip(arms, ratio_texts(cell, arms), strict=True)
        ]
        rows.append((cell["cell"], best["arm"], met, *(one["arm"] if one else CRASHED for one in others), *texts))
    after = "".join(f" / of the best {label} setting" for label in labels)
    columns = ("cell", "best fixed", "SLO met %", *(f"best {label}" for label in labels), *arms)
    return Shown(f"goodput / goodput of the best fixed setting{after}", "", columns, tuple(rows))


def shortfalls_table(result: Mapping[str, Any]) -> Shown:
    """A row per cell and arm that stays behind the best fixed setting: both of them, and what their requests missed."""
    return Shown(
        f"below {result['least_ratio']:g} of the best fixed setting",
        "missed: requests that were late with their first token, their gaps, their mean gap or their whole answer, or"
        " were not completed; one may miss several",
        ("cell", "arm", "ratio", "SLO met %", "duration s", "best fixed", "SLO met %", "duration s",
         "missed by the best fixed; by the arm"),
        tuple(
            (
                one["cell"], one["ours"]["arm"], CRASHED if one["ratio"] is None else f"{one['ratio']:.3f}",
                *_met_and_long(one["ours"]), one["best"]["arm"], *_met_and_long(one["best"]),
                f"{_missed(one['best'])}; {_missed(one['ours'])}",
            )
            for one in result["shortfalls"]
        ),
        last_wide=True,
    )  # fmt: skip


def unpicked(result: Mapping[str, Any]) -> list[str]:
    """The arms that no oracle picks from."""
    picked = {arm for names in result["oracles"].values() for arm in names}
    return [arm for arm in result["arms"] if arm not in picked]


def ratio_texts(cell: Mapping[str, Any], arms: Sequence[str]) -> list[str]:
    """The ratio of each arm in one cell of the result, as text; what there is in its place where there is none."""
    units = (cell["arms"][arm] for arm in arms)
    return [CRASHED if unit["status"] != "ok" else number(unit["ratio"]) for unit in units]


def number(value: float | None) -> str:
    """A ratio with two decimals; a dash for None."""
    return ABSENT if value is None else f"{value:.2f}"


def _against(unit: Mapping[str, Any], labels: Sequence[str]) -> list[str]:
    return [number(unit["against"][label]) for label in labels]


def _name(result: Mapping[str, Any], arm: str) -> str:
    return arm + (" (fixed)" if arm in result["fixed"] else "")


def _met_and_long(side: Mapping[str, Any]) -> tuple[str, str]:
    met = ABSENT if side["attainment"] is None else f"{100 * side['attainment']:.1f}"
    return met, number(side["duration_s"])


def _missed(side: Mapping[str, Any]) -> str:
    counts = [f"{MISSED[key]} {count}" for key, count in (side["missed"] or {}).items() if count]
    return ", ".join(counts) or "nothing"
