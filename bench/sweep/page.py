"""The page of a sweep: one self-contained HTML file with the heat map, attainment against load, and every unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.report.columns import Column, endings, latency_columns, weighted
from bench.report.headlines import sweep_lines
from bench.report.percentiles import PERCENTILES
from bench.report.rendering import ABSENT, render
from bench.sweep.figures import attainment_figure, cell_label, ratio_figure
from bench.sweep.tables import CRASHED, tables


def shown_columns(percentiles: Sequence[float] = PERCENTILES) -> list[Column]:
    """What the table of a cell shows of each arm, in order."""
    return [
        Column("goodput req/s", "goodput_per_s", ".2f"),
        Column("good req/s arriving", "goodput_arrivals_per_s", ".2f"),
        Column("good tok/s", "good_tokens_per_s", ".0f"),
        Column("weighted goodput /s", "weighted_goodput_per_s", ".2f", when=weighted),
        Column("weighted good tok/s", "weighted_good_tokens_per_s", ".0f", when=weighted),
        Column("SLO met %", "attainment", ".1f", 100.0),
        *latency_columns("ttft", "TTFT", "s", percentiles),
        Column("longest tenth TTFT P99 s", "longest_tenth_ttft_p99_s", ".2f"),
        *latency_columns("itl", "ITL", "ms", percentiles),
        *latency_columns("e2e", "E2E", "s", percentiles),
        Column("$/M tok", "usd_per_million_tokens", ".3f"),
        Column("cost ratio", "cost_ratio", ".2f"),
        Column("retractions", "retractions", ".0f"),
        Column("cache hit %", "cache_hit_rate", ".1f", 100.0),
        Column("deferrals", "deferrals", ".0f"),
        Column("longest wait s", "longest_wait_s", ".2f"),
        *endings(),
        Column("regret %", "regret", ".1f", 100.0),
        Column("regret per phase %", "regret_per_phase", ".1f", 100.0),
    ]


def write_page(path: Path, result: Mapping[str, Any]) -> Path:
    """Writes the page to ``path``, plotly inlined, nothing loaded from anywhere; returns the path."""
    units = [unit for cell in result["cells"] for unit in cell["arms"].values()]
    percentiles = result.get("percentiles") or PERCENTILES
    columns = [column for column in shown_columns(percentiles) if column.when(units)]
    figures = {"ratios": ratio_figure(result), "attainment": attainment_figure(result)}
    page = render(
        "sweep/sweep.html.j2",
        figures,
        result=result,
        tables=tables(result),
        lines=sweep_lines(result["cells"]),
        columns=[column.title for column in columns],
        cells=[{**cell, "label": cell_label(cell, result["least_attainment"])} for cell in result["cells"]],
        unit_rows={cell["cell"]: unit_rows(cell, columns) for cell in result["cells"]},
    )
    path.write_text(page, encoding="utf-8")
    return path


def unit_rows(cell: Mapping[str, Any], columns: Sequence[Column] = ()) -> list[dict[str, Any]]:
    """One row per arm of a cell: its name, its status or why it has none, and a text for every column."""
    return [
        {
            "arm": arm,
            "status": f"{CRASHED}: {unit['crash']}" if unit["status"] != "ok" else _state(unit),
            "bad": unit["status"] != "ok",
            "cells": [column.text(unit, ABSENT) for column in columns or shown_columns()],
        }
        for arm, unit in cell["arms"].items()
    ]


def _state(unit: Mapping[str, Any]) -> str:
    return f"fell back: {unit['fallback_reason']}" if unit.get("policy_state") == "fallback" else "ok"
