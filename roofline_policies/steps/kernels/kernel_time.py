"""Seconds that one kernel takes, from its shape, the device's ceilings and the kernel's efficiencies. O(1) each.

Never less than the roofline, ``max(useful FLOPs / compute ceiling, compulsory bytes / bandwidth)``: efficiencies are at
most 1, tiles only add work, and everything else is added.

Source: S. Williams et al., "Roofline", CACM 52(4), 2009, for the bound; NVIDIA, "Matrix Multiplication Background
User's Guide", for tile and wave quantisation. Joining two times by a p-norm, and the latencies, are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, log2
from types import MappingProxyType

from roofline_policies.device.hardware import Ceilings
from roofline_policies.steps.kernels.coefficients import DecodeEfficiency, GemmEfficiency, PrefillEfficiency
from roofline_policies.work import BYTES_PER_ELEMENT, Precision

_MOST_SPLITS = 8
_WIDE = 2  # bytes of an element of activations, queries and results: 16 bit

ELEMENT_BYTES: Mapping[Precision, float] = MappingProxyType({**BYTES_PER_ELEMENT, Precision.FP4: 0.5 + 1 / 16})
"""Of an operand's element, with the scale that every 16 elements of four bits share.

Source: NVIDIA, "Introducing NVFP4", for the scales.
"""


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
    element = ELEMENT_BYTES[e.precision]
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
    row_tiles = -(-heads // (kv_heads * e.rows))
    token_bytes = 2 * kv_heads * head_dim * BYTES_PER_ELEMENT[e.kv_precision]
    moved_row = 2 * _WIDE * heads * head_dim
    issued = 4 * kv_heads * row_tiles * e.rows * head_dim
    blocks = kv_heads * row_tiles
    return _one_token_s(e, requests, context_tokens, blocks, token_bytes, moved_row, issued, ceilings, sms, padded)


def latent_decode_s(
    e: DecodeEfficiency,
    requests: int,
    context_tokens: int,
    heads: int,
    key_width: int,
    value_width: int,
    ceilings: Ceilings,
    sms: int,
    padded: int = 0,
) -> float:
    """Seconds of one layer's attention to latents, absorbed, of one new token per request; see ``decode_attention_s``.

    key_width: of the latent and the rotated key, which all heads read. value_width: of the latent alone.
    """
    row_tiles = -(-heads // e.rows)
    token_bytes = key_width * BYTES_PER_ELEMENT[e.kv_precision]
    moved_row = _WIDE * heads * (key_width + value_width)
    issued = 2 * row_tiles * e.rows * (key_width + value_width)
    return _one_token_s(e, requests, context_tokens, row_tiles, token_bytes, moved_row, issued, ceilings, sms, padded)


def _one_token_s(
    e: DecodeEfficiency,
    requests: int,
    context_tokens: int,
    blocks_each: int,
    token_bytes: int,
    row_bytes: int,
    token_flops: int,
    ceilings: Ceilings,
    sms: int,
    padded: int,
) -> float:
    """One new token per request: ``blocks_each`` blocks of a request, bytes and FLOPs of a token of context."""
    mean = context_tokens / requests
    requests += padded
    context_tokens += padded
    blocks = requests * blocks_each
    reach = min(1.0, blocks * e.splits / sms)
    memory_s = (context_tokens * token_bytes + requests * row_bytes) / (ceilings.bytes_per_s * e.memory)
    issued = context_tokens * token_flops
    stream_s = max(memory_s, issued / (ceilings.compute_ceiling(Precision.BF16) * e.compute)) / reach
    queue_s = max(0.0, blocks * (e.pieces or 1) / sms - 1) * e.block_s
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
    extra = e.key_pad + e.unskipped * masked_pairs / new_tokens
    kv_bytes = 2 * context_tokens * kv_heads * head_dim * BYTES_PER_ELEMENT[e.kv_precision]
    moved = kv_bytes + 2 * _WIDE * new_tokens * heads * head_dim
    keys = (pairs / new_tokens + extra, causal_pairs / new_tokens + extra)
    return _many_tokens_s(e, requests * row_tiles, 4 * e.rows * head_dim, keys, moved, ceilings, sms)


def latent_prefill_s(
    e: PrefillEfficiency,
    requests: int,
    new_tokens: int,
    context_tokens: int,
    pairs: int,
    causal_pairs: int,
    heads: int,
    key_width: int,
    value_width: int,
    ceilings: Ceilings,
    sms: int,
    kv_heads: int = 1,
) -> float:
    """Seconds of one layer's attention to latents of many new tokens per request; see ``prefill_attention_s``.

    kv_heads: 1 in absorbed form, where all heads read one latent; ``heads`` in expanded form, where each has keys and
    values of its own, in activations' precision. key_width, value_width: of a head in that form.
    """
    mean = new_tokens / requests
    row_tiles = ceil(mean * heads / (kv_heads * e.rows)) * kv_heads if e.packed else ceil(mean / e.rows) * heads
    if kv_heads == 1:
        kv_bytes = context_tokens * key_width * BYTES_PER_ELEMENT[e.kv_precision]
    else:
        kv_bytes = context_tokens * kv_heads * (key_width + value_width) * _WIDE
    moved = kv_bytes + _WIDE * new_tokens * heads * (key_width + value_width)
    keys = (pairs / new_tokens + e.key_pad, causal_pairs / new_tokens + e.key_pad)
    return _many_tokens_s(e, requests * row_tiles, 2 * e.rows * (key_width + value_width), keys, moved, ceilings, sms)


def _many_tokens_s(
    e: PrefillEfficiency,
    blocks: int,
    per_key: int,
    keys: tuple[float, float],
    moved: float,
    ceilings: Ceilings,
    sms: int,
) -> float:
    """keys: of the longest block, and of the mean one. per_key: FLOPs of a block per key."""
    longest, mean = keys
    peak = ceilings.compute_ceiling(e.precision)
    compute_s = per_key * blocks * mean / (peak * e.compute)
    longest_s = per_key * longest * sms / (peak * e.sm)
    memory_s = moved / (ceilings.bytes_per_s * e.memory)
    queue_s = max(0.0, blocks / sms - 1) * e.block_s
    busy_s = max(compute_s, longest_s, memory_s)
    return float(e.launch_s + (busy_s**e.overlap + queue_s**e.overlap) ** (1 / e.overlap))
