"""Whether the times of a trace can be what they were read as: nobody would see a wrong unit in a table of latencies."""

from __future__ import annotations

from bench.traffic.clock import UNIT_NAMES, span
from bench.traffic.fields import UNITS_PER_S
from bench.traffic.notes import Tally
from bench.traffic.trace import TraceKeys
from roofline_policies.errors import InputError

MOST_PER_S = 1_000.0
"""Requests per second, over so many of them and more, that no published trace has: it is in another unit."""
SHORT_S = 10.0
"""A whole trace whose milliseconds have fractions, and that is no longer than this, may well be one of seconds."""
LEAST_S = 1e-3
"""Not even three requests that differ in time come within a millisecond of each other, and then none."""


def check_times(keys: TraceKeys, tally: Tally) -> None:
    """Nothing, if the times of the requests that were read can be what they were read as.

    Raises:
        InputError: they cannot, or may not and the user has not said; names the key that settles it.
    """
    clock, length_s = tally.clock, tally.last_s - tally.first_s
    if clock is None or clock.unit is None or keys.rate_per_s is not None or tally.requests < 2 or not length_s:
        return
    of = f"its {tally.requests:,} requests come within {span(length_s)} as {UNIT_NAMES[clock.unit]}"
    coarser = [unit for unit, per_s in UNITS_PER_S.items() if per_s < UNITS_PER_S[clock.unit]]
    say = " or ".join(f"traffic.time_unit={unit}" for unit in coarser) or "times in seconds"
    own_word = f", or traffic.time_unit={clock.unit} if it is so"
    whole = tally.whole and not keys.start_s
    if whole and tally.requests > 2 and length_s < LEAST_S:
        raise InputError(of, where=keys.path, key=_key(tally), allowed=say)
    if keys.time_unit is not None:
        return
    fast = tally.requests >= MOST_PER_S and tally.requests / length_s > MOST_PER_S
    if fast or (whole and clock.unit != "s" and clock.fractions and length_s < SHORT_S):
        raise InputError(of, where=keys.path, key=_key(tally), allowed=(say if coarser else "") + own_word)


def _key(tally: Tally) -> str:
    return "timestamp" if tally.form is None else tally.form.time_key
