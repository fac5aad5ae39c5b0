"""The parts that a model is put together from, as one rank holds and runs them: matrices, attention, experts, states.

A part says how many layers have it, so a model of a hundred layers is a handful of parts. Sizes are elements unless the
name says bytes. Where the figures come from (a configuration in closed form, or modules that a server loaded) is the
rank model's business.
"""

from __future__ import annotations

from dataclasses import dataclass

from roofline_policies.model.mla import LatentAttention
from roofline_policies.model.moe import Experts
from roofline_policies.work import Precision, stored_bytes


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix that every row is multiplied with.

    count: how often a row meets one like it, once per layer that has it. outputs, inputs: its shape.
    stored: how many of them the memory holds where layers share weights or run more than once; None: as many as meet.
    precision: what the kernel multiplies in. weight_bytes: what one of them takes, scales and zero points included.
    gated: an activation multiplies one half of the outputs with the other. kernel: the name of the product's kernel
    where the precision does not name it, e.g. ``fp8_block``.
    """

    count: int
    outputs: int
    inputs: int
    precision: Precision
    weight_bytes: int
    gated: bool = False
    kernel: str | None = None
    stored: int | None = None

    @property
    def stored_bytes(self) -> int:
        """Of those that the memory holds."""
        return (self.count if self.stored is None else self.stored) * self.weight_bytes

    @property
    def elements(self) -> int:
        """Of all of them."""
        return self.count * self.outputs * self.inputs


@dataclass(frozen=True, slots=True)
class Attention:
    """Softmax attention to keys and values of the cache.

    qk_dim, v_dim: widths of a head of queries and keys, and of values. window: keys before its own that a query sees;
    None: all of them. kv_bytes: of the cache, per token and layer, without a quantized cache's scales.
    shares_cache: its keys and values are those of another layer, which stores them.
    """

    count: int
    heads: int
    kv_heads: int
    qk_dim: int
    v_dim: int
    kv_precision: Precision
    kv_bytes: int
    window: int | None = None
    shares_cache: bool = False

    @property
    def pair_flops(self) -> int:
        """Of one score and its part of the weighted sum, all query heads, one layer."""
        return 2 * self.heads * (self.qk_dim + self.v_dim)

    @property
    def query_width(self) -> int:
        return self.heads * self.qk_dim

    @property
    def output_width(self) -> int:
        return self.heads * self.v_dim


@dataclass(frozen=True, slots=True)
class Latent:
    """Latent attention, see ``mla``. weight_bytes: of the matrix between latents and heads, one layer.

    kv_bytes: of the cache, per token and layer. selected: keys that a query attends to where an indexer picks them
    (sparse attention), None: all.
    """

    count: int
    sizes: LatentAttention
    kv_precision: Precision
    kv_bytes: int
    weight_bytes: int
    selected: int | None = None


@dataclass(frozen=True, slots=True)
class ExpertLayers:
    """Routed experts of some layers; routers and shared experts are matrices.

    experts: of all ranks, of which this one holds ``held`` (expert parallelism), None: all of them. hidden: width of
    the rows. gated: two matrices go up, one comes down; else one each. expert_bytes: of one expert of one layer.
    """

    count: int
    experts: Experts
    hidden: int
    precision: Precision
    expert_bytes: int
    gated: bool = True
    held: int | None = None
    kernel: str | None = None

    @property
    def here(self) -> int:
        """Experts of a layer that this rank holds."""
        return self.experts.count if self.held is None else self.held

    @property
    def share(self) -> float:
        """Of the chosen experts that are this rank's: an expected value where others hold some."""
        return self.here / self.experts.count

    @property
    def up_width(self) -> int:
        """Outputs of the products that go up."""
        return (2 if self.gated else 1) * self.experts.width

    @property
    def row_elements(self) -> int:
        """Of the matrices that one row is multiplied with, all layers."""
        return round(self.count * self.experts.chosen * self.share * self.hidden * (self.up_width + self.experts.width))

    def active(self, rows: int) -> float:
        """The expected number of this rank's experts of a layer that some row reaches; see ``Experts.active``."""
        return self.experts.active(rows) * self.share


@dataclass(frozen=True, slots=True)
class State:
    """A recurrence over tokens with a state per request: linear attention, a state-space model.

    row_flops: of one row in the recurrent form, one layer. state_bytes: of one request and layer; every step reads and
    writes it once. row_elements: activations that a row's kernel reads and writes. kind: of its kernels where they are
    known, ``gdn`` (gated delta rule) or ``kda`` (Kimi delta attention), ``gdn_conv`` and ``kda_conv`` for the
    convolution before it.
    """

    count: int
    row_flops: int
    state_bytes: int
    row_elements: int
    kind: str | None = None


def matrix(count: int, outputs: int, inputs: int, precision: Precision, *, gated: bool = False) -> Matrix:
    """A matrix that is stored in the precision it is multiplied in, without scales."""
    return Matrix(count, outputs, inputs, precision, stored_bytes(outputs * inputs, precision), gated)
