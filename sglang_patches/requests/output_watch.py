"""How long answers are here, learned from those that ended."""

from __future__ import annotations

from roofline_policies.slo.output_lengths import OutputLengths
from sglang_patches.needs.objects import Batch

LOOK_EVERY = 8
"""Batches; a request ends in one of them, so those that are seen to end are a fair sample of all."""


class OutputWatch:
    """Counts the output tokens of requests that end."""

    def __init__(self) -> None:
        self._lengths = OutputLengths()
        self._batches = 0

    def finished(self, batch: Batch) -> None:
        """Look through a batch whose result was processed, now and then."""
        self._batches += 1
        if self._batches % LOOK_EVERY:
            return
        for request in batch.reqs:
            if request.finished():
                self._lengths.add(len(request.output_ids))

    def least(self) -> int:
        """Tokens that all but few answers have."""
        return self._lengths.least()
