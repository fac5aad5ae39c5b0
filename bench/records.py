"""What one run leaves behind: a record per request, a sample of the server per second; as JSON lines on disk."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request as the client saw it. Times in seconds since the run's start; equal clocks for all records of a run.

    scheduled_s: when the traffic asked for it. sent_s: when the client began to send it; None: never sent.
    token_s: arrival of every output token; tokens of one chunk share its time. end_s: when the client was done with it.
    prompt_tokens, cached_tokens: as the server reports them (as asked for, and 0, where it did not answer).
    error: None for a request that ran to its end.
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
    """

    arm: str
    repeat: int
    records: tuple[RequestRecord, ...]
    samples: tuple[ServerSample, ...]
    crash: str | None = None
    log_tail: tuple[str, ...] = ()
    deferrals: int | None = None


def write_run(run: ArmRun, folder: Path) -> None:
    """The run's records and samples as ``<arm>.<repeat>.requests.jsonl`` and ``.server.jsonl`` in ``folder``."""
    stem = f"{run.arm}.{run.repeat}"
    _write(folder / f"{stem}.requests.jsonl", run.records)
    _write(folder / f"{stem}.server.jsonl", run.samples)


def _write(path: Path, rows: Iterable[RequestRecord | ServerSample]) -> None:
    with path.open("wb") as file:
        file.writelines(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows)
