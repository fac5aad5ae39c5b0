"""Azure LLM inference traces: CSV with TIMESTAMP, ContextTokens, GeneratedTokens.

Source: Azure/AzurePublicDataset, AzureLLMInferenceTrace (2023 and 2024).
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from bench.traffic.fields import in_order, open_trace, token_count
from bench.traffic.request import Request
from roofline_policies.errors import InputError

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


def read_azure(path: str | Path, phase: str = "azure") -> Iterator[Request]:
    """The trace's requests in file order, arrivals in seconds after its first request; read as they are asked for.

    Raises:
        InputError: the file or one of its lines cannot be used; names file, line, column, value and what is allowed.
    """
    with open_trace(path) as file:
        rows = csv.reader(file)
        try:
            header = next(rows, None)
            if header is None:
                raise InputError("is empty", where=str(path), allowed="a header line " + ",".join(COLUMNS))
            places = _places(header, path)
            first: datetime | None = None
            previous_s: float | None = None
            for row in rows:
                if not row:
                    continue
                where = f"{path}: line {rows.line_num}"
                if len(row) != len(header):
                    problem = f"has {len(row)} columns, the header has {len(header)}"
                    raise InputError(problem, where=where, value=",".join(row)[:80], allowed=",".join(header))
                stamp, prompt, output = (row[place] for place in places)
                moment = _moment(stamp, where)
                first = first or moment
                arrival_s = (moment - first).total_seconds()
                in_order(previous_s, arrival_s, where=where, column=COLUMNS[0], value=stamp)
                previous_s = arrival_s
                yield Request(
                    arrival_s,
                    token_count(prompt, where=where, column=COLUMNS[1]),
                    token_count(output, where=where, column=COLUMNS[2]),
                    phase=phase,
                )
        except csv.Error as error:
            raise InputError(
                f"is not CSV ({error})", where=f"{path}: line {rows.line_num}", allowed="comma-separated values"
            ) from None


def _places(header: list[str], path: str | Path) -> tuple[int, ...]:
    names = [name.strip() for name in header]
    missing = [column for column in COLUMNS if column not in names]
    if missing:
        raise InputError(
            f"has no column {', '.join(missing)}",
            where=f"{path}: line 1",
            key="columns",
            value=",".join(names)[:80],
            allowed="a header with " + ",".join(COLUMNS),
        )
    return tuple(names.index(column) for column in COLUMNS)


def _moment(text: str, where: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise InputError(
            "is not a time", where=where, key=COLUMNS[0], value=text, allowed="YYYY-MM-DD HH:MM:SS[.fraction]"
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
