"""Predicts the seconds of one scheduler iteration from what it runs, before it is run.

    step = max(sum over kernels that cannot overlap of their times, host time to launch them) + exposed host time

Kernel times are rooflines times measured efficiencies (``kernel_time``); what no table covers (small kernels, launches,
collectives) is a stated parameter of ``StepCosts``. What is left is for an online correction to learn.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from math import isfinite
from typing import NamedTuple

from roofline_policies.batch import BatchShape
from roofline_policies.efficiency import (
    DecodeEfficiency,
    Efficiency,
    GemmEfficiency,
    PrefillEfficiency,
    load_efficiency,
)
from roofline_policies.errors import InputError
from roofline_policies.hardware import Ceilings, from_catalogue
from roofline_policies.kernel_time import KernelModel, decode_attention_s, gemm_s, prefill_attention_s
from roofline_policies.model import ModelShape
from roofline_policies.work import BYTES_PER_ELEMENT

EMPTY = BatchShape()


@dataclass(frozen=True, slots=True)
class StepCosts:
    """What a step costs beside matrix products and attention. Estimates, not fitted, unless a source is given.

    small_kernels: per layer: two norms with residual, rotary embedding, KV store, activation. head_kernels: per step:
        embedding, last norm, sampling.
    small_kernel_s: seconds of a kernel with next to no work inside a graph; the least time in the H200's GEMM table.
    small_memory: share of the bandwidth that small kernels reach on large operands. Source: the H200 system file of
        ai-dynamo/aiconfigurator.
    eager_kernel_s: host seconds to launch one kernel without a graph.
    host_s: host seconds per step that the device waits for; 0 where the overlap schedule hides them all.
    allreduce_s: seconds of a collective without data. link_bytes_per_s: bytes/s of a rank's links, one way; NVLink 4's
        450 GB/s of the H100 and H200 datasheets, of which 0.8.

    Raises:
        InputError: a value that is negative, or a bandwidth that is not positive.
    """

    small_kernels: int = 5
    head_kernels: int = 5
    small_kernel_s: float = 2.4e-6
    small_memory: float = 0.8
    eager_kernel_s: float = 8e-6
    host_s: float = 0.0
    allreduce_s: float = 8e-6
    link_bytes_per_s: float = 3.6e11

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            least = 1e-3 if item.name in ("small_memory", "link_bytes_per_s") else 0
            if not isfinite(value) or value < least or (item.name == "small_memory" and value > 1):
                allowed = f"a finite number of at least {least:g}" + (
                    ", at most 1" if item.name == "small_memory" else ""
                )
                raise InputError("out of range", where="StepCosts", key=item.name, value=value, allowed=allowed)


class StepTime(NamedTuple):
    """Seconds of one step by what takes them; the parts cannot overlap and add up to ``total_s``.

    linear_s: matrix products of the layers. attention_s: attention kernels. head_s: the output head.
    small_s: everything else on the device. communication_s: collectives between ranks.
    launch_s: what launching without a graph takes longer than the device. host_s: exposed host time.
    kernels: launches.
    """

    linear_s: float = 0.0
    attention_s: float = 0.0
    head_s: float = 0.0
    small_s: float = 0.0
    communication_s: float = 0.0
    launch_s: float = 0.0
    host_s: float = 0.0
    kernels: int = 0

    @property
    def device_s(self) -> float:
        """Seconds that the device is busy."""
        return self.linear_s + self.attention_s + self.head_s + self.small_s + self.communication_s

    @property
    def total_s(self) -> float:
        return self.device_s + self.launch_s + self.host_s


@dataclass(frozen=True, slots=True)
class StepPredictor:
    """Step times of a model on a device. O(1) and about 20 us per prediction; immutable.

    model: the whole model; each of ``tp_size`` ranks runs its shard, at the same time.
    ceilings, efficiency: of the device. Other ceilings (a live clock, a sibling device) need a new predictor.
    attention: the attention kernel, ``fa3`` or ``triton``. linear: kernel of the layers' products where that is not
        the weights' own precision, e.g. ``fp8`` or ``fp8_block``; the head keeps the weights' precision.
    captured: batch sizes with a CUDA graph, ascending; empty: every size has one of its own.
    costs: what is not fitted.

    Raises:
        InputError: the model cannot be split, or a kernel was not measured.
    """

    model: ModelShape
    ceilings: Ceilings
    efficiency: Efficiency
    attention: str = "fa3"
    linear: str | None = None
    tp_size: int = 1
    captured: Sequence[int] = ()
    costs: StepCosts = StepCosts()
    _products: tuple[tuple[int, int], ...] = field(init=False, repr=False, compare=False)
    _shard: ModelShape = field(init=False, repr=False, compare=False)
    _linear: GemmEfficiency = field(init=False, repr=False, compare=False)
    _head: GemmEfficiency = field(init=False, repr=False, compare=False)
    _decode: DecodeEfficiency = field(init=False, repr=False, compare=False)
    _prefill: PrefillEfficiency = field(init=False, repr=False, compare=False)
    _small_row_s: float = field(init=False, repr=False, compare=False)
    _kernels: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if list(self.captured) != sorted(set(self.captured)) or any(size < 1 for size in self.captured):
            problem = "must be sizes above 0, ascending"
            raise InputError(problem, where="StepPredictor", key="captured", value=list(self.captured))
        # A shard of 1 pads the vocabulary as SGLang does; a model that is not split is taken as it is.
        shard = self.model.shard(self.tp_size) if self.tp_size != 1 else self.model
        kernels = KernelModel(self.ceilings, self.efficiency)
        precision, hidden, inner = shard.weight_precision, shard.hidden_size, shard.intermediate_size
        query, keys = shard.num_heads * shard.head_dim, shard.num_kv_heads * shard.head_dim
        linear = kernels.gemm(self.linear or precision)
        element = BYTES_PER_ELEMENT[precision]
        # Elements of a row that a layer's small kernels read and write: norms, rotary embedding, KV store, activation.
        moved = 8 * hidden + 2 * (query + keys) + 4 * keys + 3 * inner
        in_layer = 5 + self.costs.small_kernels + (4 if linear.quantise is not None else 0) + 2 * (self.tp_size > 1)
        for name, value in {
            "_shard": shard,
            "_products": ((query + 2 * keys, hidden), (hidden, query), (2 * inner, hidden), (hidden, inner)),
            "_linear": linear,
            "_head": kernels.gemm(precision),
            "_decode": kernels.decode(self.attention, shard.kv_precision, shard.head_dim),
            "_prefill": kernels.prefill(self.attention, shard.kv_precision, shard.head_dim),
            "_small_row_s": moved * element / (self.ceilings.bytes_per_s * self.costs.small_memory),
            "_kernels": shard.num_layers * in_layer + self.costs.head_kernels + 1,
        }.items():
            object.__setattr__(self, name, value)

    @classmethod
    def for_device(cls, model: ModelShape, device: str, **options: object) -> StepPredictor:
        """A predictor with what is shipped for a device of the catalogue, e.g. ``h200``.

        Raises:
            InputError: the device is unknown, or its kernels were not measured.
        """
        return cls(model, from_catalogue(device), load_efficiency(device), **options)  # type: ignore[arg-type]

    def step_s(self, *, prefill: BatchShape = EMPTY, decode: BatchShape = EMPTY, graph: bool = False) -> float:
        """Seconds of one step; see ``step``."""
        return self.step(prefill=prefill, decode=decode, graph=graph).total_s

    def step(self, *, prefill: BatchShape = EMPTY, decode: BatchShape = EMPTY, graph: bool = False) -> StepTime:
        """Seconds of one step by part. A mixed step has both shapes; its attention is one launch over all rows.

        graph: the step is a graph replay. A pure decode step that says nothing of padding is padded to the next
            captured size; beyond the last one it runs without a graph, as SGLang does.
        decode: one token per request, or several of them in a verify step of speculative decoding.
        """
        if not prefill.requests + decode.requests:
            return StepTime()
        if graph and self.captured and not prefill.requests and not decode.padded_rows:
            place = bisect_left(self.captured, decode.new_tokens)
            graph = place < len(self.captured)
            if graph:
                added = self.captured[place] - decode.new_tokens
                decode = decode._replace(padded_rows=added, padded_logit_rows=added)
        batch = prefill + decode
        rows = batch.new_tokens + batch.padded_rows
        logit_rows = batch.logit_rows + batch.padded_logit_rows
        shard, costs, ceilings, sms = self._shard, self.costs, self.ceilings, self.efficiency.sms
        linear_s = 0.0
        for n, k in self._products:
            linear_s += gemm_s(self._linear, rows, n, k, ceilings, sms)
        head_s = 0.0
        if logit_rows:
            head_s = gemm_s(self._head, logit_rows, shard.vocab_size, shard.hidden_size, ceilings, sms)
        small_s = rows * self._small_row_s + costs.small_kernels * costs.small_kernel_s
        layers = shard.num_layers
        time = StepTime(
            linear_s * layers,
            self._attention_s(prefill, decode) * layers,
            head_s,
            small_s * layers + costs.head_kernels * costs.small_kernel_s,
            self._communication_s(rows, logit_rows) if self.tp_size > 1 else 0.0,
            host_s=costs.host_s,
            kernels=self._kernels,
        )
        return time if graph else time._replace(launch_s=max(0.0, self._kernels * costs.eager_kernel_s - time.device_s))

    def _attention_s(self, prefill: BatchShape, decode: BatchShape) -> float:
        """Of one layer. Rows that only pad a graph are left out of prefill kernels."""
        shard, sms = self._shard, self.efficiency.sms
        sizes = (shard.num_heads, shard.num_kv_heads, shard.head_dim, self.ceilings, sms)
        if not prefill.requests and decode.new_tokens == decode.requests:
            return decode_attention_s(
                self._decode, decode.requests, decode.context_tokens, *sizes, padded=decode.padded_rows
            )
        seconds, e = 0.0, self._prefill
        for part in (prefill, decode):
            if part.requests:
                sums = (part.requests, part.new_tokens, part.context_tokens, part.pairs, part.causal_pairs)
                seconds += prefill_attention_s(e, *sums, *sizes)
        return seconds - e.launch_s if prefill.requests and decode.requests else seconds

    def _communication_s(self, rows: int, logit_rows: int) -> float:
        """Two all-reduces per layer over a ring, one gathering of logits.

        Source: Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms", JPDC 69, 2009: ``2 (p - 1) / p`` of them.
        """
        shard, costs, others = self._shard, self.costs, self.tp_size - 1
        element = BYTES_PER_ELEMENT[shard.weight_precision]
        reduced = 2 * shard.num_layers * rows * shard.hidden_size * element * 2 * others / self.tp_size
        gathered = logit_rows * shard.vocab_size * element * others
        collectives = 2 * shard.num_layers + (1 if logit_rows else 0)
        return collectives * costs.allreduce_s + (reduced + gathered) / costs.link_bytes_per_s
