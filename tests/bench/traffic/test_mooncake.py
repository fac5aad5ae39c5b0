from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from bench.traffic.request import Request
from roofline_policies.errors import InputError
from tests.bench.traffic.traces import read, shared_trace

GOOD: dict[str, Any] = {"timestamp": 1500, "input_length": 1100, "output_length": 6, "hash_ids": [7, 8, 9]}


def write(folder: Path, *lines: str) -> Path:
    path = folder / "trace.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def changed(**fields: Any) -> str:
    return json.dumps({**GOOD, **fields})


def test_reads_milliseconds_lengths_and_blocks(tmp_path: Path) -> None:
    path = write(tmp_path, json.dumps(GOOD), "", changed(timestamp=91500.5, hash_ids=[]))
    assert read(path, "mooncake") == [
        Request(0.0, 1100, 6, (7, 8, 9), "mooncake", 512),
        Request(90.0005, 1100, 6, (), "mooncake", 512),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "{oops",
            "'{{oops': is not JSON (Expecting property name enclosed in double quotes); allowed: one JSON object",
        ),
        ("[1]", "'[1]': is not an object; allowed: one JSON object per line"),
        (
            '{"timestamp": 1, "input_length": 2}',
            "columns = 'timestamp,input_length': has no column output_length; "
            "allowed: a trace with timestamp, input_length, output_length",
        ),
        (
            changed(timestamp=-1),
            "timestamp = -1: is not a time; allowed: a number >= 0, or YYYY",
        ),
        (
            changed(timestamp=float("nan")),
            "timestamp = nan: is not a time; allowed: a number >= 0, or YYYY",
        ),
        (changed(timestamp="now"), "timestamp = 'now': is not a time; allowed: YYYY-MM-DD HH:MM:SS[.fraction]"),
        (
            changed(timestamp="2024-01-01"),
            "timestamp = '2024-01-01': is a date among numbers",
        ),
        (
            changed(timestamp=1000),
            "timestamp = 1000: lies 0.5 s before the line above; allowed: times that never decrease, or traffic.sort",
        ),
        (changed(input_length=-1), "input_length = -1: a length is not negative; allowed: whole number >= 0"),
        (changed(output_length=1.5), "output_length = 1.5: is not a whole number; allowed: whole number >= 0"),
        (changed(output_length=True), "output_length = True: is not a whole number; allowed: whole number >= 0"),
        (changed(hash_ids="7"), "hash_ids = '7': is not a list; allowed: list of whole numbers >= 0"),
        (changed(hash_ids=[1, -2]), "hash_ids = -2: is not a block id; allowed: list of whole numbers >= 0"),
        (
            changed(hash_ids=[1, 2, 3, 4]),
            "hash_ids: has 4 blocks for 1100 prompt tokens; allowed: at most 3 blocks of 512",
        ),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = write(tmp_path, json.dumps(GOOD), line)
    expected = f"{path}: line 2: " + message.replace("{{", "{")
    with pytest.raises(InputError, match="^" + re.escape(expected)):
        read(path, "mooncake")


def test_reads_the_published_trace_whole() -> None:
    requests = read(shared_trace("mooncake_synthetic.jsonl"), "mooncake")
    assert len(requests) == 3993
    assert requests[-1].arrival_s == pytest.approx(1022.025)
