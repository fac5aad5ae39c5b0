"""The report: one table for the terminal, one self-contained HTML file for the browser."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs
from rich.console import Group, RenderableType
from rich.table import Table

from bench.report.columns import Column, brief, columns
from bench.report.drafts import drafts_figure
from bench.report.figures import arm_styles, ecdf_figure, roofline_figure
from bench.report.headlines import verdict_lines
from bench.report.percentiles import PERCENTILES
from bench.report.records import ArmRun
from bench.report.series import knobs_figure, load_figure

MOST_ARMS_ACROSS = 6
"""More arms than this stand below each other in the terminal, with the shortest of the columns."""
ABSENT = "–"


def verdict_rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per arm: name, status, one cell per column (median over the repeats that lived, and their range)."""
    rows = []
    for arm in result["arms"]:
        runs = [run for run in result["runs"] if run["arm"] == arm]
        lived = [run for run in runs if run["status"] == "ok"]
        crashed = len(runs) - len(lived)
        state = "ok" if not crashed else f"crashed {crashed} of {len(runs)}"
        fallbacks = sorted({str(run["fallback_reason"]) for run in lived if run.get("policy_state") == "fallback"})
        if fallbacks:
            state += "; fell back: " + "; ".join(fallbacks)
        cells = [_cell(lived, column) for column in shown_columns(result)]
        rows.append({"arm": arm, "status": state, "bad": bool(crashed), "cells": cells})
    return rows


def shown_columns(result: Mapping[str, Any]) -> list[Column]:
    """The columns of this result's table, in order."""
    return [column for column in columns(_percentiles(result)) if column.when(result["runs"])]


def verdict_table(result: Mapping[str, Any]) -> RenderableType:
    """The arms side by side for the terminal: metrics down where arms are few, else arms down, in two tables.

    100 columns of text hold either; with arms down the ranges over the repeats are left to the page.
    """
    rows, shown = verdict_rows(result), shown_columns(result)
    title = f"{result['name']}: {result['requests']} requests"
    caption = f"SLO: {result['slo_text']}; median of {result['repeats']}"
    if len(rows) > MOST_ARMS_ACROSS:
        first, second = (_arms_down(rows, shown, headings) for headings in brief(_percentiles(result)))
        first.title, second.caption = title, caption
        return Group(first, second)
    table = Table(title=title, caption=f"{caption} (range)", caption_justify="left")
    table.add_column("metric")
    for row in rows:
        table.add_column(row["arm"], justify="right", overflow="fold")
    table.add_row("status", *(row["status"] for row in rows), style="bold")
    for place, column in enumerate(shown):
        table.add_row(column.title, *(" ".join(row["cells"][place]).strip() for row in rows))
    return table


def _arms_down(rows: Sequence[Mapping[str, Any]], shown: Sequence[Column], headings: Mapping[str, str]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), caption_justify="left")
    table.add_column("\narm", overflow="fold")
    places = [place for place, column in enumerate(shown) if column.metric in headings]
    for place in places:
        table.add_column(headings[shown[place].metric], justify="right", no_wrap=True)
    for row in rows:
        state = "" if row["status"] == "ok" else f" ({row['status']})"
        table.add_row(row["arm"] + state, *(row["cells"][place][0] for place in places))
    return table


def write_report(path: Path, result: Mapping[str, Any], runs: Sequence[ArmRun]) -> Path:
    """Writes the HTML report to ``path``: plotly inlined once, nothing loaded from anywhere; returns the path."""
    styles = arm_styles(list(result["arms"]))
    slo = result["slo"]
    figures = {
        "roofline": roofline_figure(runs, styles),
        "knobs": knobs_figure(runs, styles),
        "load": load_figure(runs, styles),
        "drafts": drafts_figure(runs, styles),
        "latency": ecdf_figure(runs, styles, slo["ttft_s"], slo["itl_s"]),
    }
    page = render(
        "report/report.html.j2",
        figures,
        result=result,
        columns=[column.title for column in shown_columns(result)],
        rows=verdict_rows(result),
        lines=verdict_lines(result),
        styles=styles,
        crashes=[run for run in runs if run.crash],
        settings=json.dumps({key: value for key, value in result.items() if key not in ("runs", "ratios")}, indent=2),
    )
    path.write_text(page, encoding="utf-8")
    return path


def render(template: str, figures: Mapping[str, go.Figure | None], **context: object) -> str:
    """A page from a template below bench/ that extends report/page.html.j2; of the figures, those that there are."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parents[1]), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    drawn = {name: in_script(figure.to_json()) for name, figure in figures.items() if figure is not None}
    return environment.get_template(template).render(figures=drawn, plotly_js=Markup(get_plotlyjs()), **context)


def in_script(text: str) -> Markup:
    """JSON that may stand inside a script element whatever its strings hold."""
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _percentiles(result: Mapping[str, Any]) -> Sequence[float]:
    return result.get("percentiles") or PERCENTILES


def _cell(runs: Sequence[Mapping[str, Any]], column: Column) -> tuple[str, str]:
    values = sorted(run[column.metric] * column.scale for run in runs if run.get(column.metric) is not None)
    if not values:
        return ABSENT, ""
    half = len(values) // 2
    middle = values[half] if len(values) % 2 else (values[half - 1] + values[half]) / 2
    shown = format(middle, column.form)
    low, high = format(values[0], column.form), format(values[-1], column.form)
    return shown, f"({low}–{high})" if low != high else ""
