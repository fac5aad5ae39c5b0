"""ShareGPT-like conversations: a JSON array or lines of {"conversations": [{"from": "human", "value": TEXT}, ...]}.

Source: the files that serving benchmarks call ShareGPT_V3_unfiltered_cleaned_split.json
(anon8231489123/ShareGPT_Vicuna_unfiltered). Licence: as stated there (Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Iterator

from bench.traffic.files import Row
from bench.traffic.formats.conversations import OPTIONS, requests_of
from bench.traffic.formats.format import Asked, TraceFormat, TraceRow

BLOCK_TOKENS = 64
"""Of the blocks that turns of one conversation share: what is left over of a prompt is not shared."""


def read(row: Row, asked: Asked) -> Iterator[TraceRow]:
    """The conversation's requests."""
    return requests_of(row, asked, "conversations", "from", "value")


SHAREGPT = TraceFormat(
    name="sharegpt",
    marks=("conversations",),
    needs=("conversations",),
    read=read,
    time_unit="s",
    block_tokens=BLOCK_TOKENS,
    in_order=False,
    options=OPTIONS,
)
