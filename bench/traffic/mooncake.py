"""Mooncake traces: JSON lines with timestamp (ms), input_length, output_length and hash_ids (blocks of 512 tokens).

Source: kvcache-ai/Mooncake; equal hash ids stand for equal prefixes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

from bench.traffic.fields import in_order, open_trace, token_count
from bench.traffic.request import MOONCAKE_BLOCK_TOKENS, Request
from roofline_policies.errors import InputError

COLUMNS = ("timestamp", "input_length", "output_length", "hash_ids")
LATEST_MS = 1e15


def read_mooncake(path: str | Path, phase: str = "mooncake") -> Iterator[Request]:
    """The trace's requests in file order, arrivals in seconds on the trace's clock; read as they are asked for.

    Raises:
        InputError: the file or one of its lines cannot be used; names file, line, column, value and what is allowed.
    """
    with open_trace(path) as file:
        previous_s: float | None = None
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path}: line {number}"
            fields = _object(line, where)
            stamp = fields["timestamp"]
            if isinstance(stamp, bool) or not isinstance(stamp, int | float) or not 0 <= stamp <= LATEST_MS:
                raise InputError(
                    "is not a time", where=where, key="timestamp", value=stamp, allowed="milliseconds >= 0"
                )
            arrival_s = stamp / 1e3
            in_order(previous_s, arrival_s, where=where, column="timestamp", value=stamp)
            previous_s = arrival_s
            prompt_tokens = token_count(fields["input_length"], where=where, column="input_length")
            yield Request(
                arrival_s,
                prompt_tokens,
                token_count(fields["output_length"], where=where, column="output_length"),
                _blocks(fields["hash_ids"], prompt_tokens, where),
                phase,
            )


def _object(line: str, where: str) -> dict[str, object]:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(
            f"is not JSON ({error.msg})", where=where, value=line.strip()[:80], allowed="one JSON object per line"
        ) from None
    if not isinstance(fields, dict):
        raise InputError("is not an object", where=where, value=line.strip()[:80], allowed="one JSON object per line")
    missing = [column for column in COLUMNS if column not in fields]
    if missing:
        raise InputError(
            f"has no column {', '.join(missing)}",
            where=where,
            key="columns",
            value=",".join(fields)[:80],
            allowed=COLUMNS,
        )
    return fields


def _blocks(value: object, prompt_tokens: int, where: str) -> tuple[int, ...]:
    allowed = "list of whole numbers >= 0"
    if not isinstance(value, list):
        raise InputError("is not a list", where=where, key="hash_ids", value=value, allowed=allowed)
    for block in value:
        if isinstance(block, bool) or not isinstance(block, int) or block < 0:
            raise InputError("is not a block id", where=where, key="hash_ids", value=block, allowed=allowed)
    most = math.ceil(prompt_tokens / MOONCAKE_BLOCK_TOKENS)
    if len(value) > most:
        problem = f"has {len(value)} blocks for {prompt_tokens} prompt tokens"
        raise InputError(
            problem, where=where, key="hash_ids", allowed=f"at most {most} blocks of {MOONCAKE_BLOCK_TOKENS}"
        )
    return tuple(value)
