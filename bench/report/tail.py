"""When the requests of a run arrived and were over, whatever one that hangs adds; docs/metrics.md has the formulas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.report.records import RequestRecord

LAST_SHARE = 0.01
"""Of the requests, at least one of two or more, are the tail that ``ended_99_s`` leaves out."""


def tail(records: Sequence[RequestRecord], good: int) -> dict[str, Any]:
    """When requests arrived and ended, in seconds since the first arrival, and goodput over the time they arrived in.

    good: how many of the requests met the SLO. All None without a request; ``goodput_arrivals_per_s`` also where all
    arrive at once.
    """
    if not records:
        return dict.fromkeys(("last_arrival_s", "ended_99_s", "drain_s", "longest_request_s", "goodput_arrivals_per_s"))
    begin = min(record.scheduled_s for record in records)
    last_arrival_s = max(record.scheduled_s for record in records) - begin
    ends = sorted(record.end_s - begin for record in records)
    return {
        "last_arrival_s": last_arrival_s,
        "ended_99_s": ends[-1 - left_out(len(ends))],
        "drain_s": ends[-1] - last_arrival_s,
        "longest_request_s": max(record.end_s - record.scheduled_s for record in records),
        "goodput_arrivals_per_s": good / last_arrival_s if last_arrival_s > 0 else None,
    }


def left_out(requests: int) -> int:
    """How many of the last requests to end ``ended_99_s`` leaves out: a hundredth, at least one of two or more."""
    return min(requests - 1, max(1, int(LAST_SHARE * requests)))
