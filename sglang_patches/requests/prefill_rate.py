"""How fast waiting prompts are served: seconds that pass for each predicted second of prefill."""

from __future__ import annotations

from collections.abc import Callable

from roofline_policies.slo.admission import Ticket
from sglang_patches.needs.objects import Batch, Request

FIRST_PACE = 1.5
"""Before anything was served: half as long again as prefill alone, for the decode steps between."""

STEPS_TO_A_TOKEN = 1.5
"""Prefill steps from a prompt's turn to its first token: the rest of the one that runs, and its own."""

KEEP = 0.9
"""Of what was seen before, at each prefill step: some ten steps count."""


class Service:
    """Follows prefill steps. What of a prompt was found in the prefix cache counts as served when its first step runs.

    ticket: of a request.
    """

    def __init__(self, ticket: Callable[[Request], Ticket]) -> None:
        self._ticket = ticket
        self._passed_s = FIRST_PACE * 0.1
        self._served_s = 0.1
        self._last_s: float | None = None
        self._before_s = 0.0
        self._turns = 0.0

    @property
    def pace(self) -> float:
        """Seconds per predicted second: decode steps, host time, the predictor's error, what is found cached later."""
        return self._passed_s / self._served_s

    def launched(self, batch: Batch, now_s: float, prompts_wait: bool) -> None:
        """Note a step with prompts in it; ``prompts_wait``: more are waiting, so the time to the next step counts."""
        served_s = 0.0
        prompts = len(batch.reqs) - len(batch.decoding_reqs or ())
        for request, extend, prefix in zip(
            batch.reqs[:prompts], batch.extend_lens[:prompts], batch.prefix_lens[:prompts], strict=True
        ):
            ticket = self._ticket(request)
            # More may be cached by now than when it came: that is served, too, with its first step.
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
        """Seconds until the prompt in flight is through, and until a step that starts then has its tokens delivered.

        A prompt enters with the next prefill step and has its token when that one ends, whatever its share of it.
        """
        turn_s = self._passed_s / self._turns if self._turns else 0.0
        if chunked is None:
            return STEPS_TO_A_TOKEN * turn_s
        ticket = self._ticket(chunked)
        left = min(1.0, max(0, chunked.seqlen - chunked.extend_end) / ticket.tokens)
        left_s: float = ticket.prefill_s * left * self.pace
        return left_s + STEPS_TO_A_TOKEN * turn_s
