"""A stand-in for the time that operations take."""

from __future__ import annotations

from collections.abc import Callable


class FakeTimer:
    """A timer on which a run takes ``run_s``, and the first one ``first_s``. Counts runs and calls."""

    def __init__(self, run_s: float, first_s: float | None = None) -> None:
        self.run_s = run_s
        self.first_s = run_s if first_s is None else first_s
        self.runs = 0
        self.calls = 0

    def __call__(self, operation: Callable[[], object], repeats: int) -> list[float]:
        times = [self.first_s if self.runs + i == 0 else self.run_s for i in range(repeats)]
        self.runs += repeats
        self.calls += 1
        return times
