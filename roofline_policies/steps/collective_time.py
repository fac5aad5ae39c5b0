"""Seconds of a collective between the ranks of one node, and of turning activations into 8 bits. O(1) each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import log2
from types import MappingProxyType

from roofline_policies.device.hardware import Ceilings
from roofline_policies.steps.coefficients import CollectiveEfficiency, QuantiseEfficiency

ALL_REDUCE, ALL_GATHER, REDUCE_SCATTER, ALL_TO_ALL = "all_reduce", "all_gather", "reduce_scatter", "all_to_all"
SENT: Mapping[str, float] = MappingProxyType({ALL_REDUCE: 2, ALL_GATHER: 1, REDUCE_SCATTER: 1, ALL_TO_ALL: 1})
"""What a rank of p sends of a message of n bytes, in ``n (p - 1) / p``. Of an all-gather: what all have together.

Source: Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms", JPDC 69, 2009.
"""


def collective_s(e: CollectiveEfficiency, message_bytes: float) -> float:
    """Seconds of one collective: ``launch + step log2(1 + bytes / 1024)`` and the bytes that a rank sends, joined."""
    if message_bytes <= 0:
        return 0.0
    sent = SENT[e.operation] * message_bytes * (e.ranks - 1) / e.ranks
    fixed_s = e.launch_s + e.step_s * log2(1 + message_bytes / 1024)
    return float((fixed_s**e.overlap + (sent / e.bytes_per_s) ** e.overlap) ** (1 / e.overlap))


def nearest_collective(
    known: Iterable[CollectiveEfficiency], operation: str, ranks: int, message_bytes: float
) -> CollectiveEfficiency | None:
    """The coefficients for so many ranks, or for the nearest number of them; SGLang's own kernel as far as it goes."""
    fitting = [e for e in known if e.operation == operation and message_bytes <= (e.up_to_bytes or message_bytes)]
    if not fitting:
        return None
    return min(fitting, key=lambda e: (abs(log2(e.ranks / ranks)), e.ranks, e.library == "nccl"))


def quantise_s(e: QuantiseEfficiency, rows: int, width: int, ceilings: Ceilings) -> float:
    """Seconds of turning ``rows x width`` activations into 8 bits."""
    memory_s = 3 * rows * width / (ceilings.bytes_per_s * e.memory)
    return float((e.launch_s**e.overlap + memory_s**e.overlap) ** (1 / e.overlap))
