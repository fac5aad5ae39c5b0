"""Azure LLM inference traces: CSV with TIMESTAMP (a date), ContextTokens, GeneratedTokens; in one of them NumImages.

Source: Azure/AzurePublicDataset, AzureLLMInferenceTrace of 2023 and 2024 and the multimodal trace. Licence: CC-BY-4.0.
"""

from __future__ import annotations

from collections.abc import Iterator

from bench.traffic.fields import DATES, token_count
from bench.traffic.files import Row
from bench.traffic.formats.format import Asked, TraceFormat, TraceRow

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


def read(row: Row, asked: Asked) -> Iterator[TraceRow]:
    """The row's request. Its images are counted; whether ContextTokens has their tokens is the trace's own matter."""
    fields = row.fields
    yield TraceRow(
        fields["timestamp"],
        token_count(fields, "contexttokens", row.where, named=COLUMNS[1]),
        token_count(fields, "generatedtokens", row.where, named=COLUMNS[2]),
        images=token_count(fields, "numimages", row.where, named="NumImages") if "numimages" in fields else 0,
    )


AZURE = TraceFormat(
    name="azure",
    marks=tuple(column.lower() for column in COLUMNS),
    needs=COLUMNS,
    read=read,
    time_unit=DATES,
    time_key=COLUMNS[0],
)
