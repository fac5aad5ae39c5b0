"""The report: one table for the terminal, one self-contained HTML file for the browser."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs
from rich.table import Table

from bench.figures import arm_styles, ecdf_figure, roofline_figure
from bench.metrics import median_over_repeats
from bench.records import ArmRun
from bench.series import knobs_figure, load_figure


@dataclass(frozen=True, slots=True)
class Column:
    """One metric of the verdict table. scale: from the metric's unit to the shown one.

    always: shown even where no arm has it; otherwise it appears with the first arm that does.
    """

    title: str
    metric: str
    form: str
    scale: float = 1.0
    always: bool = True


COLUMNS = (
    Column("goodput req/s", "goodput_per_s", ".2f"),
    Column("SLO met %", "attainment", ".1f", 100.0),
    Column("output tok/s", "output_tokens_per_s", ".1f"),
    Column("$/M output tok", "usd_per_million_output_tokens", ".2f"),
    Column("TTFT P50 s", "ttft_p50_s", ".2f"),
    Column("TTFT P99 s", "ttft_p99_s", ".2f"),
    Column("ITL P50 ms", "itl_p50_s", ".1f", 1e3),
    Column("ITL P99 ms", "itl_p99_s", ".1f", 1e3),
    Column("KV max %", "kv_use_max", ".0f", 100.0),
    Column("retractions", "retractions", ".0f"),
    Column("longest wait s", "longest_wait_s", ".2f", always=False),
    Column("deferrals", "deferrals", ".0f", always=False),
    Column("cache hit %", "cache_hit_rate", ".1f", 100.0),
    Column("knob changes", "knob_changes", ".0f"),
    Column("policy P99 µs", "policy_time_p99_s", ".0f", 1e6),
    Column("send slip P99 ms", "slip_p99_s", ".1f", 1e3),
    Column("errors", "errors", ".0f"),
    Column("regret %", "regret", ".1f", 100.0, always=False),
)
MOST_ARMS_ACROSS = 6
"""More arms than this stand below each other in the terminal, with the shortest of the columns."""
NARROW = frozenset({
    "goodput_per_s", "attainment", "output_tokens_per_s", "ttft_p50_s", "ttft_p99_s", "itl_p50_s", "itl_p99_s",
    "kv_use_max", "retractions", "cache_hit_rate", "deferrals", "longest_wait_s", "knob_changes", "regret",
})  # fmt: skip
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
    runs = result["runs"]
    return [c for c in COLUMNS if c.always or any(run.get(c.metric) is not None for run in runs)]


def verdict_lines(result: Mapping[str, Any]) -> list[str]:
    """One sentence per arm compared: its goodput over the baseline's, median and range of the paired ratios.

    Attainment stands beside it: a large ratio of two arms that hardly meet the SLO is no gain.
    """
    lines = []
    for pair, table in result["ratios"].items():
        ratio = table.get("goodput_per_s")
        arm, baseline = pair.split("/")
        if ratio is None:
            lines.append(f"{arm} against {baseline}: no pair of runs to compare.")
            continue
        pairs = f"{ratio['pairs']} pair" + ("s" if ratio["pairs"] != 1 else "")
        span = f"min {ratio['min']:.2f}, max {ratio['max']:.2f}, {pairs}"
        text = f"{arm} against {baseline}: goodput × {ratio['median']:.2f} ({span})"
        met = [median_over_repeats(result["runs"], one, "attainment") for one in (arm, baseline)]
        tail = [
            f"{label} × {table[metric]['median']:.2f}"
            for label, metric in (("TTFT P99", "ttft_p99_s"), ("ITL P99", "itl_p99_s"))
            if metric in table
        ]
        lines.append(", ".join([text, *tail]) + f"; SLO met by {met[0]:.1%} against {met[1]:.1%} of requests.")
    return lines


def verdict_table(result: Mapping[str, Any]) -> Table:
    """The arms side by side for the terminal: metrics down where arms are few, else arms down."""
    rows, columns = verdict_rows(result), shown_columns(result)
    caption = f"SLO: {result['slo_text']}; median of {result['repeats']} (range)"
    table = Table(title=f"{result['name']}: {result['requests']} requests", caption=caption, caption_justify="left")
    if len(rows) > MOST_ARMS_ACROSS:
        table.add_column("arm", no_wrap=True)
        places = [place for place, column in enumerate(columns) if column.metric in NARROW]
        for place in places:
            table.add_column(columns[place].title, justify="right")
        for row in rows:
            state = "" if row["status"] == "ok" else f" ({row['status']})"
            table.add_row(row["arm"] + state, *(" ".join(row["cells"][place]).strip() for place in places))
        return table
    table.add_column("metric")
    for row in rows:
        table.add_column(row["arm"], justify="right")
    table.add_row("status", *(row["status"] for row in rows), style="bold")
    for place, column in enumerate(columns):
        table.add_row(column.title, *(" ".join(row["cells"][place]).strip() for row in rows))
    return table


def write_report(path: Path, result: Mapping[str, Any], runs: Sequence[ArmRun]) -> Path:
    """Writes the HTML report to ``path``: plotly inlined once, nothing loaded from anywhere; returns the path."""
    styles = arm_styles(list(result["arms"]))
    slo = result["slo"]
    figures = {
        "roofline": roofline_figure(runs, styles),
        "knobs": knobs_figure(runs, styles),
        "load": load_figure(runs, styles),
        "latency": ecdf_figure(runs, styles, slo["ttft_s"], slo["itl_s"]),
    }
    page = render(
        "report.html.j2",
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
    """A page from a template below bench/ that extends page.html.j2; of the figures, those that there are."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    drawn = {name: in_script(figure.to_json()) for name, figure in figures.items() if figure is not None}
    return environment.get_template(template).render(figures=drawn, plotly_js=Markup(get_plotlyjs()), **context)


def in_script(text: str) -> Markup:
    """JSON that may stand inside a script element whatever its strings hold."""
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _cell(runs: Sequence[Mapping[str, Any]], column: Column) -> tuple[str, str]:
    values = sorted(run[column.metric] * column.scale for run in runs if run.get(column.metric) is not None)
    if not values:
        return ABSENT, ""
    half = len(values) // 2
    middle = values[half] if len(values) % 2 else (values[half - 1] + values[half]) / 2
    shown = format(middle, column.form)
    low, high = format(values[0], column.form), format(values[-1], column.form)
    return shown, f"({low}–{high})" if low != high else ""
