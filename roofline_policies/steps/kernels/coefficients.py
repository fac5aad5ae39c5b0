"""The coefficients of one kernel each: few, and each with a physical meaning.

Fractions are shares of a ceiling and carry over to a device of the same kind; seconds are latencies and do not scale.
``median_error`` and ``p90_error`` are absolute relative errors on held-out shapes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from roofline_policies.work import Precision


def ranged(low: float, high: float) -> dict[str, Any]:
    """Metadata of a field that must be a finite number in [low, high], or None where that is its default."""
    return {"range": (low, high)}


@dataclass(frozen=True, slots=True)
class Tile:
    """A tile of output that one block computes: rows x cols elements.

    The kernel uses it for more than ``above`` and at most ``up_to`` rows (None: any number) of the whole product.
    """

    rows: int = field(metadata=ranged(1, 1024))
    cols: int = field(metadata=ranged(1, 1024))
    above: int = field(default=0, metadata=ranged(0, 1 << 20))
    up_to: int | None = field(default=None, metadata=ranged(1, 1 << 20))


@dataclass(frozen=True, slots=True)
class GemmEfficiency:
    """Coefficients of one matrix-product kernel.

    precision: of the operands, which decides the compute ceiling; results have 2 bytes per element.
    tiles: the tiles it chooses from; where several apply, the fastest counts.
    launch_s: seconds per launch inside a graph, quantising the activations included where the kernel needs that.
    memory: share of the bandwidth ceiling reached by large operands.
    compute: share of the compute ceiling that all SMs together reach before power lowers the clock.
    slowdown, slowdown_s: a kernel much longer than ``slowdown_s`` runs at ``compute / (1 + slowdown)``.
    sm: share of its part of the compute ceiling that one SM reaches on a tile; above 1 where few busy SMs clock higher.
    step_s: least seconds per element of the inner dimension, whatever the tile; the latency of the main loop.
    epilogue_s: seconds per element of a tile to fill the pipeline and to store the result.
    wave: share of the last, partly filled wave's idle SMs that is paid for; 1 is full wave quantisation.
    overlap: exponent that joins loading and computing: 1 adds them, infinity takes the larger one.
    split_s: seconds to add up an inner dimension split over idle SMs; None where the kernel does not split.
    quantise: share of the bandwidth reached by quantising activations (2 bytes read, 1 written); None: it is not done.
    median_error, p90_error: absolute relative error on held-out shapes.
    """

    precision: Precision
    tiles: tuple[Tile, ...]
    launch_s: float = field(metadata=ranged(0, 1e-3))
    memory: float = field(metadata=ranged(1e-3, 1))
    compute: float = field(metadata=ranged(1e-3, 1))
    slowdown: float = field(metadata=ranged(0, 10))
    slowdown_s: float = field(metadata=ranged(1e-9, 10))
    sm: float = field(metadata=ranged(1e-3, 1.2))
    step_s: float = field(metadata=ranged(0, 1e-6))
    epilogue_s: float = field(metadata=ranged(0, 1e-6))
    wave: float = field(metadata=ranged(0, 1))
    overlap: float = field(metadata=ranged(1, 16))
    split_s: float | None = field(default=None, metadata=ranged(0, 1e-3))
    quantise: float | None = field(default=None, metadata=ranged(1e-3, 1))
    median_error: float | None = field(default=None, metadata=ranged(0, 100))
    p90_error: float | None = field(default=None, metadata=ranged(0, 100))


@dataclass(frozen=True, slots=True)
class DecodeEfficiency:
    """Coefficients of one attention kernel on one new token per request.

    kernel, kv_precision, max_head_dim: what it is; for the head dimensions up to ``max_head_dim``.
    rows: query rows of a block; the query heads that share a KV head are packed into them.
    launch_s: seconds per call, scheduling and combining kernels included. length_s: more of it per doubling of the
        context beyond 128 tokens. block_s: seconds per block that waits for an SM.
    memory, compute: shares of the ceilings. Scores are 16 bit products. overlap: as in GemmEfficiency.
    splits: SMs that can share one block's context. pieces: blocks that a context is always split into, each of which
        may wait for an SM; None: one.
    """

    kernel: str
    kv_precision: Precision
    max_head_dim: int = field(metadata=ranged(1, 4096))
    rows: int = field(metadata=ranged(1, 1024))
    launch_s: float = field(metadata=ranged(0, 1e-3))
    length_s: float = field(metadata=ranged(0, 1e-3))
    block_s: float = field(metadata=ranged(0, 1e-3))
    memory: float = field(metadata=ranged(1e-3, 1))
    compute: float = field(metadata=ranged(1e-4, 1))
    overlap: float = field(metadata=ranged(1, 16))
    splits: float = field(metadata=ranged(1, 1e4))
    pieces: int | None = field(default=None, metadata=ranged(1, 1024))
    median_error: float | None = field(default=None, metadata=ranged(0, 100))
    p90_error: float | None = field(default=None, metadata=ranged(0, 100))


@dataclass(frozen=True, slots=True)
class PrefillEfficiency:
    """Coefficients of one causal attention kernel on many new tokens per request.

    kernel, precision, kv_precision, max_head_dim: what it is; ``precision`` decides the compute ceiling.
    rows: query rows of a block. packed: query heads that share a KV head are packed into them.
    launch_s: seconds per call. block_s: seconds per block that waits for an SM.
    memory, compute: shares of the ceilings, all SMs together. sm: share that one SM reaches on one block.
    key_pad: keys that a block computes beyond those it needs: half tiles on the diagonal and the loop's start.
    unskipped: share of the scores outside a sliding window that is computed nevertheless.
    overlap: as in GemmEfficiency, between computing and waiting blocks.
    """

    kernel: str
    precision: Precision
    kv_precision: Precision
    max_head_dim: int = field(metadata=ranged(1, 4096))
    rows: int = field(metadata=ranged(1, 1024))
    packed: bool
    launch_s: float = field(metadata=ranged(0, 1e-3))
    block_s: float = field(metadata=ranged(0, 1e-3))
    memory: float = field(metadata=ranged(1e-3, 1))
    compute: float = field(metadata=ranged(1e-4, 1))
    sm: float = field(metadata=ranged(1e-4, 1.2))
    key_pad: float = field(metadata=ranged(0, 1e4))
    unskipped: float = field(metadata=ranged(0, 1))
    overlap: float = field(metadata=ranged(1, 16))
    median_error: float | None = field(default=None, metadata=ranged(0, 100))
    p90_error: float | None = field(default=None, metadata=ranged(0, 100))


@dataclass(frozen=True, slots=True)
class ExpertEfficiency:
    """Coefficients of the kernels that run the routed experts of one layer, choosing and adding up included.

    name: how weights are stored and multiplied, e.g. ``fp8_block``, ``int4_wo``. kernel: whose it is. precision: of the
        operands, which decides the compute ceiling.
    align: widths are padded to its multiples.
    launch_s: seconds of all launches without work. length_s: more of it per doubling of the rows. row_s: more of it per
        row, for choosing, sorting and adding up.
    memory, compute: shares of the ceilings that many rows on many experts reach. overlap: as in GemmEfficiency.
    tile_rows: rows of work that a tile of rows costs beyond its own, for the weights that it loads from the cache.
    cols: columns of weights that one block works on; fewer blocks than SMs leave bandwidth unused.
    step_s: least seconds per element of the inner dimensions; the latency of the main loops.
    """

    name: str
    kernel: str
    precision: Precision
    align: int = field(metadata=ranged(1, 1024))
    launch_s: float = field(metadata=ranged(0, 1e-3))
    length_s: float = field(metadata=ranged(0, 1e-4))
    row_s: float = field(metadata=ranged(0, 1e-5))
    memory: float = field(metadata=ranged(1e-3, 1))
    compute: float = field(metadata=ranged(1e-3, 1))
    tile_rows: float = field(metadata=ranged(0, 1024))
    cols: float = field(metadata=ranged(1, 1 << 14))
    step_s: float = field(metadata=ranged(0, 1e-6))
    overlap: float = field(metadata=ranged(1, 16))
    median_error: float | None = field(default=None, metadata=ranged(0, 100))
    p90_error: float | None = field(default=None, metadata=ranged(0, 100))


@dataclass(frozen=True, slots=True)
class LatentProductEfficiency:
    """Coefficients of the products of every head with its part of the matrix between latents and heads.

    precision: of the operands. rows: of a tile. launch_s, memory, compute, overlap, quantise: as in GemmEfficiency.
    """

    kernel: str
    precision: Precision
    rows: int = field(metadata=ranged(1, 1024))
    launch_s: float = field(metadata=ranged(0, 1e-3))
    memory: float = field(metadata=ranged(1e-3, 1))
    compute: float = field(metadata=ranged(1e-3, 1))
    overlap: float = field(metadata=ranged(1, 16))
    quantise: float | None = field(default=None, metadata=ranged(1e-3, 1))
    median_error: float | None = field(default=None, metadata=ranged(0, 100))
    p90_error: float | None = field(default=None, metadata=ranged(0, 100))


@dataclass(frozen=True, slots=True)
class StateEfficiency:
    """Coefficients of one kernel of linear attention: a recurrence over states, or the convolution before it.

    kind: ``gdn`` (gated delta rule), ``kda`` (Kimi delta attention), each ``_conv``. phase: ``prefill`` or ``decode``.
    launch_s: seconds of its launches without work. request_rows: rows of work that a request costs beyond its own, for
        chunks that are not full.
    memory: share of the bandwidth. compute: share of the compute ceiling that the recurrent form's FLOPs come to.
    chain_s: seconds per CHAIN tokens of the longest request, which one block goes through in turn. fill_s: of the first
        of them, as far as it is full.
    slowdown, slowdown_s: as in GemmEfficiency.
    overlap: as in GemmEfficiency, between work and the longest request.
    """

    kind: str
    phase: str
    kernel: str
    launch_s: float = field(metadata=ranged(0, 1e-3))
    request_rows: float = field(metadata=ranged(0, 1e4))
    memory: float = field(metadata=ranged(1e-3, 1))
    compute: float = field(metadata=ranged(1e-4, 1))
    chain_s: float = field(metadata=ranged(0, 1e-3))
    fill_s: float = field(metadata=ranged(0, 1e-3))
    slowdown: float = field(metadata=ranged(0, 10))
    slowdown_s: float = field(metadata=ranged(1e-9, 10))
    overlap: float = field(metadata=ranged(1, 16))
    median_error: float | None = field(default=None, metadata=ranged(0, 100))
    p90_error: float | None = field(default=None, metadata=ranged(0, 100))


@dataclass(frozen=True, slots=True)
class CollectiveEfficiency:
    """Coefficients of one collective over so many ranks of one node. Its bandwidth is no ceiling of a device but what
    is reached between these.

    operation: ``all_reduce``, ``all_gather``, ``reduce_scatter`` or ``all_to_all``. library: ``sglang`` for its own
    kernel, ``nccl``. up_to_bytes: the largest message of it, None: any.
    launch_s: seconds without data. step_s: more of it per doubling of the message beyond 1,024 bytes.
    bytes_per_s: of what a rank sends; ``overlap``: exponent that joins both.
    """

    operation: str
    library: str
    ranks: int = field(metadata=ranged(2, 1024))
    launch_s: float = field(metadata=ranged(0, 1e-2))
    step_s: float = field(metadata=ranged(0, 1e-3))
    bytes_per_s: float = field(metadata=ranged(1e6, 1e14))
    overlap: float = field(metadata=ranged(1, 16))
    up_to_bytes: int | None = field(default=None, metadata=ranged(1, 1 << 40))
    median_error: float | None = field(default=None, metadata=ranged(0, 100))
    p90_error: float | None = field(default=None, metadata=ranged(0, 100))


@dataclass(frozen=True, slots=True)
class QuantiseEfficiency:
    """Coefficients of turning activations of 16 bits into 8, apart from any product.

    name: ``per_token`` for a scale of each row that it finds, ``static`` for one that is given.
    launch_s: seconds without work. memory: share of the bandwidth, 2 bytes read and 1 written per element.
    """

    name: str
    launch_s: float = field(metadata=ranged(0, 1e-3))
    memory: float = field(metadata=ranged(1e-3, 1))
    overlap: float = field(metadata=ranged(1, 16))
    median_error: float | None = field(default=None, metadata=ranged(0, 100))
    p90_error: float | None = field(default=None, metadata=ranged(0, 100))
