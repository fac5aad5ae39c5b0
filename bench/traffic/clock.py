"""When the rows of a trace come: their times in seconds after the first, whatever the trace counts in and from."""

from __future__ import annotations

from collections.abc import Iterator

from bench.traffic.fields import DATES, UNITS_PER_S, moment
from bench.traffic.formats import TraceFormat, TraceRow
from roofline_policies.errors import InputError

UNIT_NAMES = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
LATEST_S = 1e10
"""Seconds since 1970 that no trace comes from: the year 2286. A later time is in another unit."""
LONGEST_S = 10 * 365.25 * 86_400
"""No trace is longer; a live replay of one that is would wait for ever."""
_DATES_PER_S = UNITS_PER_S["us"]


class Clock:
    """Seconds after the first row that was no empty one; also drawn, or told by delays. Rows are asked for in order.

    unit: a key of UNITS_PER_S, or None where times are dates; known once the first time has been read.
    first: the time of the first row, as the trace has it. fractions: a time was no whole number.
    """

    def __init__(self, form: TraceFormat, time_unit: str | None, drawn_s: Iterator[float] | None) -> None:
        """``time_unit``: as the user has it; None: as the format has it. ``drawn_s``: arrivals in the times' place."""
        self.unit = time_unit or (form.time_unit if form.time_unit != DATES else None)
        self.first: int | float | None = None
        self.fractions = False
        self._key = form.time_key
        self._given = time_unit
        self._drawn_s = drawn_s
        self._dates: bool | None = None
        self._base_s = 0.0
        self._sessions: dict[object, float] = {}

    def arrival_s(self, row: TraceRow, where: str) -> float:
        """When the row comes; below 0 where it came before the first.

        Raises:
            InputError: it states no time, one of another kind than the rows above, or one that cannot be.
        """
        follows = row.time is None and row.delay is not None and row.session in self._sessions
        if follows:
            assert row.delay is not None
            arrival_s = self._sessions[row.session] + row.delay / UNITS_PER_S[self.unit or "ms"]
        elif row.after_s:
            arrival_s = self._base_s + row.after_s
        else:
            arrival_s = self._base_s = self._stated_s(row, where) if self._drawn_s is None else next(self._drawn_s)
        if row.session is not None:
            self._sessions[row.session] = arrival_s
        if arrival_s > LONGEST_S:
            unit = "" if self.unit is None else f" as {UNIT_NAMES[self.unit]}"
            raise InputError(
                f"comes {span(arrival_s)} after the first request{unit}",
                where=where, key=self._key, value=row.time,
                allowed="a trace of at most ten years; traffic.time_unit says what its times count",
            )  # fmt: skip
        return arrival_s

    def _stated_s(self, row: TraceRow, where: str) -> float:
        if row.time is None:
            allowed = "a time in every row, or traffic.rate_per_s=REQUESTS_PER_SECOND to draw arrivals"
            raise InputError("states no time", where=where, allowed=allowed)
        value, dated = moment(row.time, where, self._key)
        if self._dates is None:
            self._kind(dated, row.time, where)
        elif dated != self._dates:
            told = "a date among numbers" if dated else "a number among dates"
            raise InputError(f"is {told}", where=where, key=self._key, value=row.time, allowed="times of one kind")
        per_s = _DATES_PER_S if self.unit is None else UNITS_PER_S[self.unit]
        if value / per_s > LATEST_S:
            problem = f"lies beyond the year 2286 as {UNIT_NAMES[self.unit or 'us']}"
            smaller = [unit for unit, per in UNITS_PER_S.items() if value / per <= LATEST_S]
            raise InputError(
                problem, where=where, key=self._key, value=row.time,
                allowed=" or ".join(f"traffic.time_unit={unit}" for unit in smaller) or "a time since 1970",
            )  # fmt: skip
        self.fractions = self.fractions or value != value // 1
        if self.first is None:
            if not (row.prompt_tokens and row.output_tokens):
                return 0.0
            self.first = value
        return (value - self.first) / per_s

    def _kind(self, dated: bool, value: object, where: str) -> None:
        self._dates = dated
        if dated and self._given is not None:
            problem = f"is a date, and traffic.time_unit={self._given} is of numbers"
            raise InputError(problem, where=where, key=self._key, value=value, allowed="traffic.time_unit=null")
        if dated:
            self.unit = None
        elif self.unit is None:
            allowed = f"YYYY-MM-DD HH:MM:SS[.fraction], or traffic.time_unit={'|'.join(UNITS_PER_S)} for numbers"
            raise InputError("is a number, no date", where=where, key=self._key, value=value, allowed=allowed)


def span(seconds: float) -> str:
    """A time for a person: seconds, and in larger units where it has some."""
    told = f"{seconds:.3f}".rstrip("0").rstrip(".") if seconds < 100 else f"{seconds:,.0f}"
    for size, name in ((86_400 * 365.25, "years"), (86_400, "days"), (3_600, "hours")):
        if seconds >= 2 * size:
            return f"{told} s ({seconds / size:.1f} {name})"
    return f"{told} s"
