"""Step times with a closed form, for policies that ask a predictor."""

from __future__ import annotations

from dataclasses import dataclass, field

from roofline_policies.model.batch import BatchShape
from roofline_policies.steps.correction import CorrectedSteps, Line


@dataclass(frozen=True)
class Affine:
    """``base_s`` per step, and seconds per prompt token, per decode row, per token that a row attends to, and per pair
    of prompt tokens that attend to each other. ``mixed_s``: what a mixed step takes on top. asked: every question."""

    base_s: float = 0.005
    token_s: float = 1e-5
    row_s: float = 1e-4
    context_s: float = 0.0
    pair_s: float = 0.0
    mixed_s: float = 0.0
    asked: list = field(default_factory=list, compare=False)

    def step_s(self, *, prefill: BatchShape, decode: BatchShape, graph: bool) -> float:
        self.asked.append((prefill, decode, graph))
        return self.seconds(prefill, decode)

    def seconds(self, prefill: BatchShape, decode: BatchShape) -> float:
        mixed_s = self.mixed_s if prefill.requests and decode.requests else 0.0
        prompt_s = self.token_s * prefill.new_tokens + self.pair_s * prefill.causal_pairs
        return self.base_s + prompt_s + self.row_s * decode.requests + self.context_s * decode.context_tokens + mixed_s


def exact(times: Affine, spread: float = 0.0) -> CorrectedSteps:
    """As if nothing had to be corrected; the margin is ``1 + 2.5 * spread``."""
    line = Line(1.0, 0.0, spread)
    return CorrectedSteps(times, line, line, line)
