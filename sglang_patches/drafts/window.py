"""How many drafts a step of one scheduler verifies per request: what it was made ready for, and what holds now.

SGLang's ``AdaptiveController`` keeps what is needed for each number of drafts (attention backends, captured graphs) and
asks a policy before each decode step which of them is next. Where the knob speculation_window moves, that policy is a
``Window``: it answers with what was agreed by all ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

from sglang_patches.needs.drafting import DraftControl, DraftingWorker
from sglang_patches.needs.objects import Scheduler, ServerArgs

PLAN = "_roofline_drafts"
"""Attribute of ServerArgs that carries the plan into the scheduler processes."""


@dataclass(frozen=True, slots=True)
class DraftPlan:
    """What the launch came to.

    windows: numbers of drafts per step that the server is made ready for, ascending; empty where the number cannot be
    moved. reason: why it cannot, None where it can.
    """

    windows: tuple[int, ...] = ()
    reason: str | None = None


def plan_of(server_args: ServerArgs) -> DraftPlan | None:
    """The plan of a server, None where nothing was planned: it drafts nothing, or has no policy."""
    plan: DraftPlan | None = getattr(server_args, PLAN, None)
    return plan


class Window:
    """The number of drafts per step, as SGLang's ``AdaptiveSpecPolicy``.

    windows: those that the worker has what it needs for, ascending. launched: the one at the start.
    steps: of the next decode step; one of ``windows``. All ranks set it in the same iteration.
    """

    def __init__(self, windows: Sequence[int], launched: int) -> None:
        self.windows = tuple(windows)
        self.launched = self.steps = launched
        self._captured: list[int] | None = None

    @property
    def candidate_steps(self) -> list[int]:
        """All of ``windows``."""
        return list(self.windows)

    def set_cuda_graph_bs(self, cuda_graph_bs: list[int] | None) -> None:
        """Take the batch sizes that graphs are captured for."""
        self._captured = sorted(cuda_graph_bs) if cuda_graph_bs else None

    def cuda_graph_bs_for_step(self, step: int) -> list[int] | None:
        """Any number of drafts can meet any batch, so each is captured for all sizes."""
        return self._captured

    def get_steps_for_batch(self, batch_size: int) -> int:
        """What holds now, whatever the batch."""
        return self.steps

    def on_verify_complete(self, num_correct_drafts_per_req: list[int], batch_size: int) -> int | None:
        """Nothing changes with a result: a decision does that."""
        return None


def window_of(scheduler: Scheduler) -> Window | None:
    """What moves the number of drafts of a scheduler that was built; None where nothing does.

    The first call puts it in place of the policy by which SGLang would choose.
    """
    controller = _controller(scheduler) if _drafts(scheduler) else None
    if controller is None:
        return None
    if not isinstance(controller.params, Window):
        plan = plan_of(scheduler.server_args)
        if plan is None or not plan.windows:
            return None  # SGLang's own policy, as it was launched
        controller.params = Window(controller.candidate_steps, int(controller.worker.speculative_num_steps))
    window: Window = controller.params
    return window


def drafts_of_step(scheduler: Scheduler) -> Callable[[int], int] | None:
    """Tells how many drafts per request the next decode step of so many requests verifies; None: nothing drafts."""
    if not _drafts(scheduler):
        return None
    controller = _controller(scheduler)
    if controller is not None:
        return lambda requests: int(controller.params.get_steps_for_batch(requests))
    rows = launched_rows(scheduler)
    return lambda requests: rows - 1


def launched_rows(scheduler: Scheduler) -> int:
    """Rows that a decode step ran per request at launch: one, or the tokens that a speculative server verifies."""
    if not _drafts(scheduler):
        return 1
    return int(scheduler.server_args.resolved_dict().get("speculative_num_draft_tokens") or 1)


def reason_not_to_move(scheduler: Scheduler) -> str | None:
    """Why the number of drafts per step cannot be moved, None where it can."""
    if not _drafts(scheduler):
        return "nothing drafts (--speculative-algorithm)"
    if window_of(scheduler) is not None:
        return None
    plan = plan_of(scheduler.server_args)
    reason = None if plan is None else plan.reason
    return reason or "the number of drafts was fixed at launch (--speculative-num-steps)"


def _controller(scheduler: Scheduler) -> DraftControl | None:
    """What switches its worker; None where it has none."""
    worker = cast(DraftingWorker, scheduler.model_worker)
    return worker.adaptive_controller if hasattr(worker, "adaptive_controller") else None


def _drafts(scheduler: Scheduler) -> bool:
    return not scheduler.spec_algorithm.is_none()
