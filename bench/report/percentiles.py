"""Which percentiles of the latencies are reported, and what they are called."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from roofline_policies.errors import InputError

PERCENTILES = (50.0, 90.0, 95.0, 99.0)
"""Always in the results, and what a table shows where nothing else was chosen."""


def label(percentile: float) -> str:
    """``p50``, ``p99.9``: how keys of the results name it, as ``vllm bench serve`` does."""
    return f"p{int(percentile)}" if percentile == int(percentile) else f"p{percentile!r}"


def reported(chosen: Sequence[float]) -> list[float]:
    """Those that the results hold: the standard ones and the chosen, in order."""
    return sorted({*PERCENTILES, *chosen})


def read_percentiles(conf: Mapping[str, Any], where: str) -> tuple[float, ...]:
    """The numbers under ``percentiles``, in order; PERCENTILES where the key is null or absent.

    Raises:
        InputError: no list of different numbers above 0 and at most 100.
    """
    value = conf.get("percentiles")
    if value is None:
        return PERCENTILES
    allowed = "a list of different numbers > 0 and <= 100, as [50,90,95,99,99.9]"
    if not isinstance(value, list) or not value:
        raise InputError("is not a list of percentiles", where=where, key="percentiles", value=value, allowed=allowed)
    for one in value:
        if isinstance(one, bool) or not isinstance(one, int | float) or not math.isfinite(one):
            raise InputError("is not a finite number", where=where, key="percentiles", value=one, allowed=allowed)
        if not 0 < one <= 100:
            raise InputError("is out of range", where=where, key="percentiles", value=one, allowed=allowed)
        if value.count(one) > 1:
            raise InputError("is there twice", where=where, key="percentiles", value=one, allowed=allowed)
    return tuple(sorted(float(one) for one in value))
