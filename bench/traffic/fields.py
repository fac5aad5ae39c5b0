"""Checks shared by the trace readers: one field of one line, or an error that names both."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from roofline_policies.errors import InputError

_WHOLE = re.compile(r"\s*[+-]?[0-9]{1,18}\s*")


@contextmanager
def open_trace(path: str | Path) -> Iterator[IO[str]]:
    """The trace opened as UTF-8 text, a byte order mark skipped.

    Raises:
        InputError: the file is missing, is no regular file, cannot be read or is not UTF-8.
    """
    where = str(path)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            yield file
    except FileNotFoundError:
        raise InputError("no such file", where=where, allowed="path of a trace file") from None
    except IsADirectoryError:
        raise InputError("is a directory", where=where, allowed="path of a trace file") from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"cannot be read ({reason})", where=where, allowed="path of a readable trace file") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"is not text (byte {error.object[error.start]:#04x})", where=where, allowed="UTF-8 text"
        ) from None


def token_count(value: object, *, where: str, column: str) -> int:
    """A length in tokens, at least 1, from a CSV cell or a JSON number.

    Raises:
        InputError: not a whole number, or below 1.
    """
    allowed = "whole number >= 1"
    if isinstance(value, str):
        if not _WHOLE.fullmatch(value):
            raise InputError("is not a whole number", where=where, key=column, value=value[:80], allowed=allowed)
        count = int(value)
    elif isinstance(value, int) and not isinstance(value, bool):
        count = value
    else:
        raise InputError("is not a whole number", where=where, key=column, value=value, allowed=allowed)
    if count < 1:
        raise InputError("a request needs at least one token", where=where, key=column, value=value, allowed=allowed)
    return count


def in_order(previous_s: float | None, now_s: float, *, where: str, column: str, value: object) -> None:
    """Nothing, if ``now_s`` does not lie before the line above.

    Raises:
        InputError: time runs backwards.
    """
    if previous_s is not None and now_s < previous_s:
        problem = f"lies {previous_s - now_s:.6g} s before the line above"
        raise InputError(problem, where=where, key=column, value=value, allowed="times that never decrease")
