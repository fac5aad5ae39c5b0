"""Seconds of the layers of a model, part by part, but for attention kernels that a table covers. O(1) each.

Matrix products are priced as the fitted ones; experts as the product they are most like; attention to latents and
recurrent states by a roofline with shares of the ceilings that ``StepCosts`` states. No table covers those.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil

from roofline_policies.device.hardware import Ceilings
from roofline_policies.model.batch import BatchShape
from roofline_policies.model.parts import Attention, ExpertLayers, Latent, Matrix
from roofline_policies.model.rank_model import RankModel
from roofline_policies.steps.costs import StepCosts
from roofline_policies.steps.efficiency import GemmEfficiency
from roofline_policies.steps.kernel_time import gemm_s
from roofline_policies.work import BYTES_PER_ELEMENT

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
    elements, element = max(0.0, groups - 1) * m * k, BYTES_PER_ELEMENT[e.precision]
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
class LayerTimes:
    """Times of all layers of what one rank runs.

    gemm: the fitted kernel of a part's products, and the bytes of its weights where the kernel does not tell.
    kernels: launches of all layers, attention's included.

    Experts get equally many rows each, as many as the expected number of active ones leaves; with rows spread unevenly
    some take one tile more.
    """

    model: RankModel
    ceilings: Ceilings
    sms: int
    gemm: Callable[[Product], GemmEfficiency]
    costs: StepCosts
    kernels: int = field(init=False, repr=False, compare=False)
    _products: tuple[tuple[int, tuple[tuple[GemmEfficiency, int, int, int | None], ...]], ...] = field(
        init=False, repr=False, compare=False
    )
    _experts: tuple[tuple[GemmEfficiency, ExpertLayers, bool], ...] = field(init=False, repr=False, compare=False)
    _latent: tuple[tuple[GemmEfficiency, Latent], ...] = field(init=False, repr=False, compare=False)
    _small_row_s: float = field(init=False, repr=False, compare=False)
    _small_kernels_s: float = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        model, costs = self.model, self.costs
        alike: dict[int, list[tuple[GemmEfficiency, int, int, int | None]]] = {}
        launches = 0
        for one in model.matrices:
            e = self.gemm(one)
            alike.setdefault(one.count, []).append((e, one.outputs, one.inputs, own_bytes(one, e)))
            launches += one.count * (1 if e.quantise is None else 2)
        experts = []
        for routed in model.experts:
            e = self.gemm(routed)
            own = routed.expert_bytes != _expert_elements(routed) * BYTES_PER_ELEMENT[e.precision]
            experts.append((e, routed, own))
            launches += 2 * routed.count * (1 if e.quantise is None else 2)
        latent = []
        for one_latent in model.latent:
            e = self.gemm(Matrix(1, 1, 1, model.activations, 0)) if not model.matrices else self.gemm(model.matrices[0])
            latent.append((e, one_latent))
            launches += one_latent.count * (2 * (1 if e.quantise is None else 2) + 1)
        launches += sum(one.count for one in model.attention) + sum(one.count for one in model.states)
        small = model.layers * costs.small_kernels + sum(one.count for one in model.experts) * costs.routing_kernels
        element = BYTES_PER_ELEMENT[model.activations]
        moved = small_row_elements(model) * element
        for name, value in {
            "kernels": launches + small,
            "_products": tuple((count, tuple(ones)) for count, ones in alike.items()),
            "_experts": tuple(experts),
            "_latent": tuple(latent),
            "_small_row_s": moved / (self.ceilings.bytes_per_s * costs.small_memory),
            "_small_kernels_s": small * costs.small_kernel_s,
        }.items():
            object.__setattr__(self, name, value)

    def linear_s(self, rows: int) -> float:
        """Matrix products of all layers, experts' too, those with latents left out."""
        ceilings, sms = self.ceilings, self.sms
        seconds = 0.0
        for count, ones in self._products:
            seconds += sum(gemm_s(e, rows, n, k, ceilings, sms, stored) for e, n, k, stored in ones) * count
        return seconds + self.experts_s(rows)

    def experts_s(self, rows: int) -> float:
        """The routed experts of all layers: two grouped products over the expected number of active experts."""
        seconds = 0.0
        for e, routed, own in self._experts:
            if rows < 1:
                continue
            experts, on = routed.experts, (self.ceilings, self.sms)
            active = routed.active(rows)
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
        """Recurrent states of all layers: a roofline over what they compute, and read and write once a request."""
        seconds = 0.0
        rows = batch.new_tokens + batch.padded_rows
        peak = self.ceilings.compute_ceiling(self.model.activations) * self.costs.latent_compute
        bandwidth = self.ceilings.bytes_per_s * self.costs.latent_memory
        for one in self.model.states:
            moved = 2 * one.state_bytes * batch.requests + 2 * _WIDE * one.row_elements * rows
            seconds += one.count * max(one.row_flops * rows / peak, moved / bandwidth)
        return seconds

    def absorbed_s(self, batch: BatchShape) -> float:
        """Attention to latents of all layers without its launches: a roofline, between two products with every head's
        part.

        Kernels skip masked pairs, so causal ones are counted. Zero where attention is not latent.
        """
        seconds = 0.0
        for e, one in self._latent:
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

    def expanding_s(self, batch: BatchShape) -> float:
        """Making keys and values from latents in all layers. Zero where attention is not latent."""
        seconds = 0.0
        for e, one in self._latent:
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
    alike = one.outputs * one.inputs * BYTES_PER_ELEMENT[e.precision]
    return None if one.weight_bytes == alike else one.weight_bytes
