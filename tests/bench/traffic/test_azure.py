from __future__ import annotations

import re
from itertools import islice
from pathlib import Path

import pytest

from bench.traffic.notes import Tally
from bench.traffic.request import Request
from bench.traffic.trace import TraceKeys, read_trace
from roofline_policies.errors import InputError
from tests.bench.traffic.traces import read, shared_trace

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
FIRST = "2023-11-16 18:15:46.6805900,374,44\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "trace.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_reads_lengths_and_seconds_since_the_first_request(tmp_path: Path) -> None:
    path = write(tmp_path, HEADER + FIRST + "2023-11-16 18:15:50.9951690,396,109\n")
    first, second = read(path, "azure")
    assert first == Request(0.0, 374, 44, phase="azure")
    assert (second.prompt_tokens, second.output_tokens) == (396, 109)
    assert second.arrival_s == pytest.approx(4.314579, abs=1e-6)


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("GeneratedTokens,TIMESTAMP,ContextTokens\n", "44,2023-11-16 18:15:46.68,374\n"),
        ("\ufeffTIMESTAMP,ContextTokens,GeneratedTokens\r\n", "2023-11-16 18:15:46.68,374,44\r\n"),
        ("TIMESTAMP, ContextTokens, GeneratedTokens,Extra\n", "2024-05-10 00:00:00.009930+00:00,374,44,x\n"),
    ],
)
def test_accepts_other_column_orders_line_ends_and_time_zones(tmp_path: Path, header: str, row: str) -> None:
    (only,) = read(write(tmp_path, header + row + "\n"), "azure")
    assert (only.arrival_s, only.prompt_tokens, only.output_tokens) == (0.0, 374, 44)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "{path}: is empty; allowed: a trace with at least one request"),
        (" \n\n", "{path}: is empty; allowed: a trace with at least one request"),
        (HEADER, "{path}: is empty; allowed: a trace with at least one request"),
        (
            "TIMESTAMP,ContextTokens\n2023-11-16 18:15:47,5\n",
            "{path}: line 2: columns = 'timestamp,contexttokens': has no column GeneratedTokens; "
            "allowed: a trace with TIMESTAMP, ContextTokens, GeneratedTokens",
        ),
        (
            HEADER + FIRST + "2023-11-16 18:15:47,-5,1\n",
            "{path}: line 3: ContextTokens = '-5': a length is not negative; allowed: whole number >= 0",
        ),
        (
            HEADER + "2023-11-16 18:15:47,5.5,1\n",
            "{path}: line 2: ContextTokens = '5.5': is not a whole number; allowed: whole number >= 0",
        ),
        (
            HEADER + "2023-11-16 18:15:47,1_000,1\n",
            "{path}: line 2: ContextTokens = '1_000': is not a whole number; allowed: whole number >= 0",
        ),
        (
            HEADER + "yesterday,5,1\n",
            "{path}: line 2: TIMESTAMP = 'yesterday': is not a time; allowed: YYYY-MM-DD HH:MM:SS[.fraction]",
        ),
        (
            HEADER + FIRST + "2023-11-16 18:15:45.6805900,5,1\n",
            "{path}: line 3: TIMESTAMP = '2023-11-16 18:15:45.6805900': lies 1 s before the line above; "
            "allowed: times that never decrease, or traffic.sort=true to have them sorted",
        ),
        (
            HEADER + "2023-11-16 18:15:47,5\n",
            "{path}: line 2: '2023-11-16 18:15:47,5': has 2 columns, the header has 3; "
            "allowed: TIMESTAMP,ContextTokens,GeneratedTokens",
        ),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(InputError, match=f"^{re.escape(message.format(path=path))}$"):
        read(path, "azure")


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.csv: no such file; allowed: path of a trace file"):
        read(tmp_path / "nowhere.csv", "azure")
    with pytest.raises(InputError, match="is a directory"):
        read(tmp_path, "azure")


def test_a_binary_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_bytes(HEADER.encode() + b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"is not text \(byte 0xff\); allowed: UTF-8 text"):
        read(path, "azure")


def test_reads_no_further_than_asked(tmp_path: Path) -> None:
    path = write(tmp_path, HEADER + FIRST + "broken\n")
    assert len(list(islice(read_trace(TraceKeys(str(path), "azure"), 0, Tally()), 1))) == 1


@pytest.mark.parametrize(("name", "rows"), [("azure_2023_code.csv", 8819), ("azure_2023_conv.csv", 19366)])
def test_reads_the_published_traces_whole(name: str, rows: int) -> None:
    requests = read(shared_trace(name), "azure")
    assert len(requests) == rows
    assert 3400 < requests[-1].arrival_s < 3600
