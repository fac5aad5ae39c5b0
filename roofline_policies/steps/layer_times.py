"""Seconds of the layers of a model, part by part, but for softmax attention. O(1) each.

Every part is priced as the kernel that was fitted for it. Where a device's tables have none, experts are priced as the
product they are most like, and attention to latents and recurrent states by a roofline with shares of the ceilings that
``StepCosts`` states.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import ceil

from roofline_policies.device.hardware import Ceilings
from roofline_policies.model.batch import BatchShape
from roofline_policies.model.parts import Attention, ExpertLayers, Latent, Matrix, State
from roofline_policies.model.rank_model import RankModel
from roofline_policies.steps.costs import StepCosts
from roofline_policies.steps.kernels.coefficients import (
    DecodeEfficiency,
    ExpertEfficiency,
    GemmEfficiency,
    LatentProductEfficiency,
    PrefillEfficiency,
    StateEfficiency,
)
from roofline_policies.steps.kernels.expert_time import even_loads, experts_s, skewed_loads
from roofline_policies.steps.kernels.kernel_model import KernelModel
from roofline_policies.steps.kernels.kernel_time import ELEMENT_BYTES, gemm_s, latent_decode_s, latent_prefill_s
from roofline_policies.steps.kernels.latent_time import latent_product_s
from roofline_policies.steps.kernels.state_time import state_s
from roofline_policies.work import BYTES_PER_ELEMENT, Precision

_WIDE = 2  # bytes of an element of activations: 16 bit

Product = Matrix | ExpertLayers


def grouped_gemm_s(
    e: GemmEfficiency,
    groups: float,
    m: int,
    n: int,
    k: int,
    ceilings: Ceilings,
    sms: int,
    weight_bytes: float | None = None,
) -> float:
    """Seconds of ``groups`` products ``(m x k) (k x n)`` in one launch, each with operands of its own.

    Priced as one product of their weights side by side, which has the same tiles, weights and results; the rows that it
    would share, and that groups do not, are added at the bandwidth. groups: expected, so not always whole.
    weight_bytes: of all groups, see ``gemm_s``.
    """
    seconds = gemm_s(e, m, max(1, round(groups * n)), k, ceilings, sms, weight_bytes)
    elements, element = max(0.0, groups - 1) * m * k, ELEMENT_BYTES[e.precision]
    seconds += elements * element / (ceilings.bytes_per_s * e.memory)
    if e.quantise is not None:
        seconds += elements * (_WIDE + element) / (ceilings.bytes_per_s * e.quantise)
    return seconds


def small_row_elements(model: RankModel) -> int:
    """Elements that the small kernels of all layers read and write per row: norms, rotary embedding and KV store,
    activations, routing and the sums over chosen experts, states."""
    moved = 8 * model.layers * model.hidden_size
    moved += sum(one.count * _cached(one) for one in model.attention)
    moved += sum(one.count * one.sizes.small_elements for one in model.latent)
    moved += sum(3 * one.count * one.outputs // 2 for one in model.matrices if one.gated)
    for routed in model.experts:
        chosen, width = routed.experts.chosen * routed.share, routed.experts.width
        activated = 3 * width if routed.gated else 2 * width
        moved += round(routed.count * (routed.experts.count + chosen * (activated + routed.hidden) + routed.hidden))
    return moved


def _cached(one: Attention) -> int:
    return 2 * one.query_width + 3 * one.kv_heads * (one.qk_dim + one.v_dim)


@dataclass(frozen=True, slots=True)
class FittedLatent:
    """The kernels of attention to latents: of one new token per request, of many, and of the products around it."""

    one: DecodeEfficiency
    many: PrefillEfficiency | None
    product: LatentProductEfficiency


@dataclass(frozen=True, slots=True)
class LayerTimes:
    """Times of all layers of what one rank runs.

    on: the fitted kernels of the device. attention: the attention kernel's name. expert_skew: exponent of the power law
    that experts' loads follow, see ``skewed_loads``; None: rows choose alike.
    kernels: launches of all layers, attention's included.

    Experts get equally many rows each, as many as the expected number of active ones leaves; with rows spread unevenly
    some take one tile more.
    """

    model: RankModel
    on: KernelModel
    costs: StepCosts
    attention: str = "fa3"
    expert_skew: float | None = None
    kernels: int = field(init=False, repr=False, compare=False)
    _products: tuple[tuple[int, tuple[tuple[GemmEfficiency, int, int, int | None], ...]], ...] = field(
        init=False, repr=False, compare=False
    )
    _experts: tuple[tuple[GemmEfficiency, ExpertLayers, bool, ExpertEfficiency | None], ...] = field(
        init=False, repr=False, compare=False
    )
    _latent: tuple[tuple[GemmEfficiency, Latent, FittedLatent | None], ...] = field(
        init=False, repr=False, compare=False
    )
    _states: tuple[tuple[State, StateEfficiency | None, StateEfficiency | None], ...] = field(
        init=False, repr=False, compare=False
    )
    _small_row_s: float = field(init=False, repr=False, compare=False)
    _small_kernels_s: float = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        model, costs, on = self.model, self.costs, self.on
        alike: dict[int, list[tuple[GemmEfficiency, int, int, int | None]]] = {}
        launches = 0
        for one in model.matrices:
            e = on.nearest_gemm(one)
            alike.setdefault(one.count, []).append((e, one.outputs, one.inputs, own_bytes(one, e)))
            launches += one.count * (1 if e.quantise is None else 2)
        experts = []
        for routed in model.experts:
            e = on.nearest_gemm(routed)
            own = routed.expert_bytes != _expert_elements(routed) * ELEMENT_BYTES[e.precision]
            experts.append((e, routed, own, on.experts(routed)))
            launches += 2 * routed.count * (1 if e.quantise is None else 2)
        latent = []
        for one_latent in model.latent:
            e = on.nearest_gemm(Matrix(1, 1, 1, model.activations, 0) if not model.matrices else model.matrices[0])
            latent.append((e, one_latent, _fitted_latent(one_latent, on, self.attention)))
            launches += one_latent.count * (2 * (1 if e.quantise is None else 2) + 1)
        launches += sum(one.count for one in model.attention) + sum(one.count for one in model.states)
        small = model.layers * costs.small_kernels
        routing = sum(one.count for one in model.experts) * costs.routing_kernels
        # Fitted experts' times hold choosing them, sorting rows and adding up.
        estimated = replace(model, experts=tuple(routed for _, routed, _, fitted in experts if fitted is None))
        priced = small + sum(one.count for one in estimated.experts) * costs.routing_kernels
        moved = small_row_elements(estimated) * BYTES_PER_ELEMENT[model.activations]
        for name, value in {
            "kernels": launches + small + routing,
            "_products": tuple((count, tuple(ones)) for count, ones in alike.items()),
            "_experts": tuple(experts),
            "_latent": tuple(latent),
            "_states": tuple(
                (one, on.state(one.kind, "prefill"), on.state(one.kind, "decode")) for one in model.states
            ),
            "_small_row_s": moved / (on.ceilings.bytes_per_s * costs.small_memory),
            "_small_kernels_s": priced * costs.small_kernel_s,
        }.items():
            object.__setattr__(self, name, value)

    @property
    def ceilings(self) -> Ceilings:
        return self.on.ceilings

    @property
    def sms(self) -> int:
        return self.on.efficiency.sms

    @property
    def latent_kernels(self) -> tuple[DecodeEfficiency, ...]:
        """The kernels of absorbed attention of one token."""
        return tuple(fitted.one for _, _, fitted in self._latent if fitted is not None)

    @property
    def absorbed_launches(self) -> bool:
        """Whether ``absorbed_s`` holds the launches of its attention kernels."""
        return any(fitted is not None for _, _, fitted in self._latent)

    def linear_s(self, rows: int) -> float:
        """Matrix products of all layers, experts' too, those with latents left out."""
        ceilings, sms = self.ceilings, self.sms
        seconds = 0.0
        for count, ones in self._products:
            seconds += sum(gemm_s(e, rows, n, k, ceilings, sms, stored) for e, n, k, stored in ones) * count
        return seconds + self.experts_s(rows)

    def experts_s(self, rows: int) -> float:
        """The routed experts of all layers, over the expected number of active ones; where none were measured, as two
        grouped products."""
        seconds = 0.0
        for e, routed, own, fitted in self._experts:
            if rows < 1:
                continue
            experts, on = routed.experts, (self.ceilings, self.sms)
            active = routed.active(rows)
            if fitted is not None:
                loads = even_loads(rows * experts.chosen * routed.share, active)
                if self.expert_skew is not None and routed.held is None:
                    loads = skewed_loads(rows, experts.count, experts.chosen, self.expert_skew)
                shape = (routed.hidden, routed.up_width, experts.width, routed.expert_bytes)
                seconds += routed.count * experts_s(fitted, rows, loads, *shape, *on)
                continue
            each = max(1, ceil(rows * experts.chosen * routed.share / active - 1e-6))
            parts = ((routed.up_width, routed.hidden), (routed.hidden, experts.width))
            elements = _expert_elements(routed)
            for n, k in parts:
                stored = active * routed.expert_bytes * n * k / elements if own else None
                seconds += routed.count * grouped_gemm_s(e, active, each, n, k, *on, stored)
        return seconds

    def small_s(self, rows: int) -> float:
        """Everything of all layers that is no product and no attention."""
        return rows * self._small_row_s + self._small_kernels_s

    def states_s(self, batch: BatchShape) -> float:
        """Recurrent states of all layers; of kinds that were not measured a roofline over what they compute, and read
        and write once a request."""
        seconds = 0.0
        rows = batch.new_tokens + batch.padded_rows
        peak = self.ceilings.compute_ceiling(self.model.activations) * self.costs.latent_compute
        bandwidth = self.ceilings.bytes_per_s * self.costs.latent_memory
        many = batch.new_tokens > batch.requests
        for one, prefill, decode in self._states:
            fitted = prefill if many else decode
            if fitted is not None and batch.requests:
                # One launch in the tables is that of queries, keys and values, which are parts of their own here.
                parts = 3 if one.kind == "kda_conv" else 1
                if parts > 1:
                    fitted = replace(fitted, launch_s=fitted.launch_s / parts)
                seconds += one.count * state_s(fitted, one, batch.requests, rows, self.ceilings)
                continue
            moved = 2 * one.state_bytes * batch.requests + 2 * _WIDE * one.row_elements * rows
            seconds += one.count * max(one.row_flops * rows / peak, moved / bandwidth)
        return seconds

    def absorbed_s(self, batch: BatchShape) -> float:
        """Attention to latents of all layers, between two products with every head's part.

        Where none was measured a roofline without its launches, see ``absorbed_launches``. Kernels skip masked pairs,
        so causal ones are counted. Zero where attention is not latent.
        """
        seconds = 0.0
        for e, one, fitted in self._latent:
            if fitted is not None and batch.requests:
                seconds += one.count * self._absorbed_s(one, fitted, batch)
                continue
            latent = one.sizes
            rows, heads, width = batch.new_tokens + batch.padded_rows, latent.num_heads, latent.kv_lora_rank
            on = (self.ceilings, self.sms)
            each = grouped_gemm_s(e, heads, rows, width, latent.qk_nope_head_dim, *on)
            each += grouped_gemm_s(e, heads, rows, latent.v_head_dim, width, *on)
            per_head = 2 * width + latent.qk_rope_head_dim
            pairs, context = (batch.causal_pairs, batch.context_tokens)
            if one.selected is not None:
                pairs, context = batch.window_pairs, batch.window_tokens
            flops = 2 * heads * per_head * pairs
            moved = _WIDE * rows * heads * per_head + context * one.kv_bytes
            peak = self.ceilings.compute_ceiling(self.model.activations) * self.costs.latent_compute
            each += max(flops / peak, moved / (self.ceilings.bytes_per_s * self.costs.latent_memory))
            seconds += one.count * each
        return seconds

    def _absorbed_s(self, one: Latent, fitted: FittedLatent, batch: BatchShape) -> float:
        """Of one layer."""
        latent, on = one.sizes, (self.ceilings, self.sms)
        rows, heads, width = batch.new_tokens + batch.padded_rows, latent.num_heads, latent.kv_lora_rank
        seconds = latent_product_s(fitted.product, heads, rows, width, latent.qk_nope_head_dim, *on)
        seconds += latent_product_s(fitted.product, heads, rows, latent.v_head_dim, width, *on)
        sums = (batch.context_tokens, batch.pairs, batch.causal_pairs)
        if one.selected is not None:
            sums = (batch.window_tokens, min(batch.pairs, batch.new_tokens * one.selected), batch.window_pairs)
        shape = (heads, width + latent.qk_rope_head_dim, width)
        if batch.new_tokens == batch.requests or fitted.many is None:
            context = sums[0] if batch.new_tokens == batch.requests else sums[2]
            requests = batch.requests if batch.new_tokens == batch.requests else batch.new_tokens
            return seconds + latent_decode_s(fitted.one, requests, context, *shape, *on, padded=batch.padded_rows)
        return seconds + latent_prefill_s(fitted.many, batch.requests, batch.new_tokens, *sums, *shape, *on)

    def expanding_s(self, batch: BatchShape) -> float:
        """Making keys and values from latents in all layers. Zero where attention is not latent."""
        seconds = 0.0
        for e, one, _ in self._latent:
            latent = one.sizes
            tokens, cached = batch.context_tokens + batch.padded_rows, batch.context_tokens - batch.new_tokens
            heads, nope, rope = latent.num_heads, latent.qk_nope_head_dim, latent.qk_rope_head_dim
            made = heads * (nope + latent.v_head_dim)
            each = gemm_s(e, tokens, made, latent.kv_lora_rank, self.ceilings, self.sms)
            fetched = cached * (latent.kv_elements * _WIDE + one.kv_bytes)
            copied = _WIDE * tokens * (heads * nope + rope + heads * (nope + rope))
            kernels = 2 if cached else 1
            each += (fetched + copied) / (self.ceilings.bytes_per_s * self.costs.small_memory)
            seconds += one.count * (each + kernels * self.costs.small_kernel_s)
        return seconds


def _expert_elements(routed: ExpertLayers) -> int:
    return routed.hidden * (routed.up_width + routed.experts.width)


def own_bytes(one: Matrix, e: GemmEfficiency) -> int | None:
    """The bytes of a matrix where they are not those of the precision that it is multiplied in."""
    alike = one.outputs * one.inputs * ELEMENT_BYTES[e.precision]
    return None if one.weight_bytes == alike else one.weight_bytes


def _fitted_latent(one: Latent, on: KernelModel, attention: str) -> FittedLatent | None:
    """None where attention of one token, or the products, were not measured."""
    # Eight bits where the matrix is stored in them.
    precision = Precision.FP8 if one.weight_bytes <= _EIGHT_BIT * one.sizes.head_elements else Precision.BF16
    decode, product = on.latent_decode(attention, one.kv_precision), on.latent_product(precision)
    if decode is None or product is None:
        return None
    return FittedLatent(decode, on.latent_prefill(attention, one.kv_precision), product)


_EIGHT_BIT = 1.1
"""Bytes of an element up to which it has eight bits, with the scale of a block of them."""
