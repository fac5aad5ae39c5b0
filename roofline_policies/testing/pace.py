"""How fast a Plant serves prompts: seconds that pass for each predicted second.

As sglang_patches.requests.prefill_rate.
"""

from __future__ import annotations

FIRST_PACE = 1.5
"""Before anything was served."""

KEEP = 0.9
"""Of what was seen before, at each prefill step."""


class Pace:
    """Follows prefill steps."""

    def __init__(self) -> None:
        self._passed_s, self._served_s = FIRST_PACE * 0.1, 0.1
        self._last_s: float | None = None
        self._before_s = 0.0

    @property
    def value(self) -> float:
        """Seconds per predicted second of prefill."""
        return self._passed_s / self._served_s

    def launched(self, now_s: float, served_s: float, *, prompts_wait: bool) -> None:
        """Note a step that serves so many predicted seconds; with prompts waiting, the time to the next one counts."""
        if self._last_s is not None:
            self._passed_s = self._passed_s * KEEP + now_s - self._last_s
            self._served_s = self._served_s * KEEP + self._before_s
        self._before_s = served_s
        self._last_s = now_s if prompts_wait and served_s > 0 else None
