"""What a request waits for beside forward passes: the scheduler's own time, and the way to the scheduler and back.

Both are measured on a server (``bench.fit.steps``) and are stated parameters of a scheduler on a virtual clock.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import isfinite

from roofline_policies.errors import FieldError


@dataclass(frozen=True, slots=True)
class HostTime:
    """Seconds per iteration during which no forward pass runs: requests taken in, batch formed, results passed on.

        step_s + request_s * requests

    step_s: of every iteration. request_s: more of it per request of the batch.

    Raises:
        FieldError: a value that is negative or not finite.
    """

    step_s: float = 0.0
    request_s: float = 0.0

    def __post_init__(self) -> None:
        _not_negative(self)

    def seconds(self, requests: int) -> float:
        """Of one iteration over so many requests."""
        return self.step_s + self.request_s * requests


@dataclass(frozen=True, slots=True)
class RequestPath:
    """What the front end adds to each request on a server that is otherwise idle: HTTP, tokens and text, processes.

    ingress_s: from the client's sending to the scheduler's hands. egress_s: from a finished forward pass to the token's
    arrival at the client. Time that HostTime counts is in neither. They delay tokens; they do not make steps longer.

    Raises:
        FieldError: a value that is negative or not finite.
    """

    ingress_s: float = 0.0
    egress_s: float = 0.0

    def __post_init__(self) -> None:
        _not_negative(self)


def _not_negative(times: HostTime | RequestPath) -> None:
    for item in fields(times):
        value = getattr(times, item.name)
        if not (isfinite(value) and value >= 0):
            raise FieldError(item.name, value, "a finite number of seconds, 0 or more")
