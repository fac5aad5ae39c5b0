"""One field of one row of a trace: a length, a time, prefix blocks, or an error that names file, line and column."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from roofline_policies.errors import InputError

UNITS_PER_S: Mapping[str, int] = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
"""Time units that a trace may count in, as ``traffic.time_unit`` has them."""
DATES = "dates"
"""In the place of a time unit: times are dates with a time of day."""

_WHOLE = re.compile(r"\s*[+-]?[0-9]{1,18}(\.0*)?\s*")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_DATE_FORM = "YYYY-MM-DD HH:MM:SS[.fraction]"


def token_count(fields: Mapping[str, Any], column: str, where: str, *, named: str = "") -> int:
    """A length in tokens, at least 0, from a CSV cell or a JSON number. named: what an error calls the column.

    Raises:
        InputError: absent, not a whole number, or below 0.
    """
    value, key, allowed = fields.get(column), named or column, "whole number >= 0"
    if isinstance(value, str) and _WHOLE.fullmatch(value):
        count = int(value.partition(".")[0])
    elif isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1 and abs(value) < 1e18:
        count = int(value)
    else:
        shown = value[:80] if isinstance(value, str) else value
        raise InputError("is not a whole number", where=where, key=key, value=shown, allowed=allowed)
    if count < 0:
        raise InputError("a length is not negative", where=where, key=key, value=value, allowed=allowed)
    return count


def moment(value: object, where: str, key: str) -> tuple[int | float, bool]:
    """A time as the trace has it: a number in its unit, or a date as whole microseconds since 1970 and True.

    Raises:
        InputError: neither, not finite, or negative.
    """
    if isinstance(value, str):
        text = value.strip()
        try:
            number = float(text) if not _WHOLE.fullmatch(text) else int(text.partition(".")[0])
        except ValueError:
            return _date(text, where, key), True
        value = number
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise InputError("is not a time", where=where, key=key, value=value, allowed=f"a number >= 0, or {_DATE_FORM}")
    return value, False


def _date(text: str, where: str, key: str) -> int:
    try:
        date = datetime.fromisoformat(text)
    except ValueError:
        raise InputError("is not a time", where=where, key=key, value=text[:80], allowed=_DATE_FORM) from None
    return ((date if date.tzinfo else date.replace(tzinfo=UTC)) - _EPOCH) // _MICROSECOND


def block_ids(fields: Mapping[str, Any], column: str, where: str) -> tuple[int, ...] | None:
    """Ids of a prompt's blocks; None where the row has none.

    Raises:
        InputError: no list of whole numbers from 0 on.
    """
    value = fields.get(column)
    if value is None:
        return None
    allowed = "list of whole numbers >= 0"
    if not isinstance(value, list):
        raise InputError("is not a list", where=where, key=column, value=value, allowed=allowed)
    for block in value:
        if isinstance(block, bool) or not isinstance(block, int) or block < 0:
            raise InputError("is not a block id", where=where, key=column, value=block, allowed=allowed)
    return tuple(value)


def need(fields: Mapping[str, Any], columns: Sequence[str], where: str, *, named: Sequence[str] = ()) -> None:
    """Nothing, if the row has every one of the columns. named: what an error calls them, in the same order.

    Raises:
        InputError: one is missing.
    """
    missing = [name for column, name in zip(columns, named or columns, strict=True) if column not in fields]
    if missing:
        raise InputError(
            f"has no column {', '.join(missing)}", where=where, key="columns", value=",".join(fields)[:160],
            allowed=f"a trace with {', '.join(named or columns)}",
        )  # fmt: skip
