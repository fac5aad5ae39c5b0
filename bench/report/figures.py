"""The report's figures, as plotly objects: what they share, the roofline, the latency curves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from math import log10
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from bench.report.one_request import gaps_s, ttft_s
from bench.report.records import ArmRun, RequestRecord

# Okabe and Ito's palette: told apart with every common colour vision. Dash and marker repeat what the colour says.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "solid")
ECDF_POINTS = 400


def arm_styles(arms: Sequence[str]) -> dict[str, dict[str, str]]:
    """A colour and a dash per arm, the same in every figure; no two alike for as many as 49."""
    places = ((i % len(COLOURS), (i + i // len(COLOURS)) % len(DASHES)) for i in range(len(arms)))
    return {arm: {"color": COLOURS[c], "dash": DASHES[d]} for arm, (c, d) in zip(arms, places, strict=True)}


SAMPLED_EVERY_S = 1.0
"""Operating points older than this were in an earlier sample; see bench.live.sampler."""


def first_lived(runs: Sequence[ArmRun]) -> dict[str, ArmRun]:
    """Per arm, the first repeat that left samples: the one the time series show."""
    chosen: dict[str, ArmRun] = {}
    for run in sorted(runs, key=lambda run: (bool(run.crash), run.repeat)):
        if run.samples:
            chosen.setdefault(run.arm, run)
    return chosen


def roofline_figure(runs: Sequence[ArmRun], styles: Mapping[str, Mapping[str, str]]) -> go.Figure | None:
    """Ceilings of the served precision and the operating points of prefill and decode, log-log; None without any."""
    figure = go.Figure()
    ceilings: Mapping[str, Any] | None = None
    served: str | None = None
    xs: list[float] = []
    ys: list[float] = []
    for arm, run in first_lived(runs).items():
        for kind, symbol in (("prefill", "circle"), ("decode", "square")):
            points = [(s.t_s, rank["last"][kind]) for s in run.samples for rank in s.ranks[:1] if rank.get("last")]
            points = [(t, p) for t, p in points if p is not None and p["age_s"] <= SAMPLED_EVERY_S]
            points = [(t, p) for t, p in points if p["intensity_flops_per_byte"] > 0 and p["flops_per_s"] > 0]
            if not points:
                continue
            x = [point["intensity_flops_per_byte"] for _, point in points]
            y = [point["flops_per_s"] for _, point in points]
            xs, ys = xs + x, ys + y
            figure.add_scatter(
                x=x,
                y=y,
                mode="markers",
                name=f"{arm}: {kind}",
                marker={
                    "symbol": symbol,
                    "size": 9,
                    "color": styles[arm]["color"],
                    "opacity": 0.65,
                    "line": {"width": 0.5, "color": "white"},
                },
                hovertext=[f"{arm} {kind} at {t:.0f} s: {escape(str(p.get('bound')))} bound" for t, p in points],
                hovertemplate="%{hovertext}<br>%{x:.3s} FLOP/byte, %{y:.3s} FLOP/s<extra></extra>",
            )
        for sample in run.samples:
            for rank in sample.ranks[:1]:
                ceilings, served = rank.get("ceilings") or ceilings, rank.get("precision") or served
    if ceilings is None:
        return None
    bandwidth = float(ceilings["bytes_per_s"])
    peaks = {precision: float(peak) for precision, peak in ceilings["flops_per_s"].items() if peak}
    if served in peaks:
        peaks = {served: peaks[served]}
    ridges = [peak / bandwidth for peak in peaks.values()]
    low, high = min([*xs, *ridges]) / 4, max([*xs, *ridges]) * 8
    for place, (precision, peak) in enumerate(peaks.items()):
        ridge = peak / bandwidth
        line = {"color": "#4B5563", "width": 2, "dash": DASHES[place % len(DASHES)]}
        figure.add_scatter(
            x=[low, ridge, high],
            y=[low * bandwidth, peak, peak],
            mode="lines",
            line=line,
            name=f"roof {precision}: {_si(peak)}FLOP/s, {_si(bandwidth)}B/s",
            hoverinfo="skip",
        )
        figure.add_scatter(
            x=[ridge],
            y=[peak],
            mode="markers+text",
            marker={"symbol": "diamond-open", "size": 12, "color": "#111827", "line": {"width": 2}},
            text=[f"ridge {ridge:.3g} FLOP/byte"],
            textposition="top left",
            showlegend=False,
            hoverinfo="skip",
        )
    figure.update_xaxes(
        type="log", title="arithmetic intensity (issued FLOPs per compulsory byte)", exponentformat="SI"
    )
    figure.update_yaxes(type="log", title="FLOP/s", exponentformat="SI", dtick=1, minor={"showgrid": True})
    return dressed(figure, 460)


def ecdf_figure(
    runs: Sequence[ArmRun],
    styles: Mapping[str, Mapping[str, str]],
    ttft_limit_s: float | None,
    itl_limit_s: float | None,
) -> go.Figure:
    """Share of requests (TTFT) and of gaps per token (ITL) at or below a time, all repeats of an arm pooled."""
    figure = make_subplots(rows=1, cols=2, horizontal_spacing=0.08, subplot_titles=("TTFT", "ITL"))

    def itls(record: RequestRecord) -> list[float]:
        return [float(gap) for gap in gaps_s(record)]

    def ttfts(record: RequestRecord) -> list[float]:
        first = ttft_s(record)
        return [] if first is None else [first]

    columns: tuple[tuple[Callable[[RequestRecord], list[float]], float | None], ...] = (
        (ttfts, ttft_limit_s),
        (itls, itl_limit_s),
    )
    for col, (values_of, limit) in enumerate(columns, start=1):
        for arm, style in styles.items():
            values = [v for run in runs if run.arm == arm for record in run.records for v in values_of(record)]
            shares = np.linspace(0, 1, min(ECDF_POINTS, max(2, len(values))))
            figure.add_scatter(
                x=np.quantile(values, shares).tolist() if values else [],
                y=shares.tolist() if values else [],
                mode="lines",
                line={**style, "width": 2},
                name=arm,
                legendgroup=arm,
                showlegend=col == 1,
                hovertemplate="%{y:.1%} within %{x:.3s}s<extra>" + escape(arm) + "</extra>",
                row=1,
                col=col,
            )
        if limit is not None:
            figure.add_vline(x=limit, line={"color": "#4B5563", "dash": "dot"}, row=1, col=col)
            figure.add_annotation(x=log10(limit), y=0.05, text="SLO", showarrow=False, xshift=18, row=1, col=col)
        figure.update_xaxes(type="log", title="seconds", dtick=1, minor={"showgrid": True}, row=1, col=col)
        figure.update_yaxes(tickformat=".0%", range=[0, 1.02], row=1, col=col)
    return dressed(figure, 380)


def _si(value: float) -> str:
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}"
    return f"{value:.3g} "


def dressed(figure: go.Figure, height: int) -> go.Figure:
    """The figure in the report's look, ``height`` pixels high."""
    figure.update_layout(
        template="plotly_white",
        height=height,
        margin={"l": 80, "r": 20, "t": 56, "b": 50},
        font={"family": "system-ui, sans-serif", "size": 13, "color": "#111827"},
        legend={"orientation": "h", "yanchor": "top", "y": -0.16 if height < 500 else -0.12, "x": 0},
        hoverlabel={"align": "left"},
    )
    return figure
