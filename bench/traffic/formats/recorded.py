"""What this project's own replays leave behind: ``ARM.REPEAT.requests.jsonl`` of bench.live, a line per request.

Replayed are arrivals, lengths, phases and priorities as they were asked for. A record has no prefixes.

Source: bench/report/records.py.
"""

from __future__ import annotations

from collections.abc import Iterator

from bench.traffic.fields import token_count
from bench.traffic.files import Row
from bench.traffic.formats.format import Asked, TraceFormat, TraceRow
from roofline_policies.errors import InputError

COLUMNS = ("scheduled_s", "prompt_tokens", "output_tokens_asked")


def read(row: Row, asked: Asked) -> Iterator[TraceRow]:
    """The row's request."""
    fields, priority = row.fields, row.fields.get("priority")
    if priority is not None and (isinstance(priority, bool) or not isinstance(priority, int)):
        allowed = "a whole number, or null"
        raise InputError("is no priority", where=row.where, key="priority", value=priority, allowed=allowed)
    yield TraceRow(
        fields["scheduled_s"],
        token_count(fields, "prompt_tokens", row.where),
        token_count(fields, "output_tokens_asked", row.where),
        phase=str(fields["phase"]) if fields.get("phase") else None,
        priority=priority,
        cached_tokens=token_count(fields, "cached_tokens", row.where) if "cached_tokens" in fields else 0,
    )


RECORDED = TraceFormat(
    name="recorded",
    marks=COLUMNS,
    needs=COLUMNS,
    read=read,
    time_unit="s",
    time_key=COLUMNS[0],
    in_order=False,
)
