"""Seconds of the products between latents and heads. O(1)."""

from __future__ import annotations

from math import ceil

from roofline_policies.device.hardware import Ceilings
from roofline_policies.steps.kernels.coefficients import LatentProductEfficiency
from roofline_policies.work import BYTES_PER_ELEMENT

_WIDE = 2  # bytes of an element of activations: 16 bit


def latent_product_s(
    e: LatentProductEfficiency, heads: int, m: int, n: int, k: int, ceilings: Ceilings, sms: int
) -> float:
    """Seconds of ``heads`` products ``(m x k) (k x n)`` in one launch, each with operands of its own.

    ::

        time = launch + (compute^p + memory^p)^(1/p) + quantising

    compute: full tiles of ``rows``, on no fewer SMs than there are tiles of 128 columns; memory: operands and results.
    """
    element = BYTES_PER_ELEMENT[e.precision]
    tiles = ceil(m / e.rows)
    reach = min(1.0, heads * tiles * max(1, n // 128) / sms)
    compute_s = 2 * heads * tiles * e.rows * n * k / (ceilings.compute_ceiling(e.precision) * e.compute * reach)
    moved = heads * (m * (element * k + _WIDE * n) + element * n * k)
    memory_s = moved / (ceilings.bytes_per_s * e.memory)
    seconds = e.launch_s + (compute_s**e.overlap + memory_s**e.overlap) ** (1 / e.overlap)
    if e.quantise is not None:
        seconds += heads * m * k * (_WIDE + element) / (ceilings.bytes_per_s * e.quantise)
    return float(seconds)
