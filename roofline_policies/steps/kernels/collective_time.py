"""Seconds of a collective between the ranks of one node, and of turning activations into 8 bits. O(1) each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import log2
from types import MappingProxyType

from roofline_policies.device.hardware import Ceilings
from roofline_policies.steps.kernels.coefficients import CollectiveEfficiency, QuantiseEfficiency

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


def of_ranks(known: Iterable[CollectiveEfficiency], operation: str, ranks: int) -> tuple[CollectiveEfficiency, ...]:
    """The kernels of a collective over so many ranks, those that end at some size first; where that number was not
    measured, those of the nearest number, with what a rank of so many sends."""
    fitting = [e for e in known if e.operation == operation]
    if not fitting:
        return ()
    nearest = min(fitting, key=lambda e: (abs(log2(e.ranks / ranks)), e.ranks)).ranks
    found = (replace(e, ranks=ranks) for e in fitting if e.ranks == nearest)
    return tuple(sorted(found, key=lambda e: e.up_to_bytes or float("inf")))


def message_s(kernels: Iterable[CollectiveEfficiency], message_bytes: float) -> float:
    """Seconds of one message in the first kernel that takes it, in the last one where none does; 0 without kernels."""
    e = None
    for e in kernels:
        if e.up_to_bytes is None or message_bytes <= e.up_to_bytes:
            break
    return 0.0 if e is None else collective_s(e, message_bytes)


def quantise_s(e: QuantiseEfficiency, rows: int, width: int, ceilings: Ceilings) -> float:
    """Seconds of turning ``rows x width`` activations into 8 bits."""
    memory_s = 3 * rows * width / (ceilings.bytes_per_s * e.memory)
    return float((e.launch_s**e.overlap + memory_s**e.overlap) ** (1 / e.overlap))
