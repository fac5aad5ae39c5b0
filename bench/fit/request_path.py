"""What the front end adds to a request, from the client's records and the server's of one run on one machine.

Both sides tell their times on the machine's monotonic clock. Only requests that were alone until their first token
count: nothing made them wait but their own steps.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench.fit.step_records import StepRecord
from bench.traffic.files import open_trace
from roofline_policies.errors import InputError
from roofline_policies.steps.host_time import HostTime, RequestPath

LEAST_REQUESTS = 5
"""That were alone, for their medians to be told: of fewer, one slow request moves the median. A judgement."""


@dataclass(frozen=True, slots=True)
class SentRequest:
    """Times of one request on the monotonic clock: sent, each token's arrival, over."""

    sent_s: float
    token_s: tuple[float, ...]
    end_s: float


@dataclass(frozen=True, slots=True)
class PathFigures:
    """path: what a virtual clock is told. requests: how many were alone.

    added_s: median of what their first token took beside forward passes and the scheduler's time.
    token_s: median over all of their tokens, from the end of the last forward pass to the arrival.
    """

    path: RequestPath
    requests: int
    added_s: float
    token_s: float


def read_requests(files: Iterable[str | Path]) -> list[SentRequest]:
    """The requests that were answered, from ``<arm>.<repeat>.requests.jsonl`` of a live replay.

    Raises:
        InputError: a file or a line cannot be used.
    """
    found = []
    for file in files:
        with open_trace(file) as lines:
            for line_number, line in enumerate(lines, start=1):
                if line.strip():
                    found.append(_request(line, f"{file}: line {line_number}"))
    return sorted((one for one in found if one is not None), key=lambda one: one.sent_s)


def request_path(requests: Sequence[SentRequest], steps: Sequence[StepRecord], host: HostTime) -> PathFigures:
    """Medians over requests that were alone.

    ingress: from sending to the start of the first forward pass, less that iteration's host time. egress: from the end
    of the last forward pass before the first token's arrival to that arrival; under SGLang's overlap schedule that is
    the pass after the prompt's own.

    Raises:
        InputError: too few requests were alone, or the steps are of another run.
    """
    steps = sorted(steps, key=lambda step: step.done_s)
    ends = [step.done_s for step in steps]
    ingress, egress, tokens = [], [], []
    for one in alone(requests):
        first, last = bisect_left(ends, one.sent_s), bisect_left(ends, one.token_s[0]) - 1
        if first > last or steps[first].start_s < one.sent_s:
            continue  # its steps were not recorded, or another's was still running
        ingress.append(steps[first].start_s - one.sent_s - host.seconds(steps[first].shape.requests))
        egress.append(one.token_s[0] - ends[last])
        tokens += [token - ends[bisect_left(ends, token) - 1] for token in one.token_s]
    if len(ingress) < LEAST_REQUESTS:
        problem = f"{len(ingress)} of {len(requests)} requests were alone and have their steps recorded"
        raise InputError(problem, where="requests", allowed=f"at least {LEAST_REQUESTS}, of the run the records are of")
    path = RequestPath(max(0.0, median(ingress)), median(egress))
    added = median(before + after for before, after in zip(ingress, egress, strict=True))
    return PathFigures(path, len(ingress), added, median(tokens))


def alone(requests: Sequence[SentRequest]) -> list[SentRequest]:
    """Those that no other was under way with until their first token; ``requests`` in the order of sending."""
    found = []
    busy_until_s = float("-inf")
    for place, one in enumerate(requests):
        next_s = requests[place + 1].sent_s if place + 1 < len(requests) else float("inf")
        if one.sent_s >= busy_until_s and one.token_s[0] < next_s:
            found.append(one)
        busy_until_s = max(busy_until_s, one.end_s)
    return found


def _request(line: str, where: str) -> SentRequest | None:
    """None where no token came."""
    try:
        row: Mapping[str, Any] = json.loads(line)
        zero_s, sent_s = row["zero_s"], row["sent_s"]
        tokens = row["token_s"]
        if not tokens:
            return None
        return SentRequest(zero_s + sent_s, tuple(zero_s + token for token in tokens), zero_s + row["end_s"])
    except (ValueError, TypeError, KeyError) as error:
        problem = f"is no record of a request with its clock ({type(error).__name__}: {error})"
        raise InputError(problem, where=where, value=line.strip()[:80], allowed="lines of a live replay") from None
