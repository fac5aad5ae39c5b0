"""What people are shown of a server's drafts: how many there are now, what is accepted of them, and what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from roofline_policies.contract.decision import Knob
from roofline_policies.contract.view import SchedulerView
from roofline_policies.control.controller import Controller
from roofline_policies.policies.shapes import context_before
from roofline_policies.steps.speculation import NOTHING, verify_shape


class DraftTotals:
    """Counts over the life of a server.

    launched: drafts per step that it was launched with. window: of the last decode step.
    steps: that verified drafts. drafted, accepted: drafts verified, and those of them that were correct. by_window:
    steps that ran with each number of drafts per request, none included.
    """

    def __init__(self, launched: int) -> None:
        self.launched = self.window = launched
        self.steps = self.drafted = self.accepted = 0
        self.by_window: dict[int, int] = {}

    def add(self, window: int, accepted: Sequence[int]) -> None:
        """Count one decode step of a server that drafts. accepted: of each request."""
        self.window = window
        self.by_window[window] = self.by_window.get(window, 0) + 1
        if window:
            self.steps += 1
            self.drafted += window * len(accepted)
            self.accepted += sum(accepted)


def prices(view: SchedulerView) -> dict[int, float]:
    """Predicted seconds of the next decode step for each number of drafts that it could have, corrected by the steps
    that ran; empty where nothing decodes or nothing is predicted."""
    running, steps, knob = view.queue.running, view.steps, Knob.SPECULATION_WINDOW
    if not running or steps is None:
        return {}
    moves = knob in view.bounds.ranges
    windows = view.bounds.values(knob) if moves else (view.rows_per_request - 1,)
    context = context_before(view)
    return {
        one: steps.step_s(prefill=NOTHING, decode=verify_shape(running, context, one), graph=True) for one in windows
    }


def draft_s(priced: dict[int, float], window: int) -> float | None:
    """What one draft per request adds to a step of ``window`` of them, in the mean; None where it is not known."""
    if not window or 0 not in priced or window not in priced:
        return None
    return (priced[window] - priced[0]) / window


def window_now(view: SchedulerView, totals: DraftTotals) -> int:
    """Drafts per request of the next decode step, or of the last where another than us moves them."""
    window = view.knobs.speculation_window
    return totals.window if window is None else window


def said(view: SchedulerView, totals: DraftTotals) -> str:
    """For the log: how many drafts there are now, what is accepted at each position, and what one costs."""
    window = window_now(view, totals)
    parts = [f"drafts: {window} of {totals.launched} at launch"]
    if view.acceptance:
        parts.append(f"{'/'.join(f'{share:.0%}' for share in view.acceptance)} accepted by position")
    each_s = draft_s(prices(view), window)
    if each_s is not None:
        parts.append(f"{each_s * 1e3:.2f} ms each")
    return ", ".join(parts)


def shown(controller: Controller, view: SchedulerView, totals: DraftTotals) -> dict[str, Any]:
    """A section of the status page, ready for JSON; docs/metrics.md has its keys."""
    knob, acceptance = Knob.SPECULATION_WINDOW, controller.acceptance
    window, priced = window_now(view, totals), prices(view)
    return {
        "window": window,
        "launched": totals.launched,
        "windows": list(controller.bounds.values(knob)) if knob in controller.bounds.ranges else None,
        "acceptance": list(acceptance.of_mix()),
        "acceptance_by_class": {
            str(name): list(acceptance.of_class(name)) for name in sorted(acceptance.classes, key=str)
        },
        "tokens_per_step": view.tokens_per_request,
        "step_s": {str(one): seconds for one, seconds in priced.items()},
        "draft_s": draft_s(priced, window),
        "steps": totals.steps,
        "drafted": totals.drafted,
        "accepted": totals.accepted,
        "steps_by_window": {str(one): count for one, count in sorted(totals.by_window.items())},
    }
