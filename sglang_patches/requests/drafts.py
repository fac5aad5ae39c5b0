"""Which drafts of running requests were accepted, from the results of verify steps."""

from __future__ import annotations

from collections.abc import Sequence

from sglang_patches.needs.objects import Batch, Request, StepResult

FADE = 0.95
"""Weight that a step's yield keeps with each further step: some 20 steps are remembered, a second or less. A judgement:
lower follows a change of texts sooner, and lets due times swing more."""


class DraftWatch:
    """Reads what each verify step accepted, per request.

    tokens: that a step yields per request lately, the target's own included; 1 before the first.

    Under the overlap schedule a request that has ended runs once more, since the next step is launched before its end
    is known. What is accepted there follows nothing that anybody asked for, and is left out.
    """

    def __init__(self) -> None:
        self.tokens = 1.0
        self._ended: set[Request] = set()

    def finished(self, batch: Batch, result: StepResult) -> tuple[Sequence[int], Sequence[int | None]]:
        """Of a decode batch whose result was processed: the drafts accepted, the bonus token not among them, and the
        priority, of each request that had not ended before."""
        counted = result.num_correct_drafts_per_req_cpu
        if counted is None:
            return (), ()
        ended, self._ended = self._ended, {request for request in batch.reqs if request.finished()}
        pairs = [
            (accepted, request.priority)
            for accepted, request in zip(counted, batch.reqs, strict=True)
            if request not in ended
        ]
        if pairs:
            yields = 1.0 + sum(accepted for accepted, _ in pairs) / len(pairs)
            self.tokens = FADE * self.tokens + (1.0 - FADE) * yields
        return [accepted for accepted, _ in pairs], [priority for _, priority in pairs]
