"""What the device of a virtual clock did, step by step, and what of it lies between two moments.

Latencies of a closed loop are sums of step times. So what a latency is made of says at once how it would change with
the price of a part: that is what constants are fitted on, without running the scheduler again for each guess.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from roofline_policies.model.batch import BatchShape
from roofline_policies.steps.predictor import StepPredictor, StepTime
from roofline_policies.steps.times import StepTimes
from sglang_patches.virtual.clock import VirtualClock

Floats = npt.NDArray[np.float64]

TIMES = ("linear", "attention", "head", "small", "communication", "launch", "roof", "host")
"""Parts of a step, seconds; see ``StepTime``."""
COUNTS = ("steps", "kernels", "eager_kernels", "rows", "requests")
"""Further amounts; eager kernels are those of steps without a graph."""
KINDS = ("prefill", "decode")
"""A step with prompt tokens, mixed ones too, and one without."""
PARTS = tuple(f"{kind}_{name}" for kind in KINDS for name in (*TIMES, *COUNTS))


class JournalClock(VirtualClock):
    """A virtual clock that keeps when each piece of the device's work began and ended."""

    def __init__(self) -> None:
        super().__init__()
        self.spans: list[tuple[float, float]] = []

    def launch(self, seconds: float) -> float:
        done_s = super().launch(seconds)
        self.spans.append((done_s - seconds, done_s))
        return done_s


@dataclass(slots=True)
class StepJournal:
    """Notes of every step that was priced, in order; one launch follows each pricing."""

    clock: JournalClock = field(default_factory=JournalClock)
    steps: list[tuple[bool, StepTime, int, int, int]] = field(default_factory=list)

    def watched(self, steps: StepTimes) -> StepTimes:
        """``steps``, whose every answer is noted. Steps that were measured have no parts, and are all ``linear``."""
        return _Watched(steps, self)

    def between(self, begin_s: Floats, end_s: Floats) -> dict[str, Floats]:
        """Of each part what the device did between two moments of the clock, element by element.

        ``idle``: seconds in which it did nothing. A step that lies in part between them counts in part.
        """
        noted = np.array([_amounts(*step) for step in self.steps]).reshape(len(self.steps), len(PARTS))
        spans = np.array(self.clock.spans).reshape(len(self.steps), 2)
        moments = spans.ravel()  # device work is one line: begin, end, begin, ...
        found, busy = {}, np.zeros(len(begin_s))
        for place, part in enumerate(PARTS):
            done = np.repeat(np.concatenate([[0.0], np.cumsum(noted[:, place])]), 2)[1:-1]
            found[part] = np.interp(end_s, moments, done) - np.interp(begin_s, moments, done)
            if part.partition("_")[2] in TIMES:
                busy += found[part]
        return {**found, "idle": end_s - begin_s - busy}


class _Watched:
    def __init__(self, steps: StepTimes, journal: StepJournal) -> None:
        self._steps = steps
        self._journal = journal

    def step_s(self, *, prefill: BatchShape, decode: BatchShape, graph: bool) -> float:
        if isinstance(self._steps, StepPredictor):
            time = self._steps.step(prefill=prefill, decode=decode, graph=graph)
        else:
            time = StepTime(self._steps.step_s(prefill=prefill, decode=decode, graph=graph))
        rows, requests = prefill.new_tokens + decode.new_tokens, prefill.requests + decode.requests
        captured = self._steps.captured if isinstance(self._steps, StepPredictor) else ()
        beyond = not prefill.requests and bool(captured) and decode.requests > captured[-1]
        eager = time.kernels if beyond or not graph else 0
        self._journal.steps.append((prefill.requests > 0, time, eager, rows, requests))
        return time.total_s


def _amounts(prefill: bool, time: StepTime, eager: int, rows: int, requests: int) -> list[float]:
    parts = [
        time.linear_s, time.attention_s, time.head_s, time.small_s, time.communication_s, time.launch_s, time.roof_s,
        time.host_s, 1.0, time.kernels, eager, rows, requests,
    ]  # fmt: skip
    nothing = [0.0] * len(parts)
    return [*parts, *nothing] if prefill else [*nothing, *parts]
