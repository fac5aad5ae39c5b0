"""Mooncake traces: JSON lines with timestamp (ms), input_length, output_length and hash_ids (blocks of 512 tokens).

Equal hash ids stand for equal prefixes. One format for the conversation, the tool-and-agent and the synthetic trace.

Source: kvcache-ai/Mooncake, FAST25-release. Licence: Apache-2.0.
"""

from __future__ import annotations

from collections.abc import Iterator

from bench.traffic.fields import block_ids, token_count
from bench.traffic.files import Row
from bench.traffic.formats.format import Asked, TraceFormat, TraceRow
from bench.traffic.request import MOONCAKE_BLOCK_TOKENS

COLUMNS = ("timestamp", "input_length", "output_length")


def read(row: Row, asked: Asked) -> Iterator[TraceRow]:
    """The row's request. Without hash ids its prompt shares nothing."""
    yield TraceRow(
        row.fields["timestamp"],
        token_count(row.fields, "input_length", row.where),
        token_count(row.fields, "output_length", row.where),
        block_ids(row.fields, "hash_ids", row.where),
    )


MOONCAKE = TraceFormat(
    name="mooncake",
    marks=(*COLUMNS, "hash_ids"),
    needs=COLUMNS,
    read=read,
    time_unit="ms",
    block_tokens=MOONCAKE_BLOCK_TOKENS,
)
