"""The sweep's figures: a heat map of ratios, and attainment along one axis, a panel for each place on the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from math import ceil
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from bench.report.figures import arm_styles, dressed
from bench.sweep.tables import ratio_texts, unpicked

Result = Mapping[str, Any]

# Vermillion below the best fixed setting, white beside it, blue above: the ends of the palette of the other figures.
RATIO_COLOURS = ((0.0, "#D55E00"), (0.5, "#FFFFFF"), (1.0, "#0072B2"))
RATIO_RANGE = (0.5, 1.5)
PANELS_ACROSS = 3
FIXED_FILL, FIXED_LINE = "rgba(107, 114, 128, 0.18)", "#6B7280"


def ratio_figure(result: Result) -> go.Figure:
    """Goodput over the best fixed setting's, by cell (down) and arm (across), with the values; crashes are named."""
    arms = [*(a for a in result["arms"] if a not in result["fixed"]), *result["fixed"]]
    cells = result["cells"]
    units = [[cell["arms"][arm] for arm in arms] for cell in cells]
    figure = go.Figure(
        go.Heatmap(
            x=[escape(arm) for arm in arms],
            y=[cell_label(cell, result["least_attainment"]) for cell in cells],
            z=[[unit["ratio"] for unit in row] for row in units],
            text=[ratio_texts(cell, arms) for cell in cells],
            customdata=[[_hover(unit) for unit in row] for row in units],
            texttemplate="%{text}",
            hovertemplate="%{y}<br>%{x}: %{text}<br>%{customdata}<extra></extra>",
            colorscale=[list(stop) for stop in RATIO_COLOURS],
            zmin=RATIO_RANGE[0],
            zmax=RATIO_RANGE[1],
            xgap=1,
            ygap=1,
            colorbar={"title": {"text": "ratio"}, "thickness": 12},
            hoverongaps=True,
        )
    )
    _write_crashes(figure, cells, arms, result["least_attainment"])
    figure.update_xaxes(side="top", tickangle=-45, showgrid=False)
    figure.update_yaxes(autorange="reversed", showgrid=False, automargin=True)
    dressed(figure, 190 + 34 * len(cells))
    figure.update_layout(margin={"l": 80, "r": 20, "t": 140, "b": 20}, plot_bgcolor="#F3F4F6")
    return figure


def attainment_figure(result: Result) -> go.Figure | None:
    """Share of requests that met the SLO along the axis ``along``; None without that axis.

    Fixed settings are one band, from the worst to the best of them; its upper edge is the oracle. The settings of
    further oracles are not drawn.
    """
    along = result["along"]
    if along is None:
        return None
    values = result["axes"][along]
    panels: dict[str, dict[str, Any]] = {}
    for cell in result["cells"]:
        rest = ", ".join(name for axis, name in cell["place"].items() if axis != along)
        panels.setdefault(rest, {})[cell["place"][along]] = cell
    across = min(PANELS_ACROSS, len(panels))
    down = ceil(len(panels) / across)
    figure = make_subplots(
        rows=down, cols=across, subplot_titles=[escape(name) for name in panels], shared_yaxes=True,
        horizontal_spacing=0.03, vertical_spacing=0.32 / down,
    )  # fmt: skip
    for place, cells in enumerate(panels.values()):
        at = {"row": place // across + 1, "col": place % across + 1}
        ticks = [_tick(cells[value], along) for value in values]
        _add_band(figure, result, [cells[value] for value in values], ticks, at, first=place == 0)
        for arm, style in arm_styles(unpicked(result)).items():
            units = [cells[value]["arms"][arm] for value in values]
            figure.add_scatter(
                x=ticks, y=[unit["attainment"] for unit in units], mode="lines+markers", name=escape(arm),
                legendgroup=arm, showlegend=place == 0, line={**style, "width": 2}, customdata=list(map(_hover, units)),
                hovertemplate="%{y:.1%} " + escape(arm) + "<br>%{customdata}<extra></extra>", **at,
            )  # fmt: skip
    figure.update_yaxes(tickformat=".0%", range=[0, 1.04])
    return dressed(figure, 140 + 300 * down).update_layout(margin={"t": 64})


def cell_label(cell: Mapping[str, Any], least_attainment: float) -> str:
    """The cell's name with what its best fixed setting attains, and whether it counts for the summary."""
    best = cell["oracles"]["overall"]
    met = "all fixed crashed" if best is None else f"{best['attainment']:.0%}"
    counts = best is not None and best["attainment"] >= least_attainment
    return f"{escape(cell['cell'])} · {met}" + ("" if counts else " (not counted)")


def _add_band(
    figure: go.Figure, result: Result, cells: Sequence[Any], ticks: list[str], at: Mapping[str, int], *, first: bool
) -> None:
    fixed = [[cell["arms"][arm]["attainment"] for arm in result["fixed"]] for cell in cells]
    known = [[met for met in mets if met is not None] for mets in fixed]
    lowest, highest = ([edge(mets, default=None) for mets in known] for edge in (min, max))
    hidden = {"width": 0}
    figure.add_scatter(x=ticks, y=lowest, mode="lines", line=hidden, showlegend=False, hoverinfo="skip", **at)
    figure.add_scatter(
        x=ticks, y=highest, mode="lines", line={"width": 3, "color": FIXED_LINE}, fill="tonexty", fillcolor=FIXED_FILL,
        name="fixed settings, worst to best", legendgroup="fixed", showlegend=first,
        hovertemplate="%{y:.1%} best fixed<extra></extra>", **at,
    )  # fmt: skip


def _write_crashes(figure: go.Figure, cells: Sequence[Any], arms: Sequence[str], least_attainment: float) -> None:
    """A heat map writes no text where it has no value."""
    for cell in cells:
        for arm, text in zip(arms, ratio_texts(cell, arms), strict=True):
            if cell["arms"][arm]["ratio"] is None:
                figure.add_annotation(
                    x=escape(arm), y=cell_label(cell, least_attainment), text=text, showarrow=False,
                    font={"size": 10, "color": "#B00020"},
                )  # fmt: skip


def _tick(cell: Mapping[str, Any], along: str) -> str:
    name, rate = escape(cell["place"][along]), cell["offered_per_s"]
    return name if rate is None else f"{name}<br>{rate:.3g} req/s"


def _hover(unit: Mapping[str, Any]) -> str:
    if unit["status"] != "ok":
        return escape(str(unit["crash"]))
    met = f"{unit['goodput_per_s']:.3g} req/s in SLO, {unit['attainment']:.1%} of requests"
    against = (f", {ratio:.2f} of the best {escape(label)}" for label, ratio in unit["against"].items() if ratio)
    return met + "".join(against)
