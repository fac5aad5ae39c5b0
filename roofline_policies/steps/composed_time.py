"""Seconds of the layers of a ComposedShape: experts, and latent attention around its kernels. O(1) each.

No table covers them. Experts are priced as the fitted matrix product they are most like; attention to latents by a
roofline with shares of the ceilings that ``StepCosts`` states.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil

from roofline_policies.device.hardware import Ceilings
from roofline_policies.model.batch import BatchShape
from roofline_policies.model.composed import ComposedShape
from roofline_policies.model.mla import LatentAttention
from roofline_policies.steps.costs import StepCosts
from roofline_policies.steps.efficiency import GemmEfficiency
from roofline_policies.steps.kernel_time import gemm_s
from roofline_policies.work import BYTES_PER_ELEMENT

_WIDE = 2  # bytes of an element of activations: 16 bit


def grouped_gemm_s(e: GemmEfficiency, groups: float, m: int, n: int, k: int, ceilings: Ceilings, sms: int) -> float:
    """Seconds of ``groups`` products ``(m x k) (k x n)`` in one launch, each with operands of its own.

    Priced as one product of their weights side by side, which has the same tiles, weights and results; the rows that it
    would share, and that groups do not, are added at the bandwidth. groups: expected, so not always whole.
    """
    seconds = gemm_s(e, m, max(1, round(groups * n)), k, ceilings, sms)
    elements, element = max(0.0, groups - 1) * m * k, BYTES_PER_ELEMENT[e.precision]
    seconds += elements * element / (ceilings.bytes_per_s * e.memory)
    if e.quantise is not None:
        seconds += elements * (_WIDE + element) / (ceilings.bytes_per_s * e.quantise)
    return seconds


@dataclass(frozen=True, slots=True)
class ComposedLayers:
    """Times of all layers of a model, or of one rank's part of it, but for attention kernels that a table covers.

    shape: what the device holds. linear: the kernel of the layers' products, the router's included.
    latent: its attention, if that is latent. kernels: launches of all layers, attention's included.

    Experts get equally many rows each, as many as the expected number of active ones leaves; with rows spread unevenly
    some take one tile more.
    """

    shape: ComposedShape
    ceilings: Ceilings
    sms: int
    linear: GemmEfficiency
    costs: StepCosts
    latent: LatentAttention | None = field(init=False, repr=False, compare=False)
    kernels: int = field(init=False, repr=False, compare=False)
    _products: tuple[tuple[int, int, int], ...] = field(init=False, repr=False, compare=False)
    _small_row_s: float = field(init=False, repr=False, compare=False)
    _small_kernels_s: float = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        shape, costs = self.shape, self.costs
        hidden, inner, dense, sparse = (
            shape.hidden_size,
            shape.intermediate_size,
            shape.dense_layers,
            shape.expert_layers,
        )
        attention, experts = shape.attention, shape.experts
        latent = attention if isinstance(attention, LatentAttention) else None
        products = [(shape.num_layers, n, k) for n, k in attention.products(hidden)]
        # Elements that small kernels read and write: norms; rotary embedding and KV store; activations; expert sums.
        moved = shape.num_layers * (8 * hidden + attention.small_elements)
        if dense:
            products += [(dense, 2 * inner, hidden), (dense, hidden, inner)]
            moved += dense * 3 * inner
        grouped = 0
        if experts is not None and sparse:
            shared = experts.shared_width
            products += [(sparse, experts.count, hidden)]
            products += [(sparse, 2 * shared, hidden), (sparse, hidden, shared)] if shared else []
            moved += sparse * (experts.count + 3 * shared + experts.chosen * (3 * experts.width + hidden) + hidden)
            grouped = 2 * sparse
        multiplied = sum(count for count, _, _ in products) + grouped + 2 * shape.num_layers * (latent is not None)
        small = shape.num_layers * costs.small_kernels + sparse * costs.routing_kernels
        element = BYTES_PER_ELEMENT[shape.weight_precision]
        for name, value in {
            "latent": latent,
            "kernels": multiplied * (1 if self.linear.quantise is None else 2) + shape.num_layers + small,
            "_products": tuple(products),
            "_small_row_s": moved * element / (self.ceilings.bytes_per_s * costs.small_memory),
            "_small_kernels_s": small * costs.small_kernel_s,
        }.items():
            object.__setattr__(self, name, value)

    def linear_s(self, rows: int) -> float:
        """Matrix products of all layers, those with latents left out."""
        e, ceilings, sms = self.linear, self.ceilings, self.sms
        seconds = sum(count * gemm_s(e, rows, n, k, ceilings, sms) for count, n, k in self._products)
        return seconds + self.experts_s(rows)

    def experts_s(self, rows: int) -> float:
        """The routed experts of all layers: two grouped products over the expected number of active experts."""
        experts, sparse, hidden = self.shape.experts, self.shape.expert_layers, self.shape.hidden_size
        if experts is None or not sparse or rows < 1:
            return 0.0
        active = experts.active(rows)
        each = max(1, ceil(rows * experts.chosen / active - 1e-6))
        on = (self.ceilings, self.sms)
        up_s = grouped_gemm_s(self.linear, active, each, 2 * experts.width, hidden, *on)
        return sparse * (up_s + grouped_gemm_s(self.linear, active, each, hidden, experts.width, *on))

    def small_s(self, rows: int) -> float:
        """Everything of all layers that is no product and no attention."""
        return rows * self._small_row_s + self._small_kernels_s

    def absorbed_s(self, batch: BatchShape) -> float:
        """One layer's attention to latents without its launch: a roofline, between two products with every head's part.

        Kernels skip masked pairs, so causal ones are counted. Zero where attention is not latent.
        """
        latent = self.latent
        if latent is None:
            return 0.0
        rows, heads, width = batch.new_tokens + batch.padded_rows, latent.num_heads, latent.kv_lora_rank
        on = (self.ceilings, self.sms)
        seconds = grouped_gemm_s(self.linear, heads, rows, width, latent.qk_nope_head_dim, *on)
        seconds += grouped_gemm_s(self.linear, heads, rows, latent.v_head_dim, width, *on)
        per_head = 2 * width + latent.qk_rope_head_dim
        flops = 2 * heads * per_head * batch.causal_pairs
        moved = _WIDE * rows * heads * per_head
        moved += batch.context_tokens * latent.kv_elements * BYTES_PER_ELEMENT[self.shape.kv_precision]
        peak = self.ceilings.compute_ceiling(self.shape.weight_precision) * self.costs.latent_compute
        return seconds + max(flops / peak, moved / (self.ceilings.bytes_per_s * self.costs.latent_memory))

    def expanding_s(self, batch: BatchShape) -> float:
        """One layer's making of keys and values from latents. Zero where attention is not latent."""
        latent = self.latent
        if latent is None:
            return 0.0
        tokens, cached = batch.context_tokens + batch.padded_rows, batch.context_tokens - batch.new_tokens
        heads, nope, rope, value = latent.num_heads, latent.qk_nope_head_dim, latent.qk_rope_head_dim, latent.v_head_dim
        seconds = gemm_s(self.linear, tokens, heads * (nope + value), latent.kv_lora_rank, self.ceilings, self.sms)
        fetched = cached * latent.kv_elements * (_WIDE + BYTES_PER_ELEMENT[self.shape.kv_precision])
        copied = _WIDE * tokens * (heads * nope + rope + heads * (nope + rope))
        kernels = 2 if cached else 1
        moved_s = (fetched + copied) / (self.ceilings.bytes_per_s * self.costs.small_memory)
        return seconds + moved_s + kernels * self.costs.small_kernel_s
