"""What one request took, and what of its SLO it missed. Pure functions; docs/metrics.md has the definitions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bench.report.records import RequestRecord
from bench.slo import JudgedSlo
from roofline_policies.slo.objectives import ItlKind

MISSED = {
    "not_completed": "not completed",
    "ttft": "first token",
    "gap": "gaps",
    "mean": "mean gap",
    "e2e": "whole answer",
}
"""What a request can miss, by its key, and how a table says it."""


def ttft_s(record: RequestRecord) -> float | None:
    """Seconds from the scheduled arrival to the first token; None without one."""
    return None if record.first_token_s is None else record.first_token_s - record.scheduled_s


def gaps_s(record: RequestRecord) -> NDArray[np.float64]:
    """ITL: a gap for each token after the first chunk; empty below two chunks.

    The tokens of a chunk share the time since the chunk before in equal parts: when each was ready, nobody saw.

    Source: the client of SGLang's own serving benchmark for ``/generate`` (``sglang/benchmark/serving.py``).
    """
    moments, tokens = _chunks(record)
    return np.repeat(np.diff(moments) / tokens[1:], tokens[1:])


def chunk_gaps_s(record: RequestRecord) -> NDArray[np.float64]:
    """ICL: seconds between each two chunks that follow one another, whatever they hold; empty below two chunks.

    Source: the inter-chunk latency of NVIDIA's AIPerf (its metrics reference).
    """
    return np.diff(_chunks(record)[0])


def _chunks(record: RequestRecord) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """When each chunk arrived, and how many tokens it had."""
    moments, tokens = np.unique(np.asarray(record.token_s, dtype=np.float64), return_counts=True)
    return moments, tokens.astype(np.int64)


def tpot_s(record: RequestRecord) -> float | None:
    """Mean seconds per output token after the first; None below two tokens.

    Source: ``(latency - ttft) / (output_len - 1)`` of SGLang's and vLLM's serving benchmarks.
    """
    if len(record.token_s) < 2:
        return None
    return (record.token_s[-1] - record.token_s[0]) / (len(record.token_s) - 1)


def e2e_s(record: RequestRecord) -> float | None:
    """Seconds from the scheduled arrival to the last token; None for a request that was not completed."""
    return record.token_s[-1] - record.scheduled_s if record.token_s and record.completed else None


def missed(record: RequestRecord, slo: JudgedSlo) -> tuple[str, ...]:
    """The keys of MISSED that say why the request does not meet the SLO of its class; none: it does.

    A request that was not completed misses that alone: what else it would have missed, nobody knows.
    """
    slo = slo.for_priority(record.priority)
    first, whole = ttft_s(record), e2e_s(record)
    if first is None or whole is None:
        return ("not_completed",)
    late = []
    if slo.ttft_s is not None and first > slo.ttft_s:
        late.append("ttft")
    if slo.itl_s is not None:
        if slo.itl_kind is ItlKind.MEAN_TPOT:
            mean = tpot_s(record)
            if mean is not None and mean > slo.itl_s:
                late.append("mean")
        else:
            gaps = gaps_s(record)
            if np.count_nonzero(gaps <= slo.itl_s) < slo.gap_fraction * len(gaps):
                late.append("gap")
    if slo.e2e_s is not None and whole > slo.e2e_s:
        late.append("e2e")
    return tuple(late)


def meets(record: RequestRecord, slo: JudgedSlo) -> bool:
    """Whether the request was completed within every limit that ``slo`` has for its class."""
    return not missed(record, slo)
