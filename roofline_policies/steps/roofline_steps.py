"""Step times by the roofline alone, for devices of which no kernel was measured: a lower bound to be corrected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import mul

from roofline_policies.device.hardware import Ceilings
from roofline_policies.device.roofline import roof_time
from roofline_policies.model.attention_kernels import AttentionKernel, Backends, read_keys
from roofline_policies.model.batch import BatchShape, graph_size
from roofline_policies.model.mla import Form
from roofline_policies.model.rank_model import RankModel
from roofline_policies.work import Work

EMPTY = BatchShape()

_ONE = BatchShape(1, 1, 1, 1, 1, 1)

_PROBE = 1 << 12
"""Of each sum of a batch, to find what one of it costs: large enough that a kernel's rounding does not show."""


class _Beside:
    """What attention kernels issue in one layer beside the scores that are seen, of batches that do not say it.

    Of prompts the masked scores of a kernel that skips none; what tiles add at the diagonal is left out. Of a row that
    decodes, the rest of the tile that it has to itself, over its whole context.
    """

    def __init__(self, attention: Backends) -> None:
        self.padded_row_flops = attention.decode.decode_flops((), 1)
        self._masked_pair_flops = attention.prefill.masked_pair_flops
        self._pair_flops = attention.prefill.pair_flops
        self._alone = _per_key(attention.decode.decode_flops((_PROBE,)), attention.prefill)
        self._mixed = _per_key(_beside_a_prompt(attention.prefill), attention.prefill)
        self._alone_in_window = self._mixed_in_window = 0.0
        if attention.windowed is not None:
            prefill, decode = attention.windowed
            self._alone_in_window = _per_key(decode.decode_flops((_PROBE,)), prefill)
            self._mixed_in_window = _per_key(_beside_a_prompt(prefill), prefill)

    def prompts(self, batch: BatchShape) -> BatchShape:
        """A batch of prompts that says it."""
        if not self._masked_pair_flops:
            return batch
        return batch._replace(masked_flops=self._masked_pair_flops * (batch.pairs - batch.causal_pairs))

    def rows(self, batch: BatchShape, mixed: bool) -> BatchShape:
        """A batch of rows that decode, one or several of a request, that says it. mixed: beside prompts."""
        prefills = mixed or batch.new_tokens > batch.requests  # several rows run in the kernel of prefill, too
        each, in_window = (self._mixed, self._mixed_in_window) if prefills else (self._alone, self._alone_in_window)
        if not each and not in_window:
            return batch
        shared = self._pair_flops * (batch.causal_pairs - batch.context_tokens)  # rows of one request share its tile
        return batch._replace(
            masked_flops=max(0, round(each * batch.context_tokens) - shared),
            window_masked_flops=round(in_window * batch.window_tokens),
        )


def _beside_a_prompt(kernel: AttentionKernel) -> int:
    """FLOPs of one row beside a prompt, whose size decides the tiles of all."""
    prompt = (_PROBE, 0)
    return kernel.prefill_flops((prompt, (1, _PROBE - 1))) - kernel.prefill_flops((prompt,))


def _per_key(flops: int, kernel: AttentionKernel) -> float:
    """FLOPs of a row beside the scores that are seen, for each key that it sees of _PROBE."""
    keys = read_keys(1, _PROBE - 1, kernel.window)
    return (flops - kernel.pair_flops * keys) / keys


@dataclass(frozen=True, slots=True)
class RooflineSteps:
    """``max(FLOPs / ceiling, bytes / ceiling)`` of a whole step; asked like StepPredictor, O(1).

    What it misses, such as how far kernels stay below the roofs, ``correction`` learns from the steps that run.

    model: what one rank runs. ceilings: of the device; a precision that it has none for is taken at the nearest one's,
    see ``Ceilings.covering``.
    captured: batch sizes with a CUDA graph, ascending. A decode step is padded to them, and beyond the last one as if
    they went on, so that it is never cheaper without a graph.
    attention: the kernels that run, None where they are not known. A batch that says itself what they issue beside the
    scores that are seen (``masked_flops``) is taken at its word. Policies ask of batches that do not run yet; of those
    it is estimated, so that what is asked and what is observed of one batch are alike.
    """

    model: RankModel
    ceilings: Ceilings
    captured: Sequence[int] = ()
    attention: Backends | None = None
    _beside: _Beside | None = field(init=False, repr=False, compare=False)
    _compute_s: tuple[float, ...] = field(init=False, repr=False, compare=False)
    _memory_s: tuple[float, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        compute_s: tuple[float, ...] = ()
        memory_s: tuple[float, ...] = ()
        object.__setattr__(self, "ceilings", self.ceilings.covering(*self.model.precisions))
        object.__setattr__(self, "_beside", None if self.attention is None else _Beside(self.attention))
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
        if not prefill.requests + decode.requests:
            return 0.0
        beside = self._beside
        if beside is not None:
            if prefill.requests and not prefill.masked_flops:
                prefill = beside.prompts(prefill)
            if decode.requests and not decode.masked_flops:
                decode = beside.rows(decode, bool(prefill.requests))
        batch = decode if not prefill.requests else prefill if not decode.requests else prefill + decode
        if self.captured and not prefill.requests and not batch.padded_rows:
            padding = 0 if beside is None else beside.padded_row_flops
            batch = batch.padded_to(graph_size(self.captured, batch.requests), padding)
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
