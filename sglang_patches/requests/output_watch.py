"""How long answers are here, learned from those that ended."""

from __future__ import annotations

from roofline_policies.slo.output_lengths import OutputLengths
from sglang_patches.needs.objects import Batch

LOOK_EVERY = 8
"""Every so many batches are looked through. In which batch a request ends does not depend on how long its answer was,
so the endings that are seen are a fair sample. A judgement between cost (a look reads every request of the batch) and
how soon lengths are followed. Until they are known at all every batch is."""


class OutputWatch:
    """Counts the output tokens of requests that end."""

    def __init__(self) -> None:
        self._lengths = OutputLengths()
        self._batches = 0

    def finished(self, batch: Batch) -> None:
        """Look through a batch, once its result was processed; through every eighth when lengths are known."""
        self._batches += 1
        known = self._lengths.known
        if known and self._batches % LOOK_EVERY:
            return
        running = []
        for request in batch.reqs:
            if request.finished():
                self._lengths.add(len(request.output_ids))
            elif not known:
                running.append(len(request.output_ids))
        if not known:
            self._lengths.running(running)

    def expected(self, tokens: int) -> int:
        """Tokens of an answer that has so many already; see OutputLengths.expected."""
        return self._lengths.expected(tokens)

    def typical(self) -> int:
        """Tokens that an answer is expected to have before its first; see OutputLengths.typical."""
        return self._lengths.typical()

    def least(self) -> int:
        """Tokens that all but a few answers have; see OutputLengths.least."""
        return self._lengths.least()

    def mean(self) -> float | None:
        """Tokens of an answer in the mean; see OutputLengths.mean."""
        return self._lengths.mean()
