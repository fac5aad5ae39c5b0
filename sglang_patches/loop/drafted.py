"""The drafts of one scheduler, from the results of its verify steps to the controller and to people."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from roofline_policies.contract.view import QueueState
from roofline_policies.control.controller import Controller
from sglang_patches.drafts.window import drafts_of_step, launched_rows
from sglang_patches.needs.objects import Batch, Scheduler, StepResult
from sglang_patches.observe.drafts import DraftTotals, shown
from sglang_patches.observe.observer import Launch
from sglang_patches.requests.drafts import DraftWatch


class Drafted:
    """Follows what is drafted and accepted; where nothing drafts it says that a step yields one token.

    of_step: tells how many drafts per request the next decode step of so many requests verifies; None: nothing drafts.
    rows: that a decode step ran per request at launch. totals: what is counted, None where nothing drafts.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self.of_step: Callable[[int], int] | None = drafts_of_step(scheduler)
        self.rows = launched_rows(scheduler)
        self.totals = None if self.of_step is None else DraftTotals(self.rows - 1)
        self._watch = DraftWatch()

    @property
    def tokens(self) -> float:
        """What a decode step yields per request lately."""
        return self._watch.tokens

    def finished(
        self, controller: Controller, launch: Launch | None, batch: Batch, result: StepResult, now_s: float
    ) -> float:
        """Note a result that was processed, and tell the controller; the tokens that it gave each request, in the mean.

        launch: what the observer noted of the step, None where it was not followed.
        """
        if self.totals is None or launch is None or launch.window is None:
            return 1.0
        accepted, classes = self._watch.finished(batch, result)
        self.totals.add(launch.window, accepted)
        if not accepted:
            return 1.0
        if launch.window:
            controller.observe_drafts(now_s, launch.window, accepted, classes)
        return 1.0 + sum(accepted) / len(accepted)

    def shown(self, controller: Controller, now_s: float, queue: QueueState) -> dict[str, Any] | None:
        """The section of the status page, None where nothing drafts."""
        return None if self.totals is None else shown(controller, controller.view(now_s, queue), self.totals)
