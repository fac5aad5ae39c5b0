"""Which of a device's fitted kernels serves what, and which stands in where none was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TypeVar

from roofline_policies.device.hardware import Ceilings
from roofline_policies.errors import InputError
from roofline_policies.model.backends import NAMES
from roofline_policies.model.parts import ExpertLayers, Matrix
from roofline_policies.steps.efficiency import Efficiency
from roofline_policies.steps.kernels.coefficients import (
    DecodeEfficiency,
    ExpertEfficiency,
    GemmEfficiency,
    LatentProductEfficiency,
    PrefillEfficiency,
    StateEfficiency,
)
from roofline_policies.steps.kernels.kernel_time import decode_attention_s, gemm_s, prefill_attention_s
from roofline_policies.work import BYTES_PER_ELEMENT, Precision


@dataclass(frozen=True, slots=True)
class KernelModel:
    """Kernel times of one device by the names of kernels and precisions; see the functions of ``kernel_time``."""

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

        Where the kernel was not measured on this device, or not with that cache, the nearest that was, with the cache's
        own bytes; see ``stand_in``.

        Raises:
            InputError: no such kernel.
        """
        return _nearest(self.efficiency.decode, kernel, kv_precision, head_dim)

    def prefill(
        self, kernel: str, kv_precision: Precision, head_dim: int, precision: Precision | None = None
    ) -> PrefillEfficiency:
        """The prefill attention kernel for a head dimension, see ``decode``. precision: of the products; None takes the
        widest.

        Raises:
            InputError: no such kernel.
        """
        known = [e for e in self.efficiency.prefill if precision in (None, e.precision)]
        # Of two products on the same cache the 16 bit ones, SGLang's default.
        known.sort(key=lambda e: e.precision != Precision.BF16)
        return _nearest(known or self.efficiency.prefill, kernel, kv_precision, head_dim)

    def latent_decode(self, kernel: str, kv_precision: Precision) -> DecodeEfficiency | None:
        """Absorbed attention to latents of one new token per request, see ``decode``; None where none was measured."""
        known = self.efficiency.latent_decode
        return _nearest(known, kernel, kv_precision, 0) if known else None

    def latent_prefill(self, kernel: str, kv_precision: Precision) -> PrefillEfficiency | None:
        """Absorbed attention to latents of many new tokens; None where none was measured."""
        known = self.efficiency.latent_prefill
        return _nearest(known, kernel, kv_precision, 0) if known else None

    def expanded_prefill(self, kernel: str) -> PrefillEfficiency | None:
        """Expanded attention in a kernel made for it; None where that kernel has none."""
        known = [e for e in self.efficiency.expanded_prefill if e.kernel == kernel]
        return min(known, key=lambda e: e.kv_precision != Precision.BF16, default=None)

    def latent_product(self, precision: Precision) -> LatentProductEfficiency | None:
        """The products between latents and heads; of another precision where only that was measured, None without."""
        known = self.efficiency.latent_products
        return min(known, key=lambda e: e.precision != _wide_is_bf16(precision), default=None)

    def experts(self, routed: ExpertLayers) -> ExpertEfficiency | None:
        """The kernels of routed experts by how their weights are stored and multiplied, or of the nearest way that was
        measured; None where none was."""
        known = {e.name: e for e in reversed(self.efficiency.experts)}  # the first of a name is SGLang's default
        return next((known[name] for name in expert_names(routed) if name in known), None)

    def state(self, kind: str | None, phase: str) -> StateEfficiency | None:
        """The kernel of a kind of linear attention in ``prefill`` or ``decode``; None where it was not measured."""
        return next((e for e in self.efficiency.states if (e.kind, e.phase) == (kind, phase)), None)

    def gemm_s(self, m: int, n: int, k: int, precision: str) -> float:
        """Seconds of ``(m x k) (k x n)``; see ``gemm_s`` of ``kernel_time``.

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
        """Seconds of one layer's decode attention; see ``decode_attention_s`` of ``kernel_time``."""
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
        """Seconds of one layer's prefill attention; see ``prefill_attention_s`` of ``kernel_time``."""
        e = self.prefill(kernel, kv_precision, head_dim, precision)
        return prefill_attention_s(
            e, requests, new_tokens, context_tokens, pairs, causal_pairs, heads, kv_heads, head_dim,
            self.ceilings, self.efficiency.sms,
        )  # fmt: skip


