"""Defence: which targets between tokens are kept while not all requests can be served in time."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import NamedTuple

from roofline_policies.contract.decision import Knob
from roofline_policies.contract.view import SchedulerView
from roofline_policies.errors import FieldError
from roofline_policies.model.batch import BatchShape
from roofline_policies.policies.base import Proposal
from roofline_policies.policies.looks import looks
from roofline_policies.policies.room import LEAST_CHUNK_TOKENS
from roofline_policies.policies.shapes import NOT_PREDICTED
from roofline_policies.slo.capacity import more_requests
from roofline_policies.slo.demand import Demand
from roofline_policies.steps.correction import CorrectedSteps

EMPTY = BatchShape()

LOOK_EVERY = 32
"""Decisions between two looks, in the mean: who is defended changes once in seconds, and a look costs up to
MOST_GUESSES + 3 predictions of about 20 us for each target and kind of step."""

MOST_GUESSES = 4
"""Predictions by which the largest batch is searched between one request and the cap. Steps are nearly a straight line
in the batch, so the second guess is nearly always close enough."""

CLOSE_ENOUGH = 0.95
"""Share of its time from which the batch is large enough. A judgement, as exact as the steps are predicted."""

CALM = 0.5
"""Share of what can be served without the tightest target under which prompts keep up by far, and nobody is given up
whatever is predicted. A judgement: higher gives up less, and lets more prompts be late where targets are tight."""

NO_TARGET_S = 2.0
"""What requests without a target between tokens are given between two, seconds: as PrefillDeferral.longest_stall_s."""


class _Load(NamedTuple):
    """What a steady stream of requests makes of each step. most: requests at a time that the server lets run."""

    steps: CorrectedSteps
    demand: Demand
    most: float
    most_tokens: int

    def chunk(self, rows: float) -> float:
        """Prompt tokens between two tokens of so many running requests that as many come as end: an answer of L tokens
        lasts for L gaps, so ``rows / L`` requests come in each."""
        return rows * self.demand.prompt_tokens / self.demand.output_tokens

    def gap_s(self, rows: float, mixed: bool, tokens: float) -> tuple[float, float]:
        """Seconds between two tokens of so many requests with so many prompt tokens in between, as expected and as they
        are hardly to be exceeded."""
        demand, steps, whole = self.demand, self.steps, max(1, int(tokens))
        count = max(1, round(tokens / demand.prompt_tokens))
        # The last chunk of a prompt is the longest, and where that does not fit, all others wait for it.
        before = int(max(demand.cached_tokens, demand.prefix_tokens - whole / count))
        prefill, decode = _alike(count, whole, before), _running(max(1, round(rows)), self._context)
        if mixed:
            seconds = steps.step_s(prefill=prefill, decode=decode)
            return seconds, seconds * steps.margin(prefill=True, decode=True, rows=whole + decode.new_tokens)
        first_s, then_s = steps.step_s(prefill=prefill), steps.step_s(decode=decode, graph=True)
        slow_s = first_s * steps.margin(prefill=True, decode=False, rows=whole)
        return first_s + then_s, slow_s + then_s * steps.margin(prefill=False, decode=True, rows=decode.new_tokens)

    def requests_per_s(self, limit_s: float, mixed: bool) -> float:
        """Requests per second that can be served for ever with gaps of ``limit_s`` at most; 0 where not even the least
        chunk fits beside one request.

        With N at a time, ``N / L`` of them come in each gap, so ``N / (L x gap)`` are served a second: most with the
        largest N whose gaps, the prompts of those that come included, are as long as they may be.
        """
        least = LEAST_CHUNK_TOKENS

        def slow_s(rows: float) -> float:
            return self.gap_s(rows, mixed, max(least, self.chunk(rows)))[1]

        low, low_s = 1.0, slow_s(1.0)
        if low_s > limit_s:
            return 0.0
        room = self.most_tokens if not mixed else self.most_tokens - self.most
        high = max(1.0, min(self.most, max(least, room) / self.chunk(1.0)))
        high_s = slow_s(high)
        if high_s <= limit_s:
            low, low_s = high, high_s
        for _ in range(MOST_GUESSES):
            if low_s >= CLOSE_ENOUGH * limit_s or high - low < 1.0:
                break
            # Times grow with the batch and ever faster: the chord lies above them, so where it meets the limit fits.
            guess = low + (high - low) * (limit_s - low_s) / (high_s - low_s)
            seconds = slow_s(guess)
            if seconds > limit_s:
                high, high_s = guess, seconds
            else:
                low, low_s = guess, seconds
        tokens = self.chunk(low)
        gap_s = self.gap_s(low, mixed, max(least, tokens))[0]
        if tokens < least:  # only some gaps have a chunk in them
            alone_s = self.steps.step_s(decode=_running(max(1, round(low)), self._context), graph=True)
            gap_s = alone_s + (gap_s - alone_s) * tokens / least
        return low / (self.demand.output_tokens * gap_s)

    @property
    def _context(self) -> float:
        demand = self.demand
        return demand.cached_tokens + demand.prompt_tokens + demand.output_tokens / 2.0


DRAFTS = "what targets cost is not worked out where steps of drafts yield several tokens"


@dataclass(frozen=True, slots=True)
class Defence:
    """Gives the tightest targets between tokens up where keeping them costs more than it brings, and takes them back.

    What is maximised is the goodput of what is asked for: the sum of the weights of requests that meet their SLO, per
    second. With targets from ``t`` on defended, gaps are ``t`` at most, and ``served(t)`` requests a second can be
    served so for ever, of those that come::

        goodput(t) = weight of requests with a target of t or more x min(1, served(t) / requests that come)

    What comes is as in ``QueueState.demand``; whom it is worth to defend depends on nothing else, so it does not change
    with what was chosen. While prompts keep up, to defend costs nothing, and nobody is given up.

    switch: share by which another choice must be better to be taken.

    Raises:
        FieldError: a parameter outside its range.
    """

    switch: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.switch < 1:
            raise FieldError("switch", self.switch, "a share from 0 to below 1")

    def idle_reason(self, view: SchedulerView) -> str | None:
        """Why nothing is decided on this server, None where it is."""
        if not view.bounds.movable(Knob.DEFENDED_FROM_US):
            return view.bounds.immovable[Knob.DEFENDED_FROM_US]
        if _drafts(view):
            return DRAFTS
        return NOT_PREDICTED if view.steps is None else None

    def propose(self, view: SchedulerView) -> tuple[Proposal, ...]:
        """A target for defended_from_us, or nothing."""
        queue, demand, now = view.queue, view.queue.demand, view.knobs.defended_from_us
        if demand is None or view.steps is None or _drafts(view):
            return ()
        if not looks(view.decisions, LOOK_EVERY) or not view.bounds.movable(Knob.DEFENDED_FROM_US):
            return ()
        if not now and not (queue.relegated or (queue.prompt_due_s is not None and queue.prompt_due_s < 0)):
            return ()
        targets = demand.targets
        if len(targets) < 2:
            return (_defend(0, "all requests have the same target between tokens"),) if now else ()
        load = _Load(view.steps, demand, self._most_running(view), self._most_tokens(view))
        kinds = {view.knobs.mixed_chunk} | ({True, False} if view.bounds.movable(Knob.MIXED_CHUNK) else set())
        served = [max(load.requests_per_s(min(one.itl_s, NO_TARGET_S), kind) for kind in kinds) for one in targets]
        kept = [sum(one.share for one in targets[place:]) for place in range(len(targets))]
        worth = [share * min(1.0, rate / demand.requests_per_s) for share, rate in zip(kept, served, strict=True)]
        current = next((place for place, one in enumerate(targets) if _us(one.itl_s) >= now), len(targets) - 1)
        best = max(range(len(targets)), key=lambda place: (worth[place], -place))
        if demand.requests_per_s <= CALM * max(served) * (1.0 - self.switch * bool(now)):
            best = 0
        elif worth[best] <= (1.0 + self.switch) * worth[current]:
            best = current
        wanted = _us(targets[best].itl_s) if best else 0
        if wanted == now:
            return ()
        return (_defend(wanted, _reason(demand, served, worth, current, best)),)

    @staticmethod
    def _most_running(view: SchedulerView) -> float:
        """Requests at a time that are let in, and have room."""
        limits = view.bounds.ranges.get(Knob.MAX_RUNNING_REQUESTS)
        cap = view.knobs.max_running_requests if limits is None else limits.high
        return max(1.0, min(cap, view.queue.running + more_requests(view.queue.capacities)))

    @staticmethod
    def _most_tokens(view: SchedulerView) -> int:
        limits = view.bounds.ranges.get(Knob.PREFILL_CHUNK_TOKENS)
        return limits.high if limits is not None else view.knobs.prefill_chunk_tokens or 1 << 20


def _us(target_s: float) -> int:
    """A target as the knob has it, rounded down, so that who has it is defended."""
    return 10**9 if target_s == inf else int(target_s * 1e6)


def _alike(count: int, tokens: int, before: int) -> BatchShape:
    """A chunk of so many prompts alike."""
    share = tokens / count
    pairs = int(tokens * (before + share))
    causal = int(tokens * (before + (share + 1) / 2.0))
    return BatchShape(count, tokens, count * before + tokens, pairs, causal, count)


def _running(rows: int, context_tokens: float) -> BatchShape:
    """A decode step of so many requests with this mean context."""
    context = max(rows, int(rows * context_tokens))
    return BatchShape(rows, rows, context, context, context, rows)


def _defend(value: int, reason: str) -> Proposal:
    return Proposal("Defence", Knob.DEFENDED_FROM_US, value, reason)


def _reason(demand: Demand, served: list[float], worth: list[float], current: int, best: int) -> str:
    def says(place: int) -> str:
        target_s = demand.targets[place].itl_s
        what = "no target between tokens kept" if target_s == inf else f"tokens within {target_s * 1e3:.0f} ms"
        return f"with {what} {served[place]:.1f} can be served, {worth[place]:.0%} of what is asked for in time"

    return f"{demand.requests_per_s:.1f} requests come a second; {says(best)}; {says(current)}"


def _drafts(view: SchedulerView) -> bool:
    """Whether the server may draft, now or later: whom it gives up would stay so when the number of drafts moves."""
    return view.rows_per_request > 1 or view.knobs.speculation_window is not None
