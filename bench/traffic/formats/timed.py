"""Timed traces, as load generators take them: JSON lines with timestamp (ms), input_length, output_length.

hash_ids (blocks of 512 tokens) are optional, and a row may have text_input in the place of input_length. Rows of one
session_id are its turns; one with a delay (ms) and no timestamp comes so long after the turn before it. A generator
that waits for answers counts the delay from the answer; an open loop counts it from the request.

Source: ai-dynamo/aiperf, its trace datasets. Licence: Apache-2.0.
"""

from __future__ import annotations

from collections.abc import Iterator

from bench.traffic.fields import block_ids, need, token_count
from bench.traffic.files import Row
from bench.traffic.formats.format import Asked, TraceFormat, TraceRow
from bench.traffic.request import MOONCAKE_BLOCK_TOKENS
from roofline_policies.errors import InputError


def read(row: Row, asked: Asked) -> Iterator[TraceRow]:
    """The row's request."""
    fields, where = row.fields, row.where
    text, delay = fields.get("text_input"), fields.get("delay")
    if "input_length" not in fields and isinstance(text, str):
        prompt_tokens = asked.length(text, where)
    else:
        need(fields, ("input_length",), where)
        prompt_tokens = token_count(fields, "input_length", where)
    if delay is not None and (isinstance(delay, bool) or not isinstance(delay, int | float) or not 0 <= delay < 1e12):
        raise InputError("is not a time", where=where, key="delay", value=delay, allowed="a number >= 0, or null")
    yield TraceRow(
        fields.get("timestamp"),
        prompt_tokens,
        token_count(fields, "output_length", where),
        block_ids(fields, "hash_ids", where),
        session=fields.get("session_id"),
        delay=delay,
    )


TIMED = TraceFormat(
    name="timed",
    marks=("input_length", "output_length"),
    needs=("output_length",),
    read=read,
    time_unit="ms",
    block_tokens=MOONCAKE_BLOCK_TOKENS,
    in_order=False,
    options=frozenset({"tokenizer"}),
)
