"""Qwen-Bailian traces: JSON lines with timestamp (s), input_length, output_length, hash_ids (blocks of 16 tokens).

Beside those: chat_id, parent_chat_id (-1: none) and turn, which the hash ids already tell of, and type: what the
request was for (text, search, image, file).

Source: alibaba-edu/qwen-bailian-usagetraces-anon; J. Wang et al., KVCache Cache in the Wild, USENIX ATC 2025.
Licence: the one in that repository.
"""

from __future__ import annotations

from collections.abc import Iterator

from bench.traffic.fields import block_ids, token_count
from bench.traffic.files import Row
from bench.traffic.formats.format import Asked, TraceFormat, TraceRow

COLUMNS = ("timestamp", "input_length", "output_length")
BLOCK_TOKENS = 16
MEDIA = ("image", "audio", "video")
"""Types of a request whose prompt holds more than text."""


def read(row: Row, asked: Asked) -> Iterator[TraceRow]:
    """The row's request."""
    kind = row.fields.get("type")
    yield TraceRow(
        row.fields["timestamp"],
        token_count(row.fields, "input_length", row.where),
        token_count(row.fields, "output_length", row.where),
        block_ids(row.fields, "hash_ids", row.where),
        media=str(kind) if kind in MEDIA else "",
    )


BAILIAN = TraceFormat(
    name="bailian",
    marks=("chat_id", "parent_chat_id", *COLUMNS),
    needs=COLUMNS,
    read=read,
    time_unit="s",
    block_tokens=BLOCK_TOKENS,
)
