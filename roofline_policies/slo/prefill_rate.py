"""How fast waiting prompts are served: seconds that pass for each predicted second of prefill."""

from __future__ import annotations

FIRST_PACE = 1.5
"""Seconds per predicted second of prefill that are assumed before anything was served: half as much again, for the
decode steps between. A judgement. Higher passes over more prompts in the first seconds of traffic, lower fewer; it is
forgotten after some ten prefill steps."""

FIRST_WEIGHT_S = 0.1
"""Predicted seconds that FIRST_PACE counts for, about one long prefill step; also a judgement."""

STEPS_TO_A_TOKEN = 1.5
"""Prefill steps from when a prompt is next to its first token: half a step until the one that runs has ended, on
average, and its own. Without it, prompts were admitted that then came 50 ms late (docs/log.md, 2026-11-20)."""

KEEP = 0.9
"""Share of what was seen before that each prefill step keeps: some 1 / (1 - 0.9) = 10 steps count. A judgement. Higher
follows a change of load later, lower lets single steps decide."""


class PrefillRate:
    """Follows prefill steps. What a step serves is told in predicted seconds, so the rate holds the decode steps
    between, the host's time, the predictor's error, and what is found cached later."""

    def __init__(self) -> None:
        self._passed_s = FIRST_PACE * FIRST_WEIGHT_S
        self._served_s = FIRST_WEIGHT_S
        self._last_s: float | None = None
        self._before_s = 0.0
        self._steps = 0.0

    @property
    def pace(self) -> float:
        """Seconds per predicted second."""
        return self._passed_s / self._served_s

    def launched(self, now_s: float, served_s: float, *, prompts_wait: bool) -> None:
        """Note a step that serves ``served_s`` predicted seconds; the time to the next counts while prompts wait."""
        if self._last_s is not None:
            self._passed_s = self._passed_s * KEEP + now_s - self._last_s
            self._steps = self._steps * KEEP + 1.0
            self._served_s = self._served_s * KEEP + self._before_s
        self._before_s = served_s
        self._last_s = now_s if prompts_wait and served_s > 0 else None

    def ahead_s(self, left_s: float) -> float:
        """Seconds until a prompt in flight with ``left_s`` predicted seconds to go is through, and until a step that
        starts then has its tokens delivered.

        A prompt enters with the next prefill step and has its token when that one ends, whatever its share of it.
        """
        step_s = self._passed_s / self._steps if self._steps else 0.0
        return left_s * self.pace + STEPS_TO_A_TOKEN * step_s
