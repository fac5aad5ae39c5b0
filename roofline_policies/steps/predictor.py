"""Predicts the seconds of one scheduler iteration from what it runs, before it is run.

    step = max(sum over kernels that cannot overlap of their times, host time to launch them, roofline of the step)
           + exposed host time

Kernel times are rooflines times measured efficiencies (``kernel_time`` and its neighbours); what no table covers (small
kernels, launches; on a device without their tables, collectives and more) is a stated parameter of ``StepCosts``. What
is left is for an online correction to learn.
Layers are priced in ``layer_times``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from roofline_policies.device.hardware import Ceilings, from_catalogue
from roofline_policies.errors import InputError
from roofline_policies.model.backends import backends
from roofline_policies.model.batch import BatchShape, graph_size
from roofline_policies.model.mla import Form, LatentAttention
from roofline_policies.model.parts import Attention, Latent, Matrix
from roofline_policies.model.rank_model import RankModel
from roofline_policies.model.tensor_parallel import check_ranks
from roofline_policies.steps.costs import DEFAULT_COSTS, StepCosts
from roofline_policies.steps.efficiency import (
    CollectiveEfficiency,
    DecodeEfficiency,
    Efficiency,
    GemmEfficiency,
    PrefillEfficiency,
    load_efficiency,
)
from roofline_policies.steps.kernels.collective_time import ALL_GATHER, ALL_REDUCE, message_s, of_ranks
from roofline_policies.steps.kernels.kernel_model import KernelModel, stand_in
from roofline_policies.steps.kernels.kernel_time import (
    decode_attention_s,
    gemm_s,
    latent_prefill_s,
    prefill_attention_s,
)
from roofline_policies.steps.layer_times import LayerTimes, own_bytes
from roofline_policies.steps.roofline_steps import RooflineSteps
from roofline_policies.work import BYTES_PER_ELEMENT, Precision

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

    model: what one rank runs. tp_size: ranks that run it together. ceilings, efficiency: of the device. Other ceilings
        (a live clock, a sibling device) need a new predictor.
    attention: the attention kernel of steps with prompts by SGLang's name; one that was not measured on the device is
        priced as the nearest that was, see ``stand_ins``. decode_attention: that of the others; None: the same.
        expert_skew: see ``LayerTimes``. linear: kernel of the layers' products where that
        is not the model's own, e.g. ``fp8`` or ``fp8_block``; the head keeps its precision. A product that was not
        measured in its precision is priced with the nearest that was, and the bytes of its own weights.
    captured: batch sizes with a CUDA graph, ascending; empty: every size has one of its own.
    replayed_rows: most rows of a step with prompts that replays a graph, asked or not; 0: none does.
    costs: what is not fitted. stand_ins: which kernels stand in for others, one sentence each.

    Raises:
        InputError: SGLang has no such attention kernel, ``linear`` was not measured, or ``tp_size`` is below one.
    """

    model: RankModel
    ceilings: Ceilings
    efficiency: Efficiency
    attention: str = "fa3"
    decode_attention: str | None = None
    linear: str | None = None
    tp_size: int = 1
    captured: Sequence[int] = ()
    replayed_rows: int = 0
    costs: StepCosts = DEFAULT_COSTS
    expert_skew: float | None = None
    stand_ins: tuple[str, ...] = field(init=False, repr=False, compare=False)
    _layers: LayerTimes = field(init=False, repr=False, compare=False)
    _attention: tuple[_Kernel, ...] = field(init=False, repr=False, compare=False)
    _head: tuple[GemmEfficiency, Matrix] | None = field(init=False, repr=False, compare=False)
    _collectives: tuple[tuple[CollectiveEfficiency, ...], ...] = field(init=False, repr=False, compare=False)
    _kernels: int = field(init=False, repr=False, compare=False)
    _roof: RooflineSteps = field(init=False, repr=False, compare=False)
    _padded_row_flops: tuple[int, int] = field(init=False, repr=False, compare=False)
    _products_s: dict[tuple[int, int], float] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if list(self.captured) != sorted(set(self.captured)) or any(size < 1 for size in self.captured):
            problem = "must be sizes above 0, ascending"
            raise InputError(problem, where="StepPredictor", key="captured", value=list(self.captured))
        check_ranks(self.tp_size)
        kernels = KernelModel(self.ceilings, self.efficiency)
        model = self.model
        if self.linear is not None:
            model = model.with_products(kernels.gemm(self.linear).precision, self.linear)
        head = () if model.head is None else (model.head,)
        measured = sorted({kernels.nearest_gemm(one).precision for one in (*model.matrices, *model.experts, *head)})
        ceilings = self.ceilings.covering(*model.precisions, *measured)
        layers = LayerTimes(
            model,
            KernelModel(ceilings, self.efficiency),
            self.costs,
            self.decode_attention or self.attention,
            self.expert_skew,
        )
        names = (self.attention, self.decode_attention or self.attention)
        attention = [_kernel(one, kernels, *names) for one in model.attention]
        attention += [_expanded(one, kernels, *names, model.activations) for one in model.latent]
        named = backends(model, *names)
        for name, value in {
            "ceilings": ceilings,
            "stand_ins": _stand_ins(attention, layers, names, self.tp_size, self.efficiency),
            "_collectives": tuple(
                of_ranks(self.efficiency.collectives, one, self.tp_size) for one in (ALL_REDUCE, ALL_GATHER)
            ),
            "_roof": RooflineSteps(model, ceilings),
            "_padded_row_flops": (
                named.decode.decode_flops((), 1),
                named.windowed.decode.decode_flops((), 1) if named.windowed is not None else 0,
            ),
            "_layers": layers,
            "_attention": tuple(attention),
            "_head": (kernels.nearest_gemm(model.head), model.head) if model.head is not None else None,
            "_kernels": layers.kernels + 2 * model.layers * (self.tp_size > 1) + self.costs.head_kernels + 1,
        }.items():
            object.__setattr__(self, name, value)

    @classmethod
    def for_device(cls, model: RankModel, device: str, **options: object) -> StepPredictor:
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
        if prefill.requests and prefill.new_tokens + decode.new_tokens <= self.replayed_rows:
            graph = True
        if prefill.requests or decode.padded_rows or not self.captured:
            return self._step(prefill, decode, graph)
        size = graph_size(self.captured, decode.requests)
        replay = self._step(prefill, decode.padded_to(size, *self._padded_row_flops), True)
        if graph and decode.requests <= self.captured[-1]:
            return replay
        eager = self._step(prefill, decode, False)
        missing_s = max(0.0, replay.total_s - eager.total_s)
        return eager._replace(launch_s=eager.launch_s + missing_s) if missing_s else eager

    def _step(self, prefill: BatchShape, decode: BatchShape, graph: bool) -> StepTime:
        window = self.model.window
        if window is not None:
            prefill, decode = (one if one.window_tokens else one.within(window) for one in (prefill, decode))
        batch = decode if not prefill.requests else prefill if not decode.requests else prefill + decode
        rows = batch.new_tokens + batch.padded_rows
        form = self._form(prefill, batch, graph) if self.model.latent else None
        logit_rows = batch.logit_rows + batch.padded_logit_rows
        layers, costs = self._layers, self.costs
        attention_s = self._attention_s(prefill, decode, batch, form)
        if not prefill.requests:
            attention_s *= 1 + costs.decode_attention
        time = StepTime(
            self._product_s(LAYER, rows),
            attention_s,
            self._product_s(HEAD, logit_rows) if logit_rows else 0.0,
            layers.small_s(rows) + costs.head_kernels * costs.small_kernel_s,
            self._communication_s(rows, logit_rows) if self.tp_size > 1 else 0.0,
            host_s=costs.host_s + (0.0 if prefill.requests else costs.host_request_s * decode.requests),
            kernels=self._kernels,
        )
        roof_s = max(0.0, self._roof.bound_s(batch, form) - time.device_s)
        if roof_s:
            time = time._replace(roof_s=roof_s)
        if graph:
            return time
        launch_s = max(0.0, self._kernels * costs.eager_kernel_s - time.device_s - roof_s)
        if prefill.requests:
            launch_s += self._kernels * costs.eager_gap_s
        return time._replace(launch_s=launch_s)

    def _product_s(self, place: int, rows: int) -> float:
        """Matrix products of the layers, or of the head. Remembered: batches are padded to few sizes."""
        known = self._products_s.get((place, rows))
        if known is not None:
            return known
        seconds = 0.0
        if place == LAYER:
            seconds = self._layers.linear_s(rows)
        elif self._head is not None:
            e, head = self._head
            stored = own_bytes(head, e)
            seconds = gemm_s(e, rows, head.outputs, head.inputs, self.ceilings, self.efficiency.sms, stored)
        if len(self._products_s) >= REMEMBERED:
            self._products_s.clear()
        self._products_s[place, rows] = seconds
        return seconds

    def _attention_s(self, prefill: BatchShape, decode: BatchShape, batch: BatchShape, form: Form | None) -> float:
        """Of all layers. batch: both parts. form: of latent attention."""
        seconds = self._layers.states_s(batch) if self.model.states else 0.0
        absorbed = form is Form.ABSORBED
        if self.model.latent:
            seconds += self._layers.absorbed_s(batch) if absorbed else self._layers.expanding_s(batch)
        for kernel in self._attention:
            if kernel.expanded and absorbed:
                if not self._layers.absorbed_launches:
                    seconds += kernel.count * kernel.decode.launch_s
            else:
                seconds += kernel.count * self._kernel_s(kernel, prefill, decode)
        return seconds

    def _kernel_s(self, kernel: _Kernel, prefill: BatchShape, decode: BatchShape) -> float:
        """Of one layer. Rows that only pad a graph are left out of prefill kernels."""
        sizes = (kernel.heads, kernel.kv_heads, kernel.head_dim, self.ceilings, self.efficiency.sms)
        if not prefill.requests and decode.new_tokens == decode.requests:
            context = decode.context_tokens if kernel.window is None else decode.window_tokens
            return decode_attention_s(kernel.decode, decode.requests, context, *sizes, padded=decode.padded_rows)
        seconds, e = 0.0, kernel.prefill
        for part in (prefill, decode):
            if not part.requests:
                continue
            tokens, pairs, causal_pairs = part.context_tokens, part.pairs, part.causal_pairs
            if kernel.window is not None:  # which ends the longest row, and keys before it are not met
                tokens, causal_pairs = part.window_tokens, part.window_pairs
                pairs = min(pairs, part.new_tokens * (kernel.window + 1))
            sums = (part.requests, part.new_tokens, tokens, pairs, causal_pairs)
            if kernel.own_form is None:
                seconds += prefill_attention_s(e, *sums, *sizes)
            else:
                widths = (kernel.heads, *kernel.own_form)
                seconds += latent_prefill_s(e, *sums, *widths, *sizes[3:], kv_heads=kernel.heads)
        return seconds - e.launch_s if prefill.requests and decode.requests else seconds

    @staticmethod
    def _form(prefill: BatchShape, batch: BatchShape, graph: bool) -> Form:
        """Of latent attention: absorbed in decode, in graphs, and where SGLang does so in prefill."""
        absorbed = not prefill.requests or graph
        return Form.ABSORBED if absorbed else LatentAttention.prefill_form(batch.context_tokens - batch.new_tokens)

    def _communication_s(self, rows: int, logit_rows: int) -> float:
        """Two all-reduces per layer, one gathering of logits; as measured, else over a ring.

        Source: Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms", JPDC 69, 2009: ``2 (p - 1) / p`` of them.
        """
        model, costs, others = self.model, self.costs, self.tp_size - 1
        element = BYTES_PER_ELEMENT[model.activations]
        reduce, gather = self._collectives
        if reduce:
            seconds = 2 * model.layers * message_s(reduce, rows * model.hidden_size * element)
            logits = logit_rows * (model.head.outputs if model.head is not None else 0) * element * self.tp_size
            return seconds + message_s(gather, logits)
        reduced = 2 * model.layers * rows * model.hidden_size * element * 2 * others / self.tp_size
        gathered = logit_rows * (model.head.outputs if model.head is not None else 0) * element * others
        collectives = 2 * model.layers + (1 if logit_rows else 0)
        return collectives * costs.allreduce_s + (reduced + gathered) / costs.link_bytes_per_s


