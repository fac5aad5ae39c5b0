"""Slack-sized chunks: prefill as much as no running request notices (Niyama, arXiv 2503.22562; QoServe after it).

Moves: the prefill chunk, and turns mixed chunk on, since the paper's steps always hold the decode rows. Signal: the
slack of the tightest running request, ``arrival + ttft_s + itl_s * tokens so far - now``, and predicted step times. As
described::

    chunk = the largest whose predicted step takes no longer than the slack

A request that is ahead of its due times lends its lead to prefill, so chunks vary far more than a target between two
tokens alone would let them. Where no chunk fits, the least one runs all the same: prompts are not starved.

Differences: the papers predict with a random forest trained on profiles, here it is the project's predictor. Only one
quality class exists, and requests keep the server's order: the papers' priorities, relegation of requests and
per-request targets are not here. Where mixing cannot be had, the running requests get their token from the decode step
after the chunk, so both must fit. All of a chunk is taken for tokens of the prompt whose chunk comes next.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from bench.rivals.shapes import NOTHING, prompt_shape
from roofline_policies.contract.decision import Knob, Range
from roofline_policies.contract.view import SchedulerView
from roofline_policies.errors import FieldError
from roofline_policies.policies.base import Proposal
from roofline_policies.policies.shapes import NOT_PREDICTED, running_shape
from roofline_policies.steps.times import StepTimes

NO_TARGET = "nothing is ever due here (slo.itl_s is null)"


def why_idle(view: SchedulerView) -> str | None:
    """Why a rival that sizes chunks by due times can decide nothing on this server, None where it can."""
    if Knob.PREFILL_CHUNK_TOKENS not in view.bounds.ranges:
        return view.bounds.immovable[Knob.PREFILL_CHUNK_TOKENS]
    if view.predictor is None:
        return NOT_PREDICTED
    return NO_TARGET if view.slo.itl_s is None else None


@dataclass(frozen=True, slots=True)
class SlackChunks:
    """Sets prefill_chunk_tokens from the slack.

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
        if limits is None or times is None or self.idle_reason(view) is not None:
            return ()
        mixable = self.mix and view.bounds.movable(Knob.MIXED_CHUNK)
        mixed = mixable or view.knobs.mixed_chunk
        proposals: tuple[Proposal, ...] = ()
        if mixable:
            proposals = (Proposal("SlackChunks", Knob.MIXED_CHUNK, True, "decode rows ride along with every chunk"),)
        if slack_s is None:  # nothing runs, or no first token has come yet; and always where drafts are verified
            reason = "no running request has a due time"
            return (*proposals, Proposal("SlackChunks", Knob.PREFILL_CHUNK_TOKENS, limits.high, reason))
        tokens = self._largest(view, limits, times, slack_s, mixed)
        reason = f"the tightest of {view.queue.running} running requests has {slack_s * 1e3:.0f} ms to its next token"
        return (*proposals, Proposal("SlackChunks", Knob.PREFILL_CHUNK_TOKENS, tokens, reason))

    def _largest(self, view: SchedulerView, limits: Range, times: StepTimes, slack_s: float, mixed: bool) -> int:
        """The largest allowed chunk that fits. Times are taken to grow with the chunk, tiles apart: it is bisected."""
        running = running_shape(view)
        rest_s = 0.0 if mixed else times.step_s(prefill=NOTHING, decode=running, graph=True)
        rows, beside = (running.new_tokens, running) if mixed else (0, NOTHING)

        def seconds(chunk: int) -> float:
            prompt = prompt_shape(view, max(1, chunk - rows))  # decode rows come out of the chunk
            return rest_s + times.step_s(prefill=prompt, decode=beside, graph=False)

        least = max(limits.low, self.min_chunk_tokens + rows)
        chunks: list[int] = [*range(-(-least // limits.step) * limits.step, limits.high, limits.step), limits.high]
        fitting = bisect_right(chunks, slack_s, key=seconds)
        return chunks[max(0, fitting - 1)]
