"""How fast waiting prompts are served: seconds that pass for each predicted second of prefill."""

from __future__ import annotations

from collections.abc import Callable

from roofline_policies.slo.admission import Ticket
from sglang_patches.needs.objects import Batch, Request

FIRST_PACE = 1.5
"""Seconds per predicted second of prefill that are assumed before anything was served: half as much again, for the
decode steps between. A judgement. Higher gives more prompts up in the first seconds of traffic, lower fewer; it is
forgotten after some ten prefill steps."""

FIRST_SERVED_S = 0.1
"""Predicted seconds of prefill that FIRST_PACE counts for, until steps outweigh it. A judgement, as above."""

STEPS_TO_A_TOKEN = 1.5
"""Prefill steps from a prompt's turn to its first token: half a step until the one that runs has ended, on average, and
its own. Without it, prompts were admitted that then came 50 ms late (docs/log.md, 2026-11-20)."""

KEEP = 0.9
"""Share of what was seen before that each prefill step keeps: some 1 / (1 - 0.9) = 10 steps count. A judgement. Higher
follows a change of load later, lower lets single steps decide."""


class Service:
    """Follows prefill steps. Tokens found in the prefix cache count as served when the prompt's first step runs.

    ticket: gives the ticket of a request (see Waiting.ticket).
    """

    def __init__(self, ticket: Callable[[Request], Ticket]) -> None:
        self._ticket = ticket
        self._passed_s = FIRST_PACE * FIRST_SERVED_S
        self._served_s = FIRST_SERVED_S
        self._last_s: float | None = None
        self._before_s = 0.0
        self._turns = 0.0

    @property
    def pace(self) -> float:
        """Seconds that pass per predicted second of prefill.

        Above 1 for decode steps between, host time and steps slower than predicted; tokens found in the cache late
        lower it.
        """
        return self._passed_s / self._served_s

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
        if self._last_s is not None:
            self._passed_s = self._passed_s * KEEP + now_s - self._last_s
            self._turns = self._turns * KEEP + 1.0
            self._served_s = self._served_s * KEEP + self._before_s
        self._before_s = served_s
        self._last_s = now_s if prompts_wait and served_s > 0 else None

    def ahead_s(self, chunked: Request | None) -> float:
        """Seconds until the next prompt has its first token. chunked: the prompt part-way through its chunks; it goes
        first.

        It enters with the next prefill step and has its token when that step ends, however small its share of it is.
        """
        turn_s = self._passed_s / self._turns if self._turns else 0.0
        if chunked is None:
            return STEPS_TO_A_TOKEN * turn_s
        ticket = self._ticket(chunked)
        left = min(1.0, max(0, chunked.seqlen - chunked.extend_end) / ticket.tokens)
        left_s: float = ticket.prefill_s * left * self.pace
        return left_s + STEPS_TO_A_TOKEN * turn_s
