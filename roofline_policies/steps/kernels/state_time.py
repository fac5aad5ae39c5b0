"""Seconds of one layer's linear attention: a recurrence over tokens with a state per request. O(1)."""

from __future__ import annotations

from math import ceil

from roofline_policies.device.hardware import Ceilings
from roofline_policies.model.parts import State
from roofline_policies.steps.kernels.coefficients import StateEfficiency
from roofline_policies.work import Precision

PREFILL, DECODE = "prefill", "decode"

CHAIN = 64
"""Tokens of a chunk: kernels go from one to the next in turn. Source: the chunk of flash-linear-attention's kernels."""

_WIDE = 2  # bytes of an element of activations: 16 bit


def state_s(e: StateEfficiency, state: State, requests: int, rows: int, ceilings: Ceilings) -> float:
    """Seconds of one kernel of ``state`` over ``rows`` of ``requests``, whose lengths are taken as alike.

    ::

        time = launch + fill min(1, length / CHAIN) + (busy^p + chain^p)^(1/p)
        busy = max(FLOPs, bytes at their shares), slowed down as long products are

    FLOPs: of the recurrent form; bytes: every state read and written once, what a row moves, and in prefill a state
    between each two chunks, in 16 bits. In prefill both are those of ``request_rows`` more rows a request.
    chain: the chunks of one request in turn.
    """
    worked, chain_s, fixed_s = float(rows), 0.0, e.launch_s
    moved = 2.0 * state.state_bytes * requests
    if e.phase == PREFILL:
        chunks = ceil(rows / requests / CHAIN)
        moved += state.state_bytes * requests * chunks
        worked += e.request_rows * requests
        chain_s = e.chain_s * chunks
        fixed_s += e.fill_s * min(1.0, rows / requests / CHAIN)
    moved += _WIDE * state.row_elements * worked
    busy_s = moved / (ceilings.bytes_per_s * e.memory)
    busy_s = max(busy_s, state.row_flops * worked / (ceilings.compute_ceiling(Precision.BF16) * e.compute))
    if e.slowdown:
        busy_s *= 1 + e.slowdown * busy_s / (busy_s + e.slowdown_s)
    return float(fixed_s + (busy_s**e.overlap + chain_s**e.overlap) ** (1 / e.overlap))
