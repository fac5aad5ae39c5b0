"""The result file: one JSON line per finished unit, appended so that neither a crash nor a kill costs what is in it."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bench.report.metrics import Metrics
from roofline_policies.errors import InputError


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one unit.

    key: digest of all that decides it (bench/sweep/keys.py). cell: where it ran, for a reader of the file. row: its
    metrics. tail: last lines of what led to a crash. cpu_s: seconds of one core; None for a crash.
    """

    key: str
    cell: str
    row: Metrics
    tail: tuple[str, ...] = ()
    cpu_s: float | None = None

    @property
    def crashed(self) -> bool:
        return bool(self.row["status"] != "ok")


class ResultFile:
    """The outcomes of a folder's ``results.jsonl``, by key; of a key that is there twice, the last counts.

    A context manager: within it nobody else can append. A last line without its end, as a kill leaves it, is cut off;
    ``unreadable`` counts other lines that are no outcome, which stay where they are and are not used.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.outcomes: dict[str, Outcome] = {}
        self.unreadable = 0

    def __enter__(self) -> Self:
        """Open, lock and read the file.

        Raises:
            InputError: it cannot be opened, or another sweep appends to it.
        """
        allowed = "another out_dir, or the end of the other sweep"
        try:
            self._file = self.path.open("a+b", buffering=0)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise InputError("is being written by another sweep", where=str(self.path), allowed=allowed) from None
        except OSError as error:
            raise InputError(f"cannot be written ({error.strerror})", where=str(self.path)) from None
        self._file.seek(0)
        whole, end, torn = self._file.read().rpartition(b"\n")
        self.outcomes, self.unreadable = parse(whole.splitlines())
        if torn:
            self._file.truncate(len(whole) + len(end))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def add(self, outcome: Outcome) -> None:
        """Append an outcome; it is on disk when this returns."""
        self._file.write(json.dumps(asdict(outcome)).encode() + b"\n")  # unbuffered: one write of the whole line
        os.fsync(self._file.fileno())
        self.outcomes[outcome.key] = outcome


def parse(lines: Iterable[bytes]) -> tuple[dict[str, Outcome], int]:
    """The outcomes of complete lines by key, and how many of the lines are none."""
    outcomes, unreadable = {}, 0
    for line in lines:
        outcome = _outcome(line)
        if outcome is None:
            unreadable += 1
        else:
            outcomes[outcome.key] = outcome
    return outcomes, unreadable


def _outcome(line: bytes) -> Outcome | None:
    try:
        fields: Any = json.loads(line)
        outcome = Outcome(**{**fields, "tail": tuple(fields["tail"])})
    except (ValueError, TypeError, KeyError):
        return None
    whole = isinstance(outcome.key, str) and isinstance(outcome.row, dict) and "status" in outcome.row
    return outcome if whole else None
