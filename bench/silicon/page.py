"""The page of bench.silicon: predicted against measured, run by run, and the tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from bench.report.figures import dressed
from bench.report.rendering import render
from bench.silicon.summary import FIGURES
from bench.sweep.tables import Shown

TITLES = {"ttft": "TTFT, seconds", "tpot": "TPOT, seconds", "throughput": "output tokens/s"}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
BAND = 0.2
"""The grey band: so far off on either side."""


def write_page(path: Path, result: Mapping[str, Any], tables: Sequence[Shown]) -> Path:
    """Writes the page to ``path``, plotly inlined, nothing loaded from anywhere; returns the path."""
    figure = scatter(result["rows"])
    page = render("silicon/silicon.html.j2", {"scatter": figure}, result=result, tables=tables)
    path.write_text(page, encoding="utf-8")
    return path


def scatter(rows: Sequence[Mapping[str, Any]]) -> go.Figure | None:
    """Predicted over measured of every run, a panel per figure and a colour per device; None without a run."""
    known = [row for row in rows if "predicted" in row]
    if not known:
        return None
    figure = make_subplots(rows=1, cols=len(FIGURES), subplot_titles=[TITLES[name] for name in FIGURES])
    devices = sorted({row["device"] for row in known})
    for place, name in enumerate(FIGURES, 1):
        values = [row[which][name] for row in known for which in ("measured", "predicted")]
        ends = [min(values) / 1.2, max(values) * 1.2]
        for factor, dash in ((1.0, "solid"), (1 - BAND, "dot"), (1 + BAND, "dot")):
            line = go.Scatter(
                x=ends, y=[factor * end for end in ends], mode="lines", hoverinfo="skip", showlegend=False,
                line={"color": "#6B7280", "width": 1, "dash": dash},
            )  # fmt: skip
            figure.add_trace(line, row=1, col=place)
        for device, colour in zip(devices, COLOURS * len(devices), strict=False):
            mine = [row for row in known if row["device"] == device]
            points = go.Scatter(
                x=[row["measured"][name] for row in mine], y=[row["predicted"][name] for row in mine], mode="markers",
                name=escape(device), legendgroup=device, showlegend=place == 1, marker={"color": colour, "size": 6},
                text=[escape(_told(row)) for row in mine],
                hovertemplate="%{text}<br>measured %{x:.4g}, predicted %{y:.4g}<extra></extra>",
            )  # fmt: skip
            figure.add_trace(points, row=1, col=place)
        figure.update_xaxes(type="log", title_text="measured", row=1, col=place)
        figure.update_yaxes(type="log", title_text="predicted" if place == 1 else None, row=1, col=place)
    dressed(figure, 420)
    return figure


def _told(row: Mapping[str, Any]) -> str:
    lengths = f"{row['input_tokens']}/{row['output_tokens']}"
    return f"{row['run']}: {row['group']}, {lengths}, {row['concurrency']} in flight"
