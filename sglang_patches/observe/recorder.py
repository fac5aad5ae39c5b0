"""Record: every finished iteration as a JSON line in a file, for fitting step times and looking at a run afterwards."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from roofline_policies.contract.view import IterationRecord
from roofline_policies.errors import InputError

logger = logging.getLogger(__name__)

BUFFERED_LINES = 4096
"""Lines kept in memory at most, about 2 MB. A busy server writes them with its log line, well before that; a
judgement."""

_ALLOWED = "path of a file in a folder that exists and can be written, or null"


def check(path: str, *, where: str) -> None:
    """Nothing, if lines can be appended to the file; it is created if it is not there.

    Raises:
        InputError: it cannot be opened for writing. ``where`` names the configuration that asks for it.
    """
    try:
        with open(path, "ab"):
            pass
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(
            f"cannot be written: {reason}", where=where, key="record", value=path, allowed=_ALLOWED
        ) from error


def of_rank(path: str, dp_rank: int) -> str:
    """The file of one data-parallel rank: the path for the first, with ``.dp1`` before the suffix for the next."""
    if not dp_rank:
        return path
    plain = Path(path)
    return str(plain.with_name(f"{plain.stem}.dp{dp_rank}{plain.suffix}"))


class Recorder:
    """Appends records to one file. Lines are kept in memory until ``flush``; nothing is read back.

    A file that fails while the server runs is logged once and recording ends; no method raises.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.recording = True
        self._lines: list[str] = []

    def add(self, record: IterationRecord, *, running: int, waiting: int) -> None:
        """Note one iteration. running, waiting: requests in the scheduler's queues when its record was taken."""
        if not self.recording:
            return
        self._lines.append(line(record, running=running, waiting=waiting))
        if len(self._lines) >= BUFFERED_LINES:
            self.flush()

    def flush(self) -> None:
        """Write what was noted since the last time."""
        if not self._lines:
            return
        lines, self._lines = self._lines, []
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write("".join(lines))
        except OSError as error:
            self.recording = False
            logger.error(f"Roofline: {self.path} cannot be written: {error.strerror}. Nothing more is recorded.")


def line(record: IterationRecord, *, running: int = 0, waiting: int = 0) -> str:
    """One record as JSON, ended by a line break; the keys are those of docs/metrics.md."""
    work = record.work
    return (
        json.dumps({
            "iteration": record.iteration,
            "mode": record.mode.value,
            "requests": record.requests,
            "new_tokens": record.new_tokens,
            "context_tokens": record.context_tokens,
            "padded_rows": record.padded_rows,
            "cuda_graph": record.cuda_graph,
            "issued_flops": work.issued.total,
            "useful_flops": work.useful.total,
            "requested_bytes": work.requested.total,
            "compulsory_bytes": work.compulsory.total,
            "provenance": sorted(work.provenance),
            "seconds": record.seconds,
            "seconds_source": record.seconds_source,
            "done_s": record.done_s,
            "step_s": record.step_s,
            "predicted_s": record.predicted_s,
            "margin": record.margin,
            "window": record.window,
            "accepted": record.accepted,
            # After a pause there is no previous step to count from, and the observer takes the forward pass alone.
            "after_idle": record.step_s == record.seconds,
            "running": running,
            "waiting": waiting,
        })
        + "\n"
    )  # fmt: skip
