"""vLLM's step budget and prefill cadence: decode first, prompts share what is left, not in every step (vLLM V1).

Moves: the prefill chunk, mixed chunk and the deferral of prefill. Signal: how many steps there were, and whether the
waiting prompts fit into one. It knows neither targets nor times. As described, a step has a budget of tokens; each
running request takes one, prompts share the rest, and of one prompt a step takes at most a threshold. Prompts are let
in only in every N-th step, while a request can decode in their place, and unless the device is saturated::

    budget = max_batched_tokens
    prompt tokens of a step <= min(budget - running, prompts * long_prompt_tokens)
    defer  where  a request decodes, step % interval != 0, and a step with prompts can start all that wait

With ``interval`` 1, vLLM's default, nothing is deferred: that is mixed chunks of the budget. 2 is what the authors of
the cadence found best.

Source: the documentation of vLLM's ``max_num_batched_tokens``, ``long_prefill_token_threshold`` and
``prefill_schedule_interval``, and the descriptions of the changes that brought them (vllm-project/vllm#15419, #44558).
8,192 tokens is what vLLM's server takes on a device of this size.

Differences: vLLM applies the cadence between data-parallel ranks, so that they prefill in the same steps, and ignores
it on a single one; here it is on a single one too, as vllm-project/vllm#54627 asks for. Whether the device is
saturated is seen by vLLM after a step with prompts, where some still wait; here it is asked of the prompts that wait
now. The threshold limits the whole step, since SGLang gives the first prompt all it can take. Where mixing cannot be
had, steps with prompts leave the running requests out.
"""

from __future__ import annotations

from dataclasses import dataclass

from roofline_policies.contract.decision import Knob
from roofline_policies.contract.view import SchedulerView
from roofline_policies.errors import FieldError
from roofline_policies.policies.base import Proposal


@dataclass(frozen=True, slots=True)
class VllmCadence:
    """Sets prefill_chunk_tokens and mixed_chunk, and turns defer_prefill on and off.

    max_batched_tokens: of a step, decode rows included. long_prompt_tokens: of one prompt in a step; 0: as many as fit.
    interval: steps from one with prompts to the next while requests decode; 1: prompts come in every step.

    Raises:
        FieldError: a parameter outside its range.
    """

    max_batched_tokens: int = 8192
    long_prompt_tokens: int = 0
    interval: int = 2

    def __post_init__(self) -> None:
        if self.max_batched_tokens < 1:
            raise FieldError("max_batched_tokens", self.max_batched_tokens, "1 token or more")
        if self.long_prompt_tokens < 0:
            raise FieldError("long_prompt_tokens", self.long_prompt_tokens, "a number of tokens, or 0 for no limit")
        if self.interval < 1:
            raise FieldError("interval", self.interval, "1 step or more")

    def propose(self, view: SchedulerView) -> tuple[Proposal, ...]:
        """Targets for the three knobs, of those that this server can move."""
        queue, bounds = view.queue, view.bounds
        limits, prompts = bounds.ranges.get(Knob.PREFILL_CHUNK_TOKENS), queue.waiting + queue.chunk_in_flight
        mixable = bounds.movable(Knob.MIXED_CHUNK)
        rows = queue.running if mixable or view.knobs.mixed_chunk else 0
        room = max(1, self.max_batched_tokens - rows)
        if self.long_prompt_tokens and prompts:
            room = min(room, prompts * self.long_prompt_tokens)
        proposals: list[Proposal] = []

        def ask(knob: Knob, value: int | bool, reason: str) -> None:
            proposals.append(Proposal("VllmCadence", knob, value, reason))

        if mixable:
            ask(Knob.MIXED_CHUNK, True, "decode rows and prompts share a step's budget")
        if limits is not None:
            ask(Knob.PREFILL_CHUNK_TOKENS, limits.clamp(rows + room), f"{room} prompt tokens beside {rows} decode rows")
        if bounds.movable(Knob.DEFER_PREFILL):
            turn = view.decisions % self.interval
            saturated = prompts > 1 and queue.next_prefill_tokens >= room
            waits = f"{prompts} prompts wait, with {queue.next_prefill_tokens} tokens for the next step"
            defers = turn > 0 and queue.running > 0 and not saturated
            ask(Knob.DEFER_PREFILL, defers, f"step {turn + 1} of {self.interval}, {waits}")
        return tuple(proposals)
