"""How fast a scheduler's waiting prompts are served, by the steps that it launches."""

from __future__ import annotations

from collections.abc import Callable

from roofline_policies.slo.admission import Ticket
from roofline_policies.slo.prefill_rate import PrefillRate
from sglang_patches.needs.objects import Batch, Request


class PrefillWatch:
    """Follows prefill steps; the arithmetic is the library's PrefillRate. Tokens that were found in the prefix cache
    since a prompt came count as served when its first step runs.

    ticket: gives the ticket of a request (see Waiting.ticket).
    """

    def __init__(self, ticket: Callable[[Request], Ticket]) -> None:
        self._ticket = ticket
        self._rate = PrefillRate()

    @property
    def pace(self) -> float:
        """Seconds per predicted second of prefill."""
        return self._rate.pace

    def launched(self, batch: Batch, now_s: float, prompts_wait: bool) -> None:
        """Note a step with prompts in it. prompts_wait: more are waiting, so the time to the next step counts."""
        served_s = 0.0
        prompts = len(batch.reqs) - len(batch.decoding_reqs or ())
        for request, extend, prefix in zip(
            batch.reqs[:prompts], batch.extend_lens[:prompts], batch.prefix_lens[:prompts], strict=True
        ):
            ticket = self._ticket(request)
            # More of it may be in the cache by now than when it came; its first step counts those tokens as served.
            found = 0 if ticket.started else max(0, prefix + ticket.tokens - request.seqlen)
            ticket.started = True
            served_s += ticket.prefill_s * min(1.0, (extend + found) / ticket.tokens)
        self._rate.launched(now_s, served_s, prompts_wait=prompts_wait)

    def ahead_s(self, chunked: Request | None) -> float:
        """Seconds until the next prompt has its first token. chunked: the prompt part-way through its chunks; it goes
        first."""
        if chunked is None:
            return self._rate.ahead_s(0.0)
        ticket = self._ticket(chunked)
        left = min(1.0, max(0, chunked.seqlen - chunked.extend_end) / ticket.tokens)
        return self._rate.ahead_s(ticket.prefill_s * left)
