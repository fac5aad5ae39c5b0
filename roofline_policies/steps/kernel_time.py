"""Seconds that one kernel takes, from its shape, the device's ceilings and the kernel's efficiencies. O(1) each.

Never less than the roofline, ``max(useful FLOPs / compute ceiling, compulsory bytes / bandwidth)``: efficiencies are at
most 1, tiles only add work, and everything else is added.

Source: S. Williams et al., "Roofline", CACM 52(4), 2009, for the bound; NVIDIA, "Matrix Multiplication Background
User's Guide", for tile and wave quantisation. Joining two times by a p-norm, and the latencies, are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, log2
from types import MappingProxyType

from roofline_policies.device.hardware import Ceilings
from roofline_policies.errors import InputError
from roofline_policies.model.parts import ExpertLayers, Matrix
from roofline_policies.steps.efficiency import DecodeEfficiency, Efficiency, GemmEfficiency, PrefillEfficiency
from roofline_policies.work import BYTES_PER_ELEMENT, Precision

_MOST_SPLITS = 8
_WIDE = 2  # bytes of an element of activations, queries and results: 16 bit


def gemm_s(
    e: GemmEfficiency, m: int, n: int, k: int, ceilings: Ceilings, sms: int, weight_bytes: float | None = None
) -> float:
    """Seconds of ``(m x k) (k x n)``, n and k of the weights. Grows with each of the sizes, in steps.

    weight_bytes: of the ``n x k`` where they are stored in another precision than they are multiplied in, or with
    scales; None: n k elements.

    With tiles of a x b and w waves of them on the SMs, per tile shape::

        serial = max(w (k step + a b epilogue), padded FLOPs / (peak x compute) x power slowdown)
        memory = bytes / (bandwidth x memory) + a b epilogue
        time   = launch + min over tiles of (serial^p + memory^p)^(1/p) + quantising

    where one step takes ``max(2 a b / (peak of an SM x sm), step_s)``, and idle SMs may share k at a price.
    """
    peak = ceilings.compute_ceiling(e.precision)
    element = BYTES_PER_ELEMENT[e.precision]
    bandwidth = ceilings.bytes_per_s
    read = element * k * (m + n) if weight_bytes is None else element * k * m + weight_bytes
    memory_s = (read + _WIDE * m * n) / (bandwidth * e.memory)
    p = e.overlap
    best = float("inf")
    for tile in e.tiles:
        if m <= tile.above or (tile.up_to is not None and m > tile.up_to):
            continue
        area = tile.rows * tile.cols
        tiles = -(-m // tile.rows) * -(-n // tile.cols)
        loop_s = k * max(2 * area * sms / (peak * e.sm), e.step_s)
        epilogue_s = area * e.epilogue_s
        if tiles > sms:
            waves = tiles / sms
            serial_s = (waves + e.wave * (ceil(waves) - waves)) * (loop_s + epilogue_s)
        else:
            if e.split_s is not None and 2 * tiles <= sms:
                loop_s = min(loop_s, loop_s / min(_MOST_SPLITS, sms // tiles) + e.split_s)
            serial_s = loop_s + epilogue_s
        all_s = 2 * area * tiles * k / (peak * e.compute)
        all_s *= 1 + e.slowdown * all_s / (all_s + e.slowdown_s)
        best = min(best, float((max(serial_s, all_s) ** p + (memory_s + epilogue_s) ** p) ** (1 / p)))
    if e.quantise is not None:
        best += (_WIDE + element) * m * k / (bandwidth * e.quantise)
    return e.launch_s + best


def decode_attention_s(
    e: DecodeEfficiency,
    requests: int,
    context_tokens: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    ceilings: Ceilings,
    sms: int,
    padded: int = 0,
) -> float:
    """Seconds of one layer's attention of one new token per request over ``context_tokens`` in all.

    ::

        time = launch + length log2(1 + mean context / 128) + (stream^p + queue^p)^(1/p)

    stream: the larger of KV bytes over bandwidth and issued FLOPs over peak, with as many SMs as the blocks' splits
    reach; queue: blocks beyond one per SM. Lengths are taken as alike: a skewed batch takes longer than its sum says.
    padded: rows that only fill a graph, one key each; not in the other sums.
    """
    mean = context_tokens / requests
    requests += padded
    context_tokens += padded
    row_tiles = -(-heads // (kv_heads * e.rows))
    blocks = requests * kv_heads * row_tiles
    reach = min(1.0, blocks * e.splits / sms)
    kv_bytes = 2 * context_tokens * kv_heads * head_dim * BYTES_PER_ELEMENT[e.kv_precision]
    memory_s = (kv_bytes + 2 * _WIDE * requests * heads * head_dim) / (ceilings.bytes_per_s * e.memory)
    issued = 4 * context_tokens * kv_heads * row_tiles * e.rows * head_dim
    stream_s = max(memory_s, issued / (ceilings.compute_ceiling(Precision.BF16) * e.compute)) / reach
    queue_s = max(0.0, blocks / sms - 1) * e.block_s
    fixed_s = e.launch_s + e.length_s * log2(1 + mean / 128)
    return float(fixed_s + (stream_s**e.overlap + queue_s**e.overlap) ** (1 / e.overlap))


def prefill_attention_s(
    e: PrefillEfficiency,
    requests: int,
    new_tokens: int,
    context_tokens: int,
    pairs: int,
    causal_pairs: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    ceilings: Ceilings,
    sms: int,
    masked_pairs: int = 0,
) -> float:
    """Seconds of one layer's causal attention; the sums are those of BatchShape.

    masked_pairs: causal pairs outside a sliding window, not in ``causal_pairs``.

    ::

        time = launch + (max(compute, longest block, memory)^p + queue^p)^(1/p)

    compute: full tiles of rows, ``key_pad`` more keys each, over peak; longest block: its keys at one SM's pace, where
    the mean visible context weighted by tokens stands for its length. Grows with the length of a request and with the
    number of alike ones; new tokens per request are taken as alike when rows are rounded up to tiles.
    """
    mean = new_tokens / requests
    row_tiles = ceil(mean * heads / (kv_heads * e.rows)) * kv_heads if e.packed else ceil(mean / e.rows) * heads
    blocks = requests * row_tiles
    extra = e.key_pad + e.unskipped * masked_pairs / new_tokens
    peak = ceilings.compute_ceiling(e.precision)
    per_key = 4 * e.rows * head_dim
    compute_s = per_key * blocks * (causal_pairs / new_tokens + extra) / (peak * e.compute)
    longest_s = per_key * (pairs / new_tokens + extra) * sms / (peak * e.sm)
    kv_bytes = 2 * context_tokens * kv_heads * head_dim * BYTES_PER_ELEMENT[e.kv_precision]
    memory_s = (kv_bytes + 2 * _WIDE * new_tokens * heads * head_dim) / (ceilings.bytes_per_s * e.memory)
    queue_s = max(0.0, blocks / sms - 1) * e.block_s
    busy_s = max(compute_s, longest_s, memory_s)
    return float(e.launch_s + (busy_s**e.overlap + queue_s**e.overlap) ** (1 / e.overlap))


@dataclass(frozen=True, slots=True)
class KernelModel:
    """Kernel times of one device by the names of kernels and precisions; see the functions of this module."""

    ceilings: Ceilings
    efficiency: Efficiency

    def gemm(self, name: str) -> GemmEfficiency:
        """The matrix product's coefficients: a Precision or a kernel's name; fp16 is taken for bf16, its equal in rate.

        Raises:
            InputError: nothing was measured under that name.
        """
        known = self.efficiency.gemm
        found = known.get(_wide(name))
        if found is None:
            raise InputError("not measured", where="KernelModel.gemm", key="precision", value=str(name), allowed=known)
        return found

    def nearest_gemm(self, product: Matrix | ExpertLayers) -> GemmEfficiency:
        """The coefficients of a product's own kernel or precision, or of the nearest precision that was measured.

        8 bit floats and integers are equal in rate on tensor cores, and stand in for four bits, which are faster; 16
        bits are taken where nothing narrower was measured.

        Raises:
            InputError: no matrix product was measured at all.
        """
        wanted = [product.kernel, product.precision, *_STAND_INS.get(product.precision, ()), Precision.BF16]
        known = self.efficiency.gemm
        return self.gemm(next((name for name in wanted if name is not None and _wide(name) in known), Precision.BF16))

    def decode(self, kernel: str, kv_precision: Precision, head_dim: int) -> DecodeEfficiency:
        """The decode attention kernel for a head dimension; beyond the largest one measured, that one's.

        Raises:
            InputError: nothing was measured for that kernel and KV precision.
        """
        wanted = _wide_is_bf16(kv_precision)
        fitting = [e for e in self.efficiency.decode if (e.kernel, e.kv_precision) == (kernel, wanted)]
        if not fitting:
            allowed = sorted({f"{e.kernel} with {e.kv_precision} KV" for e in self.efficiency.decode})
            raise _not_measured("decode", f"{kernel} with {kv_precision} KV", allowed)
        enough = [e for e in fitting if e.max_head_dim >= head_dim]
        return min(enough, key=lambda e: e.max_head_dim) if enough else max(fitting, key=lambda e: e.max_head_dim)

    def prefill(
        self, kernel: str, kv_precision: Precision, head_dim: int, precision: Precision | None = None
    ) -> PrefillEfficiency:
        """The prefill attention kernel for a head dimension. precision: of the products; None takes the widest.

        Raises:
            InputError: nothing was measured for that kernel and precisions.
        """
        wanted = _wide_is_bf16(kv_precision)
        fitting = [
            e
            for e in self.efficiency.prefill
            if (e.kernel, e.kv_precision) == (kernel, wanted) and precision in (None, e.precision)
        ]
        if not fitting:
            allowed = sorted({f"{e.kernel} with {e.kv_precision} KV" for e in self.efficiency.prefill})
            raise _not_measured("prefill", f"{kernel} with {kv_precision} KV", allowed)
        enough = [e for e in fitting if e.max_head_dim >= head_dim] or [max(fitting, key=lambda e: e.max_head_dim)]
        # The narrowest that is enough; of two products on the same cache the 16 bit ones, SGLang's default.
        return min(enough, key=lambda e: (e.max_head_dim, e.precision != Precision.BF16))

    def gemm_s(self, m: int, n: int, k: int, precision: str) -> float:
        """Seconds of ``(m x k) (k x n)``; see ``gemm_s`` of this module.

        Raises:
            InputError: nothing was measured for that precision, or the device has no ceiling for it.
        """
        return gemm_s(self.gemm(precision), m, n, k, self.ceilings, self.efficiency.sms)

    def decode_attention_s(
        self,
        requests: int,
        context_tokens: int,
        *,
        heads: int,
        kv_heads: int,
        head_dim: int,
        kv_precision: Precision = Precision.BF16,
        kernel: str = "fa3",
    ) -> float:
        """Seconds of one layer's decode attention; see ``decode_attention_s`` of this module."""
        e = self.decode(kernel, kv_precision, head_dim)
        return decode_attention_s(
            e, requests, context_tokens, heads, kv_heads, head_dim, self.ceilings, self.efficiency.sms
        )

    def prefill_attention_s(
        self,
        requests: int,
        new_tokens: int,
        *,
        context_tokens: int,
        pairs: int,
        causal_pairs: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        kv_precision: Precision = Precision.BF16,
        kernel: str = "fa3",
        precision: Precision | None = None,
    ) -> float:
        """Seconds of one layer's prefill attention; see ``prefill_attention_s`` of this module."""
        e = self.prefill(kernel, kv_precision, head_dim, precision)
        return prefill_attention_s(
            e, requests, new_tokens, context_tokens, pairs, causal_pairs, heads, kv_heads, head_dim,
            self.ceilings, self.efficiency.sms,
        )  # fmt: skip


_STAND_INS: Mapping[Precision, tuple[Precision, ...]] = MappingProxyType({
    Precision.INT8: (Precision.FP8,),
    Precision.FP8: (Precision.INT8,),
    Precision.FP4: (Precision.FP8, Precision.INT8),
})  # fmt: skip


def _wide(name: str) -> str:
    return Precision.BF16 if name == Precision.FP16 else str(name)


def _wide_is_bf16(precision: Precision) -> Precision:
    return Precision.BF16 if precision == Precision.FP16 else precision


def _not_measured(method: str, value: str, allowed: list[str]) -> InputError:
    return InputError("not measured", where=f"KernelModel.{method}", key="kernel", value=value, allowed=allowed)
