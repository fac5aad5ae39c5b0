"""Step times by the roofline alone, for devices of which no kernel was measured: a lower bound to be corrected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import mul

from roofline_policies.device.hardware import Ceilings
from roofline_policies.device.roofline import roof_time
from roofline_policies.model.batch import BatchShape, graph_size
from roofline_policies.model.mla import Form
from roofline_policies.model.rank_model import RankModel
from roofline_policies.work import Work

EMPTY = BatchShape()

_ONE = BatchShape(1, 1, 1, 1, 1, 1)

_PROBE = 1 << 12
"""Of each sum of a batch, to find what one of it costs: large enough that a kernel's rounding does not show."""


@dataclass(frozen=True, slots=True)
class RooflineSteps:
    """``max(FLOPs / ceiling, bytes / ceiling)`` of a whole step; asked like StepPredictor, O(1).

    What it misses, such as how far kernels stay below the roofs, ``correction`` learns from the steps that run.

    model: what one rank runs. ceilings: of the device; a precision that it has none for is taken at the nearest one's,
    see ``Ceilings.covering``. masked_pair_flops: of the attention kernel, see ``AttentionKernel``; a batch that says
    itself what its kernel does beside the causal pairs is taken at its word.
    captured: batch sizes with a CUDA graph, ascending. A decode step is padded to them, and beyond the last one as if
    they went on, so that it is never cheaper without a graph. padded_row_flops: of attention, see ``padded_to``.
    """

    model: RankModel
    ceilings: Ceilings
    masked_pair_flops: int = 0
    captured: Sequence[int] = ()
    padded_row_flops: int = 0
    _compute_s: tuple[float, ...] = field(init=False, repr=False, compare=False)
    _memory_s: tuple[float, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        compute_s: tuple[float, ...] = ()
        memory_s: tuple[float, ...] = ()
        object.__setattr__(self, "ceilings", self.ceilings.covering(*self.model.precisions))
        if not self.model.latent and not self.model.experts and self.model.window is None:
            # Work is affine in the sums of a batch as soon as there is a row: what one of each costs is known once and
            # for all.
            base = roof_time(self._work(_ONE), self.ceilings)
            for place in range(len(_ONE)):
                sums = list(_ONE)
                sums[place] += _PROBE
                roofs = roof_time(self._work(BatchShape(*sums)), self.ceilings)
                compute_s += ((roofs.compute_s - base.compute_s) / _PROBE,)
                memory_s += ((roofs.memory_s - base.memory_s) / _PROBE,)
            compute_s = (base.compute_s - sum(map(mul, compute_s, _ONE)), *compute_s)
            memory_s = (base.memory_s - sum(map(mul, memory_s, _ONE)), *memory_s)
        object.__setattr__(self, "_compute_s", compute_s)
        object.__setattr__(self, "_memory_s", memory_s)

    def step_s(self, *, prefill: BatchShape = EMPTY, decode: BatchShape = EMPTY, graph: bool = False) -> float:
        """Seconds of one step; 0 for one without rows. ``graph`` makes no difference."""
        window = self.model.window
        if window is not None:  # of each part, whose requests are more alike than those of both
            prefill, decode = (one if one.window_tokens else one.within(window) for one in (prefill, decode))
        batch = decode if not prefill.requests else prefill if not decode.requests else prefill + decode
        if not batch.requests:
            return 0.0
        if self.captured and not prefill.requests and not batch.padded_rows:
            batch = batch.padded_to(graph_size(self.captured, batch.requests), self.padded_row_flops)
        if self.masked_pair_flops and not batch.masked_flops:
            batch = batch._replace(masked_flops=self.masked_pair_flops * (batch.pairs - batch.causal_pairs))
        return self.bound_s(batch)

    def bound_s(self, batch: BatchShape, form: Form | None = None) -> float:
        """The larger roof of a batch that has rows. form: of latent attention, see ``RankModel.work``."""
        if not self._compute_s:
            roofs = roof_time(self._work(batch, form), self.ceilings)
            return max(roofs.compute_s, roofs.memory_s)
        compute_s, memory_s = self._compute_s[0], self._memory_s[0]
        for amount, flops_s, bytes_s in zip(batch, self._compute_s[1:], self._memory_s[1:], strict=True):
            if amount:
                compute_s += amount * flops_s
                memory_s += amount * bytes_s
        return max(compute_s, memory_s)

    def _work(self, batch: BatchShape, form: Form | None = None) -> Work:
        return self.model.work(batch, form=form)
