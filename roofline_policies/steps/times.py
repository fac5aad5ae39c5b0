"""What is asked of a predictor of step times: the part of it that policies see."""

from __future__ import annotations

from typing import Protocol

from roofline_policies.model.batch import BatchShape


class StepTimes(Protocol):
    """Seconds of a scheduler iteration that has not run yet. Immutable: equal questions have equal answers.

    ``roofline_policies.steps.predictor.StepPredictor`` is one. A question takes about 20 us, so a policy asks a few
    times a decision.
    """

    def step_s(self, *, prefill: BatchShape, decode: BatchShape, graph: bool) -> float:
        """Seconds of one iteration: a prefill step, a decode step, or a mixed step where both shapes have rows.

        graph: a decode step that replays a CUDA graph, padding included.
        """
        ...
