"""AnswerRoom: for how much of the running requests' answers room is kept while others enter."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log

from roofline_policies.contract.decision import Knob
from roofline_policies.contract.view import SchedulerView
from roofline_policies.model.batch import BatchShape
from roofline_policies.policies.base import Proposal
from roofline_policies.policies.looks import looks
from roofline_policies.policies.shapes import NOT_PREDICTED, running_shape
from roofline_policies.slo.capacity import Capacity, Resource
from roofline_policies.steps.correction import CorrectedSteps

LOOK_EVERY = 16
"""Decisions between two looks, in the mean: the answers' mean length changes over tens of them."""


@dataclass(frozen=True, slots=True)
class AnswerRoom:
    """Keeps as much room for running answers as costs least: a place that stays empty, or a request computed again.

    While requests wait, whatever room a request leaves behind is taken at once, but for the ``room`` that is kept. Each
    step fills a token per running request. With answers of ``L`` tokens in the mean and ends that come at random, none
    ends before the room has run out with probability ``exp(-room / L)``, and then one is retracted. So per second,
    with ``N`` requests in steps of ``s`` seconds and ``M`` tokens of memory:

        lost to retractions   N / (L s) x exp(-room / L) x seconds that one costs
        lost to empty places  room / M x share of a step that does not grow with the batch

    The sum is least at ``room = L ln(N M seconds / (share L^2 s))``. A retraction costs the prompt and the answer so
    far, computed again, and where running requests have targets between tokens the whole request, since it waits for a
    place.

    The server itself keeps the next prompt's whole answer free besides, as long as its client lets it be.
    """

    def idle_reason(self, view: SchedulerView) -> str | None:
        """Why nothing is decided on this server, None where it is."""
        if not view.bounds.movable(Knob.NEW_TOKEN_PERMILLE):
            return view.bounds.immovable[Knob.NEW_TOKEN_PERMILLE]
        return NOT_PREDICTED if view.steps is None else None

    def propose(self, view: SchedulerView) -> tuple[Proposal, ...]:
        """A target for new_token_permille; nothing while nobody waits, or while the length of answers is not known."""
        queue, steps = view.queue, view.steps
        pool = next((one for one in queue.capacities if one.resource is Resource.KV_TOKENS), None)
        if not looks(view.decisions, LOOK_EVERY) or not view.bounds.movable(Knob.NEW_TOKEN_PERMILLE):
            return ()
        if steps is None or pool is None or queue.demand is None:
            return ()
        if not (queue.waiting and queue.running and queue.unwritten_tokens):
            return ()
        room = self._room_tokens(view, steps, pool, queue.demand.output_tokens)
        kept = max(0.0, room - queue.next_unwritten_tokens) / queue.unwritten_tokens
        step = view.bounds.ranges[Knob.NEW_TOKEN_PERMILLE].step
        value = min(1000, max(1, ceil(kept * 1000 / step)) * step)
        reason = (
            f"room for {room:.0f} tokens costs least with answers of {queue.demand.output_tokens:.0f}; the next prompt "
            f"keeps {queue.next_unwritten_tokens} of them free"
        )
        return (Proposal("AnswerRoom", Knob.NEW_TOKEN_PERMILLE, value, reason),)

    @staticmethod
    def _room_tokens(view: SchedulerView, steps: CorrectedSteps, pool: Capacity, answer_tokens: float) -> float:
        """The room that costs least, tokens; see the class."""
        queue = view.queue
        running, decode = queue.running, running_shape(view)
        step_s = steps.step_s(decode=decode, graph=True)
        double_s = steps.step_s(decode=BatchShape(*(2 * part for part in decode)), graph=True)
        share = max(0.01, 2.0 - double_s / step_s)  # of the step, what a batch twice as large does not take again
        again = max(1, decode.context_tokens // running)
        costs_s = steps.step_s(prefill=BatchShape.of([(again, 0)]))
        if queue.gap_s is not None or queue.due_s is not None:
            costs_s += answer_tokens * step_s / running
        return answer_tokens * max(0.0, log(running * pool.size * costs_s / (share * answer_tokens**2 * step_s)))
