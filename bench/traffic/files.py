"""Trace files as rows: CSV, JSON lines or one JSON array, plain or compressed, read as they are asked for."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, Any, NamedTuple

from roofline_policies.errors import InputError

CHUNK = 1 << 20
"""Characters read at a time."""
LONGEST = 1 << 27
"""Characters of the longest line or object: what is longer belongs to no trace, and would fill the memory."""

_PACKED: Mapping[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
_FOREIGN: Mapping[bytes, str] = {
    b"PAR1": "Parquet", b"PK\x03\x04": "a zip archive", b"\x28\xb5\x2f\xfd": "packed with zstd", b"\x89HDF": "HDF5",
}  # fmt: skip
_READABLE = "CSV or JSON, plain or packed with gzip, bzip2 or xz"
_ONE_OBJECT = "one JSON object per line"
_BETWEEN = re.compile(r"\s*,?\s*")


class Row(NamedTuple):
    """One row: where it stands (``file: line 3``), its place (from 0), its fields. CSV: texts, lower-case names."""

    where: str
    number: int
    fields: Mapping[str, Any]


@contextmanager
def open_trace(path: str | Path) -> Iterator[IO[str]]:
    """The trace as UTF-8 text: unpacked, a byte order mark skipped, lines ended by line feeds alone.

    Raises:
        InputError: the file is missing, is no file, cannot be read or unpacked, or is not UTF-8.
    """
    where = str(path)
    try:
        with _opened(path) as raw:
            head = raw.peek(8)[:8]
            for magic, name in _FOREIGN.items():
                if head.startswith(magic):
                    raise InputError(f"is {name}", where=where, allowed=_READABLE)
            unpack = next((opener for magic, opener in _PACKED.items() if head.startswith(magic)), None)
            with io.TextIOWrapper(unpack(raw) if unpack else raw, encoding="utf-8-sig") as text:
                yield text
    except FileNotFoundError:
        raise InputError("no such file", where=where, allowed="path of a trace file") from None
    except IsADirectoryError:
        raise InputError("is a directory", where=where, allowed="path of a trace file") from None
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise InputError(f"cannot be unpacked ({error})", where=where, allowed="a complete archive") from None
    except UnicodeDecodeError as error:
        byte = f"is not text (byte {error.object[error.start]:#04x})"
        raise InputError(byte, where=where, allowed="UTF-8 text") from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"cannot be read ({reason})", where=where, allowed="path of a readable trace file") from None


def _opened(path: str | Path) -> io.BufferedReader:
    try:
        return open(path, "rb")
    except ValueError as error:  # a null byte in the path
        raise OSError(str(error)) from None


def rows(file: IO[str], path: str | Path) -> Iterator[Row]:
    """The rows of an open trace, in order: of a JSON array where it begins with ``[``, of JSON lines with ``{``, else
    of CSV whose first line names the columns. Blank lines count for nothing.

    Raises:
        InputError: nothing is in it, or a line cannot be used; names file, line and value.
    """
    head = ""
    while not head.strip():
        chunk = file.read(CHUNK)
        if not chunk:
            raise InputError("is empty", where=str(path), allowed="a trace with at least one request")
        head += chunk
    chunks = chain([head], iter(lambda: file.read(CHUNK), ""))
    begin = head.lstrip()[0]
    if begin == "[":
        return _items(chunks, path)
    return _objects(_lines(chunks, path), path) if begin == "{" else _cells(_lines(chunks, path), path)


def _lines(chunks: Iterator[str], path: str | Path) -> Iterator[str]:
    rest = ""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split("\n")
        yield from whole
        _not_endless(rest, path)
    if rest:
        yield rest


def _not_endless(rest: str, path: str | Path) -> None:
    if len(rest) > LONGEST:
        problem = f"has a line or an object of more than {LONGEST >> 20} MiB"
        raise InputError(problem, where=str(path), allowed=_ONE_OBJECT + ", CSV, or one JSON array of objects")


def _objects(lines: Iterator[str], path: str | Path) -> Iterator[Row]:
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        where = f"{path}: line {number + 1}"
        try:
            fields = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            told = getattr(error, "msg", "too deep")
            problem = f"is not JSON ({told})"
            raise InputError(problem, where=where, value=line.strip()[:80], allowed=_ONE_OBJECT) from None
        if not isinstance(fields, dict):
            raise InputError("is not an object", where=where, value=line.strip()[:80], allowed=_ONE_OBJECT)
        yield Row(where, number, fields)


def _items(chunks: Iterator[str], path: str | Path) -> Iterator[Row]:
    """The objects of one JSON array, without holding more than one of them and a chunk."""
    decoder, allowed = json.JSONDecoder(), "one JSON array of objects"
    text, at, number = next(chunks).lstrip(), 1, 0
    while True:
        between = _BETWEEN.match(text, at)
        at = between.end() if between else at
        if text.startswith("]", at):
            if not number:
                raise InputError("is empty", where=str(path), allowed="a trace with at least one request")
            return
        where = f"{path}: item {number + 1}"
        try:
            fields, end = decoder.raw_decode(text, at)
        except (json.JSONDecodeError, RecursionError) as error:
            more = next(chunks, "")
            if more:  # the object goes on in the next chunk
                text, at = text[at:] + more, 0
                _not_endless(text, path)
                continue
            told = getattr(error, "msg", "too deep") if text[at:] else "the array does not end"
            raise InputError(f"is not JSON ({told})", where=where, value=text[at:][:80], allowed=allowed) from None
        if not isinstance(fields, dict):
            raise InputError("is not an object", where=where, value=text[at:end][:80], allowed=allowed)
        yield Row(where, number, fields)
        number, at = number + 1, end


def _cells(lines: Iterator[str], path: str | Path) -> Iterator[Row]:
    table = csv.reader(lines)
    try:
        header = next((row for row in table if row), [])
        names = [name.strip().lower() for name in header]
        twice = next((name for place, name in enumerate(names) if name and name in names[:place]), None)
        if twice is not None:
            raise InputError("is there twice", where=f"{path}: line 1", key="column", value=twice)
        for row in table:
            if not row or not any(cell.strip() for cell in row):
                continue
            where = f"{path}: line {table.line_num}"
            if len(row) != len(header):
                problem = f"has {len(row)} columns, the header has {len(header)}"
                raise InputError(problem, where=where, value=",".join(row)[:80], allowed=",".join(header)[:200])
            yield Row(where, table.line_num, dict(zip(names, row, strict=True)))
    except csv.Error as error:
        where = f"{path}: line {table.line_num}"
        raise InputError(f"is not CSV ({error})", where=where, allowed="comma-separated values") from None
