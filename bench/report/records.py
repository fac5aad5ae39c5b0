"""What one run leaves behind: a record per request, a sample of the server per second; as JSON lines on disk."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import orjson

WHOLE = ("stop", "length")
"""Reasons to finish, as SGLang names them, that leave an answer whole."""


class Ending(StrEnum):
    """How a request ended. Each has exactly one; only COMPLETED is an answer that can be good."""

    COMPLETED = "completed"  # every token that was asked for, or a stop token where the server was to heed them
    SHORT = "short"  # an answer without an error, of fewer tokens than asked for
    EMPTY = "empty"  # an answer without an error and without a token
    ABORTED = "aborted"  # the server gave it up, and said so in its answer
    ERROR = "error"  # refused, broken off, unreadable, or not over in the time given


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request as the client saw it. Times in seconds since the run's start; equal clocks for all records of a run.

    scheduled_s: when the traffic asked for it. sent_s: when the client began to send it; None: never sent.
    token_s: arrival of every output token; tokens of one chunk share its time. end_s: when the client was done with it.
    output_tokens_asked: tokens that the answer had to have, or could have at most where ``ignore_eos`` is False.
    prompt_tokens, cached_tokens: as the server reports them (as asked for, and 0, where it did not answer).
    error: what went wrong, None for an answer that the server called finished; whether that is whole says ``ending``.
    finish: the type of the server's reason to finish, ``stop`` or ``length`` of a whole answer; None: it gave none.
    ignore_eos: whether the server was told not to end the answer at a stop token.
    zero_s: the run's start on this machine's monotonic clock, which a server on it also tells its times on; None where
        the run was on no such clock.
    started_s: when the first step that computed something of it was launched; None where the server does not tell.
    priority: as it was sent with; it names the class of SLO that the request is held to. None: it had none.
    """

    index: int
    phase: str
    scheduled_s: float
    sent_s: float | None
    token_s: tuple[float, ...]
    end_s: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens_asked: int
    error: str | None = None
    zero_s: float | None = None
    started_s: float | None = None
    priority: int | None = None
    finish: str | None = None
    ignore_eos: bool = True

    @property
    def ending(self) -> Ending:
        if self.error is not None:
            return Ending.ERROR if self.finish in (None, *WHOLE) else Ending.ABORTED
        if not self.token_s:
            return Ending.EMPTY
        stopped = self.finish == "stop" and not self.ignore_eos
        return Ending.COMPLETED if stopped or len(self.token_s) >= self.output_tokens_asked else Ending.SHORT

    @property
    def completed(self) -> bool:
        return self.ending is Ending.COMPLETED

    @property
    def first_token_s(self) -> float | None:
        return self.token_s[0] if self.token_s else None

    @property
    def output_tokens(self) -> int:
        return len(self.token_s)


@dataclass(frozen=True, slots=True)
class ServerSample:
    """The server at one moment. t_s: seconds on the records' clock.

    load: running, waiting, kv_use (0..1) where the server tells, else absent. retractions: requests since the server
    started, None where unknown. ranks: the ``ranks`` of GET /roofline, empty where the server runs no policy.
    """

    t_s: float
    load: dict[str, float] = field(default_factory=dict)
    retractions: int | None = None
    ranks: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class ArmRun:
    """One arm's run in one repeat. crash: None, or why the server did not live through it.

    deferrals: steps that only decoded while a prompt waited or was part-way; None where the server does not tell.
    drafts: drafts verified and drafts accepted, of the whole run; None where nothing drafts, or only the samples tell.
    """

    arm: str
    repeat: int
    records: tuple[RequestRecord, ...]
    samples: tuple[ServerSample, ...]
    crash: str | None = None
    log_tail: tuple[str, ...] = ()
    deferrals: int | None = None
    drafts: tuple[int, int] | None = None


def write_run(run: ArmRun, folder: Path) -> None:
    """The run's records and samples as ``<arm>.<repeat>.requests.jsonl`` and ``.server.jsonl`` in ``folder``."""
    stem = f"{run.arm}.{run.repeat}"
    _write(folder / f"{stem}.requests.jsonl", run.records)
    _write(folder / f"{stem}.server.jsonl", run.samples)


def _write(path: Path, rows: Iterable[RequestRecord | ServerSample]) -> None:
    with path.open("wb") as file:
        file.writelines(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows)
