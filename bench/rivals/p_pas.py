"""P-PAS: two prefill budgets, the small one while several prompts compete with running requests (arXiv 2608.15171).

Moves: the prefill chunk. Signal: how many prompts are being prefilled or wait for it, and whether anything decodes.
As described::

    budget = low   where prompts waiting or part-way through their chunks >= crowd, and a request decodes
             high  else

with low = 2,048, high = 16,384 tokens and crowd = 2. It knows neither targets nor times.

Differences: the paper's budget is of a step that also holds the decode rows; here that is so under mixed chunk alone.
Both budgets are brought within what the server was launched with, so a server needs
``--chunked-prefill-size 16384`` to have the high one.
"""

from __future__ import annotations

from dataclasses import dataclass

from roofline_policies.contract.decision import Knob
from roofline_policies.contract.view import SchedulerView
from roofline_policies.errors import FieldError
from roofline_policies.policies.base import Proposal


@dataclass(frozen=True, slots=True)
class PPas:
    """Switches prefill_chunk_tokens between two values.

    low, high: the budgets in tokens. crowd: prompts from which on the low one holds.

    Raises:
        FieldError: a parameter outside its range.
    """

    low: int = 2048
    high: int = 16384
    crowd: int = 2

    def __post_init__(self) -> None:
        if not 1 <= self.low <= self.high:
            raise FieldError("low", self.low, f"1 token to high, which is {self.high}")
        if self.crowd < 1:
            raise FieldError("crowd", self.crowd, "1 prompt or more")

    def propose(self, view: SchedulerView) -> tuple[Proposal, ...]:
        """A target for prefill_chunk_tokens; nothing where the chunk cannot move."""
        if Knob.PREFILL_CHUNK_TOKENS not in view.bounds.ranges:
            return ()
        queue = view.queue
        prompts = queue.waiting + queue.chunk_in_flight
        crowded = prompts >= self.crowd and queue.running > 0
        reason = f"{prompts} prompts to prefill beside {queue.running} running requests"
        tokens = view.bounds.clamp(Knob.PREFILL_CHUNK_TOKENS, self.low if crowded else self.high)
        return (Proposal("PPas", Knob.PREFILL_CHUNK_TOKENS, tokens, reason),)
