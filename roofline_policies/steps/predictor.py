"""Predicts the seconds of one scheduler iteration from what it runs, before it is run.

    step = max(sum over kernels that cannot overlap of their times, host time to launch them, roofline of the step)
           + exposed host time

Kernel times are rooflines times measured efficiencies (``kernel_time``); what no table covers (small kernels, launches,
collectives) is a stated parameter of ``StepCosts``. What is left is for an online correction to learn. Layers of
experts and latent attention are priced in ``composed_time``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from roofline_policies.device.hardware import Ceilings, from_catalogue
from roofline_policies.errors import InputError
from roofline_policies.model.backends import backends
from roofline_policies.model.batch import BatchShape, graph_size
from roofline_policies.model.composed import Shape
from roofline_policies.model.dense import ModelShape
from roofline_policies.model.gqa import GroupedAttention
from roofline_policies.model.mla import Form
from roofline_policies.steps.composed_time import ComposedLayers
from roofline_policies.steps.costs import DEFAULT_COSTS, StepCosts
from roofline_policies.steps.efficiency import (
    DecodeEfficiency,
    Efficiency,
    GemmEfficiency,
    PrefillEfficiency,
    load_efficiency,
)
from roofline_policies.steps.kernel_time import KernelModel, decode_attention_s, gemm_s, prefill_attention_s
from roofline_policies.steps.roofline_steps import RooflineSteps
from roofline_policies.work import BYTES_PER_ELEMENT

__all__ = ["EMPTY", "StepCosts", "StepPredictor", "StepTime"]

EMPTY = BatchShape()

LAYER, HEAD = 0, 1
REMEMBERED = 16384
"""Times of matrix products that a predictor keeps, by rows; about 2 MB."""


class StepTime(NamedTuple):
    """Seconds of one step by what takes them; the parts cannot overlap and add up to ``total_s``.

    linear_s: matrix products of the layers, experts' too. attention_s: attention kernels, and
        the products with latents. head_s: the output head.
    small_s: everything else on the device. communication_s: collectives between ranks.
    launch_s: what launching without a graph takes longer than the device. host_s: exposed host time.
    roof_s: what is missing to the roofline of the step's work, 0 where kernels are no faster than their ceilings.
    kernels: launches.
    """

    linear_s: float = 0.0
    attention_s: float = 0.0
    head_s: float = 0.0
    small_s: float = 0.0
    communication_s: float = 0.0
    launch_s: float = 0.0
    host_s: float = 0.0
    roof_s: float = 0.0
    kernels: int = 0

    @property
    def device_s(self) -> float:
        """Seconds that the device is busy."""
        return self.linear_s + self.attention_s + self.head_s + self.small_s + self.communication_s

    @property
    def total_s(self) -> float:
        return self.device_s + self.launch_s + self.host_s + self.roof_s


@dataclass(frozen=True, slots=True)
class StepPredictor:
    """Step times of a model on a device. O(1), 10 to 20 us per prediction of a dense model; immutable.

    model: the whole model; each of ``tp_size`` ranks runs its shard, at the same time.
    ceilings, efficiency: of the device. Other ceilings (a live clock, a sibling device) need a new predictor.
    attention: the attention kernel, ``fa3`` or ``triton``. linear: kernel of the layers' products where that is not
        the weights' own precision, e.g. ``fp8`` or ``fp8_block``; the head keeps the weights' precision.
    captured: batch sizes with a CUDA graph, ascending; empty: every size has one of its own.
    costs: what is not fitted.

    Raises:
        InputError: the model cannot be split, or a kernel was not measured.
    """

    model: Shape
    ceilings: Ceilings
    efficiency: Efficiency
    attention: str = "fa3"
    linear: str | None = None
    tp_size: int = 1
    captured: Sequence[int] = ()
    costs: StepCosts = DEFAULT_COSTS
    _products: tuple[tuple[int, int], ...] = field(init=False, repr=False, compare=False)
    _shard: Shape = field(init=False, repr=False, compare=False)
    _heads: tuple[int, int, int] = field(init=False, repr=False, compare=False)
    _composed: ComposedLayers | None = field(init=False, repr=False, compare=False)
    _linear: GemmEfficiency = field(init=False, repr=False, compare=False)
    _head: GemmEfficiency = field(init=False, repr=False, compare=False)
    _decode: DecodeEfficiency = field(init=False, repr=False, compare=False)
    _prefill: PrefillEfficiency = field(init=False, repr=False, compare=False)
    _small_row_s: float = field(init=False, repr=False, compare=False)
    _kernels: int = field(init=False, repr=False, compare=False)
    _roof: RooflineSteps = field(init=False, repr=False, compare=False)
    _padded_row_flops: int = field(init=False, repr=False, compare=False)
    _products_s: dict[tuple[int, int], float] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if list(self.captured) != sorted(set(self.captured)) or any(size < 1 for size in self.captured):
            problem = "must be sizes above 0, ascending"
            raise InputError(problem, where="StepPredictor", key="captured", value=list(self.captured))
        # A shard of 1 pads the vocabulary as SGLang does; a model that is not split is taken as it is.
        shard = self.model.shard(self.tp_size) if self.tp_size != 1 else self.model
        kernels = KernelModel(self.ceilings, self.efficiency)
        precision, element = shard.weight_precision, BYTES_PER_ELEMENT[shard.weight_precision]
        linear = kernels.gemm(self.linear or precision)
        products: tuple[tuple[int, int], ...] = ()
        moved, composed, kv_precision = 0, None, shard.kv_precision
        if isinstance(shard, ModelShape):
            hidden, inner = shard.hidden_size, shard.intermediate_size
            heads = (shard.num_heads, shard.num_kv_heads, shard.head_dim)
            query, keys = shard.num_heads * shard.head_dim, shard.num_kv_heads * shard.head_dim
            products = ((query + 2 * keys, hidden), (hidden, query), (2 * inner, hidden), (hidden, inner))
            # Elements of a row that a layer's small kernels read and write: norms, rotary embedding, KV store,
            # activation.
            moved = 8 * hidden + 2 * (query + keys) + 4 * keys + 3 * inner
            in_layer = 5 + self.costs.small_kernels + (4 if linear.quantise is not None else 0)
            in_layers = shard.num_layers * in_layer
        else:
            attention = shard.attention
            if isinstance(attention, GroupedAttention):
                heads = (attention.num_heads, attention.num_kv_heads, attention.head_dim)
            else:  # the expanded form, whose keys and values differ in width and are made in the weights' precision
                heads = (attention.num_heads, attention.num_heads, attention.expanded_width)
                kv_precision = precision
            composed = ComposedLayers(shard, self.ceilings, self.efficiency.sms, linear, self.costs)
            in_layers = composed.kernels
        decoding = backends(shard, self.attention).decode
        for name, value in {
            "_roof": RooflineSteps(shard, self.ceilings, linear.precision if self.linear else None),
            "_padded_row_flops": decoding.decode_flops((), 1),
            "_shard": shard,
            "_products": products,
            "_heads": heads,
            "_composed": composed,
            "_linear": linear,
            "_head": kernels.gemm(precision),
            "_decode": kernels.decode(self.attention, kv_precision, heads[2]),
            "_prefill": kernels.prefill(self.attention, kv_precision, heads[2]),
            "_small_row_s": moved * element / (self.ceilings.bytes_per_s * self.costs.small_memory),
            "_kernels": in_layers + 2 * shard.num_layers * (self.tp_size > 1) + self.costs.head_kernels + 1,
        }.items():
            object.__setattr__(self, name, value)

    @classmethod
    def for_device(cls, model: Shape, device: str, **options: object) -> StepPredictor:
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
            captured size; beyond the last one it runs without a graph, as SGLang does. Without a graph it is never
            cheaper than the replay, which beyond the last size is that of sizes that go on at their last distance.
        decode: one token per request, or several of them in a verify step of speculative decoding, where each request
            that pads it has as many.
        """
        if not prefill.requests + decode.requests:
            return StepTime()
        if prefill.requests or decode.padded_rows or not self.captured:
            return self._step(prefill, decode, graph)
        size = graph_size(self.captured, decode.requests)
        replay = self._step(prefill, decode.padded_to(size, self._padded_row_flops), True)
        if graph and decode.requests <= self.captured[-1]:
            return replay
        eager = self._step(prefill, decode, False)
        missing_s = max(0.0, replay.total_s - eager.total_s)
        return eager._replace(launch_s=eager.launch_s + missing_s) if missing_s else eager

    def _step(self, prefill: BatchShape, decode: BatchShape, graph: bool) -> StepTime:
        batch = prefill + decode
        rows = batch.new_tokens + batch.padded_rows
        logit_rows = batch.logit_rows + batch.padded_logit_rows
        shard, costs = self._shard, self.costs
        head_s = 0.0
        if logit_rows:
            head_s = self._product_s(HEAD, logit_rows)
        if self._composed is None:
            layers = shard.num_layers
            linear_s = self._product_s(LAYER, rows) * layers
            attention_s = self._attention_s(prefill, decode) * layers
            small_s = (rows * self._small_row_s + costs.small_kernels * costs.small_kernel_s) * layers
        else:
            linear_s, small_s = self._composed.linear_s(rows), self._composed.small_s(rows)
            attention_s = self._composed_attention_s(prefill, decode, graph) * shard.num_layers
        time = StepTime(
            linear_s,
            attention_s,
            head_s,
            small_s + costs.head_kernels * costs.small_kernel_s,
            self._communication_s(rows, logit_rows) if self.tp_size > 1 else 0.0,
            host_s=costs.host_s,
            kernels=self._kernels,
        )
        roof_s = max(0.0, self._roof.bound_s(batch, self._form(prefill, batch, graph)) - time.device_s)
        if roof_s:
            time = time._replace(roof_s=roof_s)
        if graph:
            return time
        return time._replace(launch_s=max(0.0, self._kernels * costs.eager_kernel_s - time.device_s - roof_s))

    def _product_s(self, place: int, rows: int) -> float:
        """Matrix products of one dense layer, or of the head. Remembered: batches are padded to few sizes."""
        known = self._products_s.get((place, rows))
        if known is not None:
            return known
        ceilings, sms = self.ceilings, self.efficiency.sms
        if place == HEAD:
            seconds = gemm_s(self._head, rows, self._shard.vocab_size, self._shard.hidden_size, ceilings, sms)
        else:
            seconds = 0.0
            for n, k in self._products:
                seconds += gemm_s(self._linear, rows, n, k, ceilings, sms)
        if len(self._products_s) >= REMEMBERED:
            self._products_s.clear()
        self._products_s[place, rows] = seconds
        return seconds

    def _attention_s(self, prefill: BatchShape, decode: BatchShape) -> float:
        """Of one layer. Rows that only pad a graph are left out of prefill kernels."""
        sizes = (*self._heads, self.ceilings, self.efficiency.sms)
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

    def _form(self, prefill: BatchShape, batch: BatchShape, graph: bool) -> Form | None:
        """Of latent attention, None where there is none."""
        latent = None if self._composed is None else self._composed.latent
        if latent is None:
            return None
        absorbed = not prefill.requests or graph
        return Form.ABSORBED if absorbed else latent.prefill_form(batch.context_tokens - batch.new_tokens)

    def _composed_attention_s(self, prefill: BatchShape, decode: BatchShape, graph: bool) -> float:
        """Of one layer. Latent attention is absorbed in decode, in graphs, and where SGLang does so in prefill."""
        composed = self._composed
        if composed is None or composed.latent is None:
            return self._attention_s(prefill, decode)
        batch = prefill + decode
        if self._form(prefill, batch, graph) is Form.ABSORBED:
            return self._decode.launch_s + composed.absorbed_s(batch)
        return composed.expanding_s(batch) + self._attention_s(prefill, decode)

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