@dataclass(frozen=True, slots=True)
class _Kernel:
    """The fitted kernels of layers whose attention is alike. expanded: of latent attention in expanded form. own_form:
    widths of keys and values where ``prefill`` was fitted to that form."""

    count: int
    heads: int
    kv_heads: int
    head_dim: int
    decode: DecodeEfficiency
    prefill: PrefillEfficiency
    window: int | None = None
    expanded: bool = False
    own_form: tuple[int, int] | None = None


def _kernel(one: Attention, kernels: KernelModel, prefill: str, decode: str) -> _Kernel:
    dim = (one.qk_dim + one.v_dim + 1) // 2
    fitted = (kernels.decode(decode, one.kv_precision, dim), kernels.prefill(prefill, one.kv_precision, dim))
    return _Kernel(one.count, one.heads, one.kv_heads, dim, *fitted, window=one.window)


def _expanded(one: Latent, kernels: KernelModel, name: str, of_decode: str, made_in: Precision) -> _Kernel:
    """Keys and values of the expanded form differ in width and are made in the activations' precision."""
    sizes = one.sizes
    heads, dim = sizes.num_heads, sizes.expanded_width
    decode, own = kernels.decode(of_decode, made_in, dim), kernels.expanded_prefill(name)
    if own is not None:
        form = (sizes.qk_nope_head_dim + sizes.qk_rope_head_dim, sizes.v_head_dim)
        return _Kernel(one.count, heads, heads, dim, decode, own, expanded=True, own_form=form)
    return _Kernel(one.count, heads, heads, dim, decode, kernels.prefill(name, made_in, dim), expanded=True)


def _stand_ins(
    attention: Sequence[_Kernel], layers: LayerTimes, names: tuple[str, str], tp_size: int, efficiency: Efficiency
) -> tuple[str, ...]:
    """Sentences on kernels of attention and collectives that others stand in for."""
    told: list[str | None] = []
    prefill, decode = names
    for kernel in attention:
        what = "latent attention, expanded" if kernel.expanded else "attention"
        told += [stand_in(kernel.prefill, prefill, f"{what} of prompts")]
        if not kernel.expanded:
            told += [stand_in(kernel.decode, decode, "attention of one token")]
    told += [stand_in(e, decode, "latent attention, absorbed") for e in layers.latent_kernels]
    ranks = sorted({e.ranks for e in efficiency.collectives})
    if tp_size > 1 and ranks and tp_size not in ranks:
        told.append(f"collectives of {tp_size} ranks: those of the nearest of {ranks} stand in")
    return tuple(dict.fromkeys(one for one in told if one is not None))
