"""SlidingServe: chunks planned over two iterations, so that the first leaves the second its time (arXiv 2606.05933).

Moves: the prefill chunk, and turns mixed chunk on. Signal: the slack of the tightest running request, as slack chunks
have it, and predicted step times. As described, a chunk as large as the slack allows (slack chunks) takes time that
would have let the next iteration be larger. So the chunks of this iteration and of the next are chosen together, by a
discrete ternary search over the first of them::

    most  first + second
    with  step(first) <= slack  and  step(first) + step(second) <= slack + itl_s

Where steps grow faster than their tokens, as they do with attention, two alike hold more than a large and a small one.
Of equal sums the one with the larger first chunk is taken. Where no first chunk fits, the least one runs.

Source: the paper's abstract, and what published reviews say of its parts (a technical review of 2026-06-07 among
them). The paper's text was not at hand: that the sum of both chunks is what is searched for is our reading of "jointly
optimizes chunk allocation across two consecutive iterations", and so are the two limits.

Differences: of its four parts this is one, the chunker. Its latency predictor is the project's here. Its sorter
(protected requests, urgency, work left) and its selection of requests by dynamic programming, where first tokens would
be late, are not here: requests keep the server's order. Only one quality class exists. Both chunks are taken for tokens
of the prompt whose chunk comes next, and together for no more than what waits, as far as one chunk lets it be known.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bench.rivals.shapes import NOTHING, prompt_shape
from bench.rivals.slack_chunks import why_idle
from roofline_policies.contract.decision import Knob, Range
from roofline_policies.contract.view import SchedulerView
from roofline_policies.errors import FieldError
from roofline_policies.model.batch import BatchShape
from roofline_policies.policies.base import Proposal
from roofline_policies.policies.shapes import running_shape
from roofline_policies.steps.times import StepTimes


class _Window(NamedTuple):
    """What both iterations have in common.

    now, next: the running requests in the one and in the other. rows: decode rows inside a chunk; 0: steps are
    exclusive, and the decode step after a chunk is part of its iteration.
    """

    view: SchedulerView
    times: StepTimes
    now: BatchShape
    next: BatchShape
    rows: int

    @classmethod
    def of(cls, view: SchedulerView, times: StepTimes, mixed: bool) -> _Window:
        now = running_shape(view)
        each = now.requests  # of two alike steps the second attends to one token more per request
        grown = now._replace(
            context_tokens=now.context_tokens + each, pairs=now.pairs + each, causal_pairs=now.causal_pairs + each
        )
        return cls(view, times, now, grown, now.new_tokens if mixed else 0)

    def prompt_tokens(self, chunk: int) -> int:
        """Decode rows come out of the chunk."""
        return max(1, chunk - self.rows)

    def first_s(self, chunk: int) -> float:
        """Seconds until each running request has its next token."""
        return self._seconds(prompt_shape(self.view, self.prompt_tokens(chunk)), self.now)

    def second_s(self, chunk: int, first: int) -> float:
        """Seconds from there to the token after it. first: the chunk before."""
        return self._seconds(prompt_shape(self.view, self.prompt_tokens(chunk), self.prompt_tokens(first)), self.next)

    def _seconds(self, prompt: BatchShape, running: BatchShape) -> float:
        if self.rows:
            return self.times.step_s(prefill=prompt, decode=running, graph=False)
        apart_s = self.times.step_s(prefill=NOTHING, decode=running, graph=True)
        return apart_s + self.times.step_s(prefill=prompt, decode=NOTHING, graph=False)


@dataclass(frozen=True, slots=True)
class SlidingServe:
    """Sets prefill_chunk_tokens to the first of two chunks that are planned together.

    min_chunk_tokens: chunks are not cut below this, however late a request is. mix: have decode rows ride along.

    Raises:
        FieldError: a parameter outside its range.
    """

    min_chunk_tokens: int = 128
    mix: bool = True

    def __post_init__(self) -> None:
        if self.min_chunk_tokens < 1:
            raise FieldError("min_chunk_tokens", self.min_chunk_tokens, "1 token or more")

    def idle_reason(self, view: SchedulerView) -> str | None:
        """Why nothing can be decided on this server, None where it can."""
        return why_idle(view)

    def propose(self, view: SchedulerView) -> tuple[Proposal, ...]:
        """Targets for prefill_chunk_tokens and mixed_chunk; nothing where ``idle_reason`` says why."""
        limits, times, slack_s = view.bounds.ranges.get(Knob.PREFILL_CHUNK_TOKENS), view.predictor, view.queue.slack_s
        itl_s = view.slo.itl_s
        if limits is None or times is None or itl_s is None:
            return ()
        mixable = self.mix and view.bounds.movable(Knob.MIXED_CHUNK)
        proposals: tuple[Proposal, ...] = ()
        if mixable:
            proposals = (Proposal("SlidingServe", Knob.MIXED_CHUNK, True, "decode rows ride along with every chunk"),)
        if slack_s is None:  # nothing runs, or no first token has come yet; and always where drafts are verified
            reason = "no running request has a due time"
            return (*proposals, Proposal("SlidingServe", Knob.PREFILL_CHUNK_TOKENS, limits.high, reason))
        window = _Window.of(view, times, mixable or view.knobs.mixed_chunk)
        first, second = self._chunks(window, self._sizes(limits, window.rows), slack_s, itl_s)
        reason = (
            f"{first} tokens now and {second} next: {slack_s * 1e3:.0f} ms to the next token of the tightest of "
            f"{view.queue.running} running requests, then {itl_s * 1e3:.0f} ms"
        )
        return (*proposals, Proposal("SlidingServe", Knob.PREFILL_CHUNK_TOKENS, first, reason))

    def _sizes(self, limits: Range, rows: int) -> list[int]:
        least = max(limits.low, self.min_chunk_tokens + rows)
        return [*range(-(-least // limits.step) * limits.step, limits.high, limits.step), limits.high]

    @staticmethod
    def _chunks(window: _Window, sizes: Sequence[int], slack_s: float, itl_s: float) -> tuple[int, int]:
        """Both chunks, 0 for a second one that does not fit. Sums are taken to rise and then fall with the first."""
        waiting = window.view.queue.next_prefill_tokens
        # Prompt tokens are counted up to a whole chunk: as many or more may be behind it.
        most = waiting if 0 < waiting < window.prompt_tokens(sizes[-1]) else 2 * sizes[-1]

        def second(first: int) -> int:
            left_s = slack_s + itl_s - window.first_s(first)
            fitting = bisect_right(sizes, left_s, key=lambda chunk: window.second_s(chunk, first))
            return sizes[fitting - 1] if fitting else 0

        def tokens(place: int) -> int:
            first = sizes[place]
            later = second(first)
            return min(most, window.prompt_tokens(first) + (window.prompt_tokens(later) if later else 0))

        low, high = 0, max(0, bisect_right(sizes, slack_s, key=window.first_s) - 1)
        while high - low > 2:
            third = (high - low) // 3
            if tokens(low + third) <= tokens(high - third):
                low += third + 1
            else:
                high -= third + 1
        place = max(range(low, high + 1), key=lambda place: (tokens(place), place))
        return sizes[place], second(sizes[place])
