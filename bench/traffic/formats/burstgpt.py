"""BurstGPT: CSV with Timestamp (s), Model, Request tokens, Response tokens, Total tokens, Log Type.

Some releases have Session ID and Elapsed time as well. A request that failed has no response tokens.

Source: HPMLL/BurstGPT; Y. Wang et al., BurstGPT, arXiv 2401.17644. Licence: CC-BY-4.0.
"""

from __future__ import annotations

from collections.abc import Iterator

from bench.traffic.fields import token_count
from bench.traffic.files import Row
from bench.traffic.formats.format import Asked, TraceFormat, TraceRow

COLUMNS = ("Timestamp", "Request tokens", "Response tokens")


def read(row: Row, asked: Asked) -> Iterator[TraceRow]:
    """The row's request, whichever model answered it."""
    fields = row.fields
    yield TraceRow(
        fields["timestamp"],
        token_count(fields, "request tokens", row.where, named=COLUMNS[1]),
        token_count(fields, "response tokens", row.where, named=COLUMNS[2]),
    )


BURSTGPT = TraceFormat(
    name="burstgpt",
    marks=tuple(column.lower() for column in COLUMNS),
    needs=COLUMNS,
    read=read,
    time_unit="s",
    time_key=COLUMNS[0],
    empty_output="no response tokens: they failed",
)
