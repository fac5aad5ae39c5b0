"""Trace files as they come: packed, with a byte order mark, broken, huge."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tracemalloc
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.traffic import files
from bench.traffic.files import open_trace, rows
from roofline_policies.errors import InputError
from tests.bench.traffic.traces import read

LINES = "".join(json.dumps({"timestamp": 1000 * n, "input_length": 9, "output_length": 2}) + "\n" for n in range(3))
CSV = (
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,GPT-4,9,2,11,API log\n7,GPT-4,9,2,11,API log\n"
)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, bytes])
@pytest.mark.parametrize("text", [LINES, CSV])
def test_packed_files_are_read_whatever_their_names(tmp_path: Path, pack: Callable[[bytes], bytes], text: str) -> None:
    plain, packed = tmp_path / "plain", tmp_path / "packed.csv"
    plain.write_text(text)
    packed.write_bytes(pack(text.encode()))
    assert read(packed) == read(plain)


@pytest.mark.parametrize("text", [LINES, CSV, f"[{LINES.rstrip().replace(chr(10), ',')}]"])
def test_line_ends_blank_lines_and_a_byte_order_mark_change_nothing(tmp_path: Path, text: str) -> None:
    plain, other = tmp_path / "plain", tmp_path / "other"
    plain.write_text(text)
    other.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode() + b"\r\n\r\n  \r\n")
    assert read(other) == read(plain)
    assert len(read(plain)) >= 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; allowed: a trace with at least one request"),
        (b"\xef\xbb\xbf\r\n \r\n", "is empty; allowed: a trace with at least one request"),
        (b"[ ]", "is empty; allowed: a trace with at least one request"),
        (b"Timestamp,Request tokens,Response tokens\n", "is empty; allowed: a trace with at least one request"),
        (b"\xff\xfe{\x00", "is not text (byte 0xff); allowed: UTF-8 text"),
        (LINES.encode()[:70] + b"\xe4", "is not text (byte 0xe4); allowed: UTF-8 text"),
        (
            gzip.compress(LINES.encode())[:40],
            "cannot be unpacked (Compressed file ended before the end-of-stream marker",
        ),
        (b"\x1f\x8b\x08\x00broken, not gzip at all", "cannot be unpacked ("),
        (b"PAR1\x15\x04", "is Parquet; allowed: CSV or JSON, plain or packed with gzip, bzip2 or xz"),
        (b"PK\x03\x04\x14\x00", "is a zip archive; allowed: CSV or JSON, plain or packed with gzip, bzip2 or xz"),
        (b"\x28\xb5\x2f\xfd\x04", "is packed with zstd; allowed: CSV or JSON"),
        (LINES.encode() + b"{oops", "line 4: '{oops': is not JSON (Expecting property name"),
        (LINES.encode() + b"[1]", "line 4: '[1]': is not an object; allowed: one JSON object per line"),
        (
            b"[" + LINES.splitlines()[0].encode(),
            "item 2: '': is not JSON (the array does not end); allowed: one JSON array",
        ),
        (b"[3]", "item 1: '3': is not an object; allowed: one JSON array of objects"),
        (b'[{"timestamp": oops}]', "item 1: '{\"timestamp\": oops}]': is not JSON (Expecting value)"),
        (CSV.encode() + b"8,9\n", "line 4: '8,9': has 2 columns, the header has 6; allowed: Timestamp,Model,"),
        (CSV.encode() + b'"8', "line 4: '8': has 1 columns, the header has 6"),
        (b"Timestamp,timestamp\n1,2\n", "line 1: column = 'timestamp': is there twice"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "trace"
    path.write_bytes(content)
    with pytest.raises(InputError) as refused:
        read(path)
    text = str(refused.value)
    assert text[: len(f"{path}: {message}")] == f"{path}: {message}"
    assert "\n" not in text


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    for path, message in (
        (tmp_path / "nowhere", "no such file; allowed: path of a trace file"),
        (tmp_path, "is a directory; allowed: path of a trace file"),
        (Path("a\0b"), "cannot be read (embedded null byte); allowed: path of a readable trace file"),
    ):
        with pytest.raises(InputError) as refused:
            read(path)
        assert str(refused.value) == f"{path}: {message}"


JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(
    st.lists(st.dictionaries(st.text(), JSONS), min_size=1, max_size=8), st.integers(1, 40), st.sampled_from([None, 1])
)
def test_an_array_is_read_alike_however_it_is_cut(
    objects: list[dict[str, Any]], chunk: int, indent: int | None
) -> None:
    text = json.dumps(objects, indent=indent)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "CHUNK", chunk)
        assert [row.fields for row in rows(io.StringIO(text), "x")] == objects
        lines = "\n".join(map(json.dumps, objects))
        assert [row.fields for row in rows(io.StringIO(lines), "x")] == objects


@pytest.mark.parametrize("array", [False, True])
def test_no_more_than_a_part_of_a_large_file_is_held(tmp_path: Path, array: bool) -> None:
    row = json.dumps({"timestamp": 0, "input_length": 9, "output_length": 2, "note": "x" * 1000})
    path = tmp_path / "large.json"
    path.write_text("[" + ",".join([row] * 30_000) + "]" if array else f"{row}\n" * 30_000)  # 31 MB
    tracemalloc.start()
    try:
        with open_trace(path) as file:
            assert sum(1 for _ in rows(file, path)) == 30_000
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_reading_stops_where_nobody_asks(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_text(LINES + "x" * (4 * files.CHUNK))
    with open_trace(path) as file:
        assert len(list(islice(rows(file, path), 3))) == 3


def test_a_line_without_end_is_refused_before_memory_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LONGEST", 1 << 20)
    path = tmp_path / "trace"
    for begin in ("{", "[{", "a,"):
        path.write_text(begin + "x" * (3 << 20))
        with pytest.raises(InputError, match="has a line or an object of more than 1 MiB"):
            read(path)
