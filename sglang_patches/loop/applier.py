"""What every rank does: apply the agreed setting, and keep its waiting queue in the agreed order."""

from __future__ import annotations

import logging
from collections.abc import Callable

from roofline_policies.slo.objectives import Objectives
from roofline_policies.steps.times import StepTimes
from sglang_patches.loop.actuator import Actuator
from sglang_patches.loop.guard import contained, timed
from sglang_patches.needs.objects import Batch, Request, Scheduler
from sglang_patches.requests.promises import Promises
from sglang_patches.requests.waiting import Waiting
from sglang_patches.server.agree import KnobsUpdate

logger = logging.getLogger(__name__)


def only_log(reason: str, error: BaseException | None = None) -> None:
    """What a rank that does not decide does with a failure: it says so, and the deciding rank's setting holds."""
    logger.error(f"Roofline: {reason}. Requests go on.", exc_info=error)


class Applier:
    """Applies what the deciding rank broadcasts to one scheduler.

    times: predicts what a prompt costs, where this rank decides. fall_back: is told why a method failed.
    retractions: requests that went back to the waiting queue so far. spent_s: see Guarded.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        objectives: Objectives,
        times: StepTimes | None = None,
        fall_back: Callable[[str, BaseException | None], None] = only_log,
    ) -> None:
        self.actuator = Actuator(scheduler)
        self.promises = Promises(objectives)
        self.waiting = Waiting(scheduler, self.promises, times)
        self.retractions = 0
        self.spent_s = 0.0
        self._fall_back = fall_back

    def fall_back(self, reason: str, error: BaseException | None = None) -> None:
        """Tell why a method failed."""
        self._fall_back(reason, error)

    @contained
    def apply(self, update: KnobsUpdate) -> None:
        """Adopt a setting, the time, and the places of waiting requests, from this iteration on."""
        self.waiting.clock_s = update.clock_s
        self.waiting.answer_s = update.answer_s
        self.waiting.order(update.knobs.deadline_order)
        self.waiting.move(update.moved)
        self.actuator.apply(update.knobs)

    @contained
    def came(self, request: Request, *, retracted: bool) -> None:
        """Note that a request joined the waiting queue, or, retracted, came back to it."""
        self.retractions += retracted
        self.waiting.came(request, retracted=retracted)

    @contained
    def settle(self) -> None:
        """Order requests that joined the waiting queue unseen, before a pass lets any of it in."""
        self.waiting.settle()

    @contained
    def chunk_limit(self, request: Request, budget: int, page: int) -> int | None:
        """Most tokens of a chunk for the prompt part-way through its chunks, None for all of it."""
        return self.waiting.chunk_limit(request, budget, page)

    @timed
    @contained
    def allocatable(self, allowed: int, running: int) -> int:
        """How many requests may enter beside ``running``, of those that SGLang allows."""
        return self.actuator.allocatable(allowed, running)

    @timed
    @contained
    def size_chunk(self, running_batch: Batch) -> None:
        """Set the prefill chunk of this pass, and whether decode rows share it."""
        self.actuator.apply_chunk(running_batch)

    @timed
    @contained
    def defers(self, running_batch: Batch) -> bool:
        """Whether no prompt enters in this pass."""
        return self.actuator.defers(running_batch)
