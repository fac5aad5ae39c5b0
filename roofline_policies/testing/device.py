"""A made-up device: its ceilings, how long its steps take, and the work that they do."""

from __future__ import annotations

from typing import NamedTuple

from roofline_policies.device.hardware import Ceilings
from roofline_policies.model.batch import BatchShape
from roofline_policies.work import Bytes, Flops, Precision, Provenance, Work

EMPTY = BatchShape()

CEILINGS = Ceilings("a made-up device", {Precision.BF16: 1e15}, 4e12, 10**11, None, "made up for tests")

WEIGHT_BYTES = 16 * 10**9
FLOPS_PER_TOKEN = 16 * 10**9
KV_BYTES_PER_TOKEN = 128 * 1024


class LinearSteps(NamedTuple):
    """Step times as a sum, for closed forms on paper::

        base_s + token_s * new tokens + row_s * requests + context_s * KV tokens attended + pair_s * causal scores

    A step without rows takes no time. The values are those of no device; a model of 8 billion weights on a large GPU
    has times of this order: 5 ms for a decode step, 50,000 prompt tokens a second.

    base_s: of every step. token_s: per row of the linear layers. row_s: per request. context_s: per KV token that the
    batch reads. pair_s: per attention score that is not masked.
    """

    base_s: float = 5e-3
    token_s: float = 2e-5
    row_s: float = 1e-5
    context_s: float = 3e-8
    pair_s: float = 5e-10

    def step_s(self, *, prefill: BatchShape = EMPTY, decode: BatchShape = EMPTY, graph: bool = False) -> float:
        """Seconds of one iteration; ``graph`` makes no difference. See StepTimes."""
        batch = prefill + decode
        if not batch.requests:
            return 0.0
        linear_s = self.token_s * batch.new_tokens + self.row_s * batch.requests
        return self.base_s + linear_s + self.context_s * batch.context_tokens + self.pair_s * batch.causal_pairs


def work_of(batch: BatchShape) -> Work:
    """The work of a step: weights once, KV of what is attended to, the linear layers of each token. With the default
    times long prefills come out compute-bound and decode steps memory-bound."""
    flops = Flops.at(Precision.BF16, FLOPS_PER_TOKEN * batch.new_tokens)
    moved = Bytes(WEIGHT_BYTES + KV_BYTES_PER_TOKEN * batch.context_tokens, KV_BYTES_PER_TOKEN * batch.new_tokens)
    return Work(flops, flops, moved, moved, frozenset({Provenance.ESTIMATED}))
