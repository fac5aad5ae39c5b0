"""K from a profile of what steps cost, taken when the server starts.

What sglang#28045 proposes, as far as its description goes: the time of a step is measured for batch sizes and numbers
of drafts before the server takes requests, and each step takes the number with most expected tokens per measured
second. Not in it: what requests attend to (one length is profiled), targets of requests, and a price that changes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

BATCHES = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512)
KEEP = 0.8
"""Of the moving average of acceptance with each result, as in SGLang's own rule."""
PROBE_EVERY = 50
"""Steps without drafts after which one has the fewest, so that acceptance is seen again."""


class CostProfile:
    """A rule of SGLang's protocol for K. windows: what it chooses among, ascending. cost_s: seconds of a step, by batch
    size and K; asked once for each of BATCHES and each window."""

    def __init__(self, windows: Sequence[int], cost_s: Callable[[int, int], float]) -> None:
        self.candidate_steps = list(windows)
        self._costs = {(size, window): cost_s(size, window) for size in BATCHES for window in windows}
        self._accepted = 0.7
        self._last = 0
        self._without = 0

    def set_cuda_graph_bs(self, cuda_graph_bs: list[int] | None) -> None:
        """Batches are profiled as they are captured or not."""

    def cuda_graph_bs_for_step(self, step: int) -> list[int] | None:
        """It leaves that to SGLang."""
        return None

    def get_steps_for_batch(self, batch_size: int) -> int:
        """Most expected tokens per profiled second, at the profiled batch size that holds this one."""
        size = BATCHES[min(bisect_left(BATCHES, batch_size), len(BATCHES) - 1)]

        def speed(window: int) -> float:
            tokens = sum(self._accepted**place for place in range(window + 1))
            return tokens / self._costs[size, window]

        best = max(self.candidate_steps, key=speed)
        self._without = 0 if best else self._without + 1
        if self._without > PROBE_EVERY:
            best, self._without = next(window for window in self.candidate_steps if window), 0
        self._last = best
        return best

    def on_verify_complete(self, num_correct_drafts_per_req: list[int], batch_size: int) -> int | None:
        """One probability for all positions follows the mean run: the share accepted of the drafts that were judged."""
        if self._last and num_correct_drafts_per_req:
            accepted = sum(num_correct_drafts_per_req)
            judged = sum(min(run + 1, self._last) for run in num_correct_drafts_per_req)
            self._accepted = KEEP * self._accepted + (1.0 - KEEP) * min(0.99, accepted / judged)
        return None
