"""The report's figures over time: knobs and load, in seconds since the shown run's replay began."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from bench.report.figures import dressed, first_lived
from bench.report.records import ArmRun, RequestRecord

PHASE_FILLS = ("#F3F4F6", "#FFF3D6", "#E6F1F8")
KNOB_TITLES = {
    "max_running_requests": "max running<br>(requests)",
    "prefill_chunk_tokens": "prefill chunk<br>(tokens)",
    "defer_prefill": "defer prefill<br>(0 / 1)",
    "mixed_chunk": "mixed chunk<br>(0 / 1)",
    "deadline_order": "deadline<br>order (0 / 1)",
    "relegate_for_s": "relegate for<br>(seconds)",
    "defended_from_us": "defended<br>from (us)",
    "new_token_permille": "new tokens<br>(1 / 1000)",
    "speculation_window": "spec. window<br>(tokens)",
    "quant_tier": "quantization<br>(tier)",
}

Change = dict[str, Any]


def changes_of(run: ArmRun) -> list[Change]:
    """The run's knob changes, each once, in order; ``run_s`` is when, in seconds on the run's own clock."""
    found: dict[tuple[Any, ...], Change] = {}
    for sample in run.samples:
        for rank in sample.ranks[:1]:
            born_s = sample.t_s - rank.get("uptime_s", 0.0)
            for change in rank.get("changes", ()):
                key = (change["iteration"], change["knob"], change["t_s"])
                found.setdefault(key, {**change, "run_s": born_s + change["t_s"]})
    return sorted(found.values(), key=lambda change: (change["run_s"], change["iteration"]))


def knobs_figure(runs: Sequence[ArmRun], styles: Mapping[str, Mapping[str, str]]) -> go.Figure | None:
    """Every knob over time, a marker per change whose hover text is the reason; None where no arm has knobs."""
    chosen = {arm: run for arm, run in first_lived(runs).items() if any(s.ranks for s in run.samples)}
    seen = (rank["knobs"] for run in chosen.values() for s in run.samples for rank in s.ranks[:1] if rank.get("knobs"))
    knobs = list(dict.fromkeys(knob for values in seen for knob, value in values.items() if _plottable(value)))
    if not knobs:
        return None
    figure = make_subplots(rows=len(knobs), cols=1, shared_xaxes=True, vertical_spacing=0.05)
    for arm, run in chosen.items():
        samples = [(s.t_s, s.ranks[0]["knobs"]) for s in run.samples if s.ranks and s.ranks[0].get("knobs")]
        changes = changes_of(run)
        for row, knob in enumerate(knobs, start=1):
            own = [c for c in changes if c["knob"] == knob and c["run_s"] >= 0 and _plottable(c["new"])]
            level = [(t, float(values[knob])) for t, values in samples if _plottable(values.get(knob))]
            level += [(c["run_s"], float(c["new"])) for c in own]
            level.sort(key=lambda point: point[0])
            figure.add_scatter(
                x=[t for t, _ in level],
                y=[value for _, value in level],
                mode="lines",
                line={**styles[arm], "shape": "hv", "width": 2},
                name=arm,
                legendgroup=arm,
                showlegend=row == 1,
                hoverinfo="skip",
                row=row,
                col=1,
            )
            figure.add_scatter(
                x=[c["run_s"] for c in own],
                y=[float(c["new"]) for c in own],
                mode="markers",
                marker={"color": styles[arm]["color"], "size": 8, "symbol": "circle-open", "line": {"width": 2}},
                hovertext=[_why(arm, c) for c in own],
                hovertemplate="%{hovertext}<extra></extra>",
                name=f"{arm}: change",
                legendgroup=arm,
                showlegend=row == 1 and bool(own),
                row=row,
                col=1,
            )
            figure.update_yaxes(title=KNOB_TITLES.get(knob, knob), rangemode="tozero", row=row, col=1)
    _shade(figure, chosen)
    figure.update_xaxes(range=_span_s(chosen))
    figure.update_xaxes(title="seconds", row=len(knobs), col=1)
    return dressed(figure, 130 + 150 * len(knobs))


def load_figure(runs: Sequence[ArmRun], styles: Mapping[str, Mapping[str, str]]) -> go.Figure | None:
    """Running, waiting and KV use over time, the traffic's phases shaded; None where no server told."""
    chosen = first_lived(runs)
    if not any(s.load for run in chosen.values() for s in run.samples):
        return None
    rows = (("running", "running<br>(requests)"), ("waiting", "waiting<br>(requests)"), ("kv_use", "KV use<br>(share)"))
    figure = make_subplots(rows=3, cols=1, shared_xaxes=True, vertical_spacing=0.05)
    for arm, run in chosen.items():
        for row, (key, title) in enumerate(rows, start=1):
            points = [(s.t_s, s.load[key]) for s in run.samples if key in s.load]
            figure.add_scatter(
                x=[t for t, _ in points],
                y=[value for _, value in points],
                mode="lines",
                line={**styles[arm], "width": 2},
                name=arm,
                legendgroup=arm,
                showlegend=row == 1,
                hovertemplate="%{x:.0f} s: %{y:.3g}<extra>" + escape(arm) + "</extra>",
                row=row,
                col=1,
            )
            figure.update_yaxes(title=title, rangemode="tozero", row=row, col=1)
    _shade(figure, chosen)
    figure.update_xaxes(range=_span_s(chosen))
    figure.update_xaxes(title="seconds", row=3, col=1)
    return dressed(figure, 560)


def phase_spans(records: Sequence[RequestRecord]) -> list[tuple[str, float, float]]:
    """(phase, first arrival, first arrival of the next phase) in order, seconds; the last ends with its own."""
    spans: list[tuple[str, float, float]] = []
    for record in sorted(records, key=lambda record: record.scheduled_s):
        if spans and spans[-1][0] == record.phase:
            spans[-1] = (*spans[-1][:2], record.scheduled_s)
            continue
        if spans:
            spans[-1] = (*spans[-1][:2], record.scheduled_s)
        spans.append((record.phase, record.scheduled_s, record.scheduled_s))
    return spans


def _span_s(chosen: Mapping[str, ArmRun]) -> tuple[float, float]:
    """From the start to the last sample or arrival: the same for every figure, so that they can be read together."""
    return 0.0, max(
        (t for run in chosen.values() for t in (*(s.t_s for s in run.samples), *(r.scheduled_s for r in run.records))),
        default=1.0,
    )


def _shade(figure: go.Figure, chosen: Mapping[str, ArmRun]) -> None:
    spans = phase_spans(next((run.records for run in chosen.values() if run.records), ()))
    if len(spans) < 2:
        return
    for place, (phase, begin, end) in enumerate(spans):
        fill = PHASE_FILLS[place % len(PHASE_FILLS)]
        figure.add_vrect(x0=begin, x1=end, fillcolor=fill, line_width=0, layer="below", row="all", col=1)
        figure.add_annotation(
            x=(begin + end) / 2, y=1.0, yref="paper", yanchor="bottom", text=escape(phase), showarrow=False
        )


def _why(arm: str, change: Change) -> str:
    head = f"{arm} at {change['run_s']:.1f} s: {change['knob']} {change['old']} → {change['new']}"
    return f"{escape(head)}<br>{escape(str(change.get('policy') or ''))}: {escape(str(change['reason']))}"


def _plottable(value: object) -> bool:
    return isinstance(value, bool | int | float)
