"""LMSYS-like conversations: JSON lines, or an array, of {"conversation": [{"role": "user", "content": TEXT}, ...]}.

A list of such turns under ``messages``, as chat requests have it, is read as well. LMSYS-Chat-1M itself is released as
Parquet, and is to be written as JSON lines first; it states no times.

Source: lmsys/lmsys-chat-1m; L. Zheng et al., LMSYS-Chat-1M, arXiv 2309.11998. Licence: its own agreement, which whoever
downloads it accepts.
"""

from __future__ import annotations

from collections.abc import Iterator

from bench.traffic.files import Row
from bench.traffic.formats.conversations import OPTIONS, requests_of
from bench.traffic.formats.format import Asked, TraceFormat, TraceRow
from bench.traffic.formats.sharegpt import BLOCK_TOKENS


def read(row: Row, asked: Asked) -> Iterator[TraceRow]:
    """The conversation's requests."""
    turns = "conversation" if "conversation" in row.fields or "messages" not in row.fields else "messages"
    return requests_of(row, asked, turns, "role", "content")


LMSYS = TraceFormat(
    name="lmsys",
    marks=("conversation",),
    needs=(),
    read=read,
    time_unit="s",
    block_tokens=BLOCK_TOKENS,
    in_order=False,
    options=OPTIONS,
)
