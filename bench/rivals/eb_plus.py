"""EB+: decode rows ride along in prefill steps where that saves time, else steps are exclusive (arXiv 2606.00516).

Moves: mixed chunk. Signal: predicted step times of the next chunk and of the running requests. As described, a mixed
step costs each decode row more than a decode step does, so mixing pays up to some share of decode in the batch: 80% on
an H200, 20% on a card with less bandwidth. The paper gives the crossover in closed form, from fitted step times. Here
both sides are asked of the predictor::

    mix  where  step(chunk + running) <= step(chunk) + step(running)

A decode step of its own is a CUDA graph replay, the two others are not.

Differences: the paper's phase-switching thresholds and its memory-safe batch size for exclusive batching are not here:
between exclusive steps the server alternates as it was launched to. The condition is looked at for one chunk, not for
the whole of a phase, and for one prompt, the one whose chunk comes next.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.rivals.shapes import NOTHING, prompt_shape
from roofline_policies.contract.decision import Knob
from roofline_policies.contract.view import SchedulerView
from roofline_policies.policies.base import Proposal
from roofline_policies.policies.shapes import NOT_PREDICTED, running_shape


@dataclass(frozen=True, slots=True)
class EbPlus:
    """Turns mixed_chunk on and off."""

    def idle_reason(self, view: SchedulerView) -> str | None:
        """Why nothing can be decided on this server, None where it can."""
        if not view.bounds.movable(Knob.MIXED_CHUNK):
            return view.bounds.immovable[Knob.MIXED_CHUNK]
        return NOT_PREDICTED if view.predictor is None else None

    def propose(self, view: SchedulerView) -> tuple[Proposal, ...]:
        """A target for mixed_chunk; nothing where nothing runs, and where ``idle_reason`` says why."""
        times, queue, chunk = view.predictor, view.queue, view.knobs.prefill_chunk_tokens
        if times is None or queue.running == 0 or chunk is None or not view.bounds.movable(Knob.MIXED_CHUNK):
            return ()
        # A prompt is admitted in the pass in which it arrives, so with none waiting a whole chunk is looked at. Mixed
        # steps have less room for prompt tokens: both sides are asked about what fits into one.
        tokens = max(1, min(queue.next_prefill_tokens or chunk, chunk - queue.running))
        prompt, running = prompt_shape(view, tokens), running_shape(view)
        mixed_s = times.step_s(prefill=prompt, decode=running, graph=False)
        apart_s = times.step_s(prefill=prompt, decode=NOTHING, graph=False)
        apart_s += times.step_s(prefill=NOTHING, decode=running, graph=True)
        reason = (
            f"{tokens} prompt tokens and {queue.running} decode rows take {mixed_s * 1e3:.1f} ms together and "
            f"{apart_s * 1e3:.1f} ms apart"
        )
        return (Proposal("EbPlus", Knob.MIXED_CHUNK, mixed_s <= apart_s, reason),)
