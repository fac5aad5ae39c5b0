"""Drafts of speculative decoding in a report: what was verified for nothing, and what was accepted over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from bench.report.figures import dressed, first_lived
from bench.report.records import ArmRun


def draft_metrics(run: ArmRun, output_tokens: int) -> dict[str, float | int | None]:
    """Drafts that were verified, and those of them that were accepted; per output token, and as shares.

    The price of a token charges the rejected ones by the time that they took: it is the machine's time over the tokens
    that came out. All None where nothing drafted, or nobody told.
    """
    counted = run.drafts or _told(run)
    if counted is None:
        names = ("drafts_issued", "drafts_accepted", "draft_acceptance", "drafts_rejected_per_token")
        return dict.fromkeys(names)
    issued, accepted = counted
    return {
        "drafts_issued": issued,
        "drafts_accepted": accepted,
        "draft_acceptance": accepted / issued if issued else None,
        "drafts_rejected_per_token": (issued - accepted) / output_tokens if output_tokens else None,
    }


def _pages(run: ArmRun) -> list[tuple[float, Mapping[str, Any]]]:
    """When, and what the server's page said of drafts; those samples that have it."""
    pages = [(sample.t_s, sample.ranks[0].get("drafts")) for sample in run.samples if sample.ranks]
    return [(t_s, page) for t_s, page in pages if page]


def _told(run: ArmRun) -> tuple[int, int] | None:
    """By the server's own page, between its first and last sample; None where it says nothing of drafts."""
    pages = _pages(run)
    if not pages:
        return None
    first, last = pages[0][1], pages[-1][1]
    return last["drafted"] - first["drafted"], last["accepted"] - first["accepted"]


def drafts_figure(runs: Sequence[ArmRun], styles: Mapping[str, Mapping[str, str]]) -> go.Figure | None:
    """Drafts per step, acceptance by position and what a draft takes, over time; None where no server told."""
    chosen = {arm: run for arm, run in first_lived(runs).items() if _told(run) is not None}
    if not chosen:
        return None
    figure = make_subplots(rows=3, cols=1, shared_xaxes=True, vertical_spacing=0.06)
    for arm, run in chosen.items():
        pages = _pages(run)
        _line(figure, 1, arm, styles[arm], [(t, page["window"]) for t, page in pages], shape="hv")
        positions = max((len(page["acceptance"]) for _, page in pages), default=0)
        for place in range(positions):
            points = [(t, page["acceptance"][place]) for t, page in pages if place < len(page["acceptance"])]
            _line(figure, 2, arm, styles[arm], points, label=f", position {place + 1}", opacity=1.0 / (1.0 + place / 2))
        dear = [(t, page["draft_s"] * 1e3) for t, page in pages if page.get("draft_s") is not None]
        _line(figure, 3, arm, styles[arm], dear)
    for row, title in enumerate(("drafts<br>per step", "accepted<br>(share)", "a draft takes<br>(ms)"), start=1):
        figure.update_yaxes(title=title, rangemode="tozero", row=row, col=1)
    figure.update_xaxes(title="seconds", row=3, col=1)
    return dressed(figure, 560)


def _line(
    figure: go.Figure,
    row: int,
    arm: str,
    style: Mapping[str, str],
    points: Sequence[tuple[float, Any]],
    *,
    shape: str = "linear",
    label: str = "",
    opacity: float = 1.0,
) -> None:
    figure.add_scatter(
        x=[t for t, _ in points], y=[value for _, value in points], mode="lines", opacity=opacity,
        line={**style, "width": 2, "shape": shape}, name=arm, legendgroup=arm, showlegend=row == 1,
        hovertemplate="%{x:.0f} s: %{y:.3g}<extra>" + arm + label + "</extra>", row=row, col=1,
    )  # fmt: skip