_STAND_INS: Mapping[Precision, tuple[str, ...]] = MappingProxyType({
    Precision.INT8: (Precision.FP8,),
    Precision.FP8: (Precision.INT8,),
    Precision.FP4: ("nvfp4", Precision.FP8, Precision.INT8),
})  # fmt: skip

_EXPERTS: Mapping[Precision, tuple[str, ...]] = MappingProxyType({
    Precision.FP8: ("fp8", "fp8_block"),
    Precision.INT8: ("int8", "fp8", "fp8_block"),
    Precision.FP4: ("nvfp4", "w4a8_mxfp4_mxfp8"),
})  # fmt: skip
_INT4 = ("int4_wo", "w4a16_mxfp4")
_MXFP4_BYTES = (0.525, 0.54)
"""Of a weight in MXFP4: half a byte, and one for the scale of every 32. Integers have scales of other sizes."""


def expert_names(routed: ExpertLayers) -> tuple[str, ...]:
    """Names under which experts like these may have been measured, the nearest first."""
    each = routed.expert_bytes / (routed.hidden * (routed.up_width + routed.experts.width))
    names: tuple[str, ...] = () if routed.kernel is None else (routed.kernel,)
    if routed.precision in _EXPERTS:
        narrow = ("w4a8_mxfp4_mxfp8",) if each < _NARROW_BYTES and routed.precision is Precision.FP8 else ()
        return (*names, *narrow, *_EXPERTS[routed.precision], Precision.BF16)
    if each < _NARROW_BYTES:
        low, high = _MXFP4_BYTES
        return (*names, *(reversed(_INT4) if low <= each <= high else _INT4), Precision.BF16)
    return (*names, Precision.BF16)


_NARROW_BYTES = 0.75  # of a weight of four bits with its scales there are fewer, of one of eight bits more

_Attention = TypeVar("_Attention", DecodeEfficiency, PrefillEfficiency)


def _nearest(known: Sequence[_Attention], kernel: str, kv_precision: Precision, head_dim: int) -> _Attention:
    """By kernel, then the cache's precision, then the head dimension: the narrowest that is enough, or the widest."""
    if kernel not in NAMES:
        raise InputError("no such kernel", where="KernelModel", key="kernel", value=kernel, allowed=NAMES)
    wanted = _wide_is_bf16(kv_precision)
    names = list(dict.fromkeys(e.kernel for e in known))

    def distance(e: _Attention) -> tuple[bool, int, bool, bool, int]:
        short = e.max_head_dim < head_dim
        other = e.kernel != kernel
        # Of kernels that stand in for another the first that serves this head dimension.
        place = (1000 * short + names.index(e.kernel)) if other else 0
        return other, place, e.kv_precision != wanted, short, -e.max_head_dim if short else e.max_head_dim

    found = min(known, key=distance)
    if found.kv_precision != wanted and wanted in BYTES_PER_ELEMENT:
        return replace(found, kv_precision=wanted)
    return found


def stand_in(found: DecodeEfficiency | PrefillEfficiency, kernel: str, where: str) -> str | None:
    """What to say where another kernel stands in, None where it does not."""
    if found.kernel == kernel:
        return None
    return f"{where}: {found.kernel} stands in for {kernel}, which was not measured"


def _wide(name: str) -> str:
    return Precision.BF16 if name == Precision.FP16 else str(name)


def _wide_is_bf16(precision: Precision) -> Precision:
    return Precision.BF16 if precision == Precision.FP16 else precision
