"""What clients may ask for: limits on the targets that a request brings along.

A target of one request is paid for by all others. A tight one between tokens makes everybody's chunks small, and a
late due time lets a prompt that would be passed over for being late go first. So by default a request moves within
what the operator promises somebody on this server anyway, and no further: for its first token, which is a place in the
queue. What is asked of the time between tokens and of the end everybody pays with their chunks, so by default it is
never tighter than the request's own class has it: a tight class that nobody uses would cost as much as one in use.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from typing import NamedTuple

from roofline_policies.errors import FieldError

TARGETS = ("ttft_s", "itl_s", "e2e_s")

ALLOWED = "[least, most] in seconds; most may be null for no limit"


class Limits(NamedTuple):
    """What one target may be, in seconds. most: None: any length, and no target at all."""

    least: float = 0.0
    most: float | None = None

    def nearest(self, asked: float | None) -> float | None:
        """What is granted of a target; None: none."""
        if asked is None or asked < self.least:
            least = self.least if isfinite(self.least) else None
            return self.most if asked is None else least
        return asked if self.most is None else min(asked, self.most)

    def from_own(self, promised: float | None) -> Limits:
        """These without what is tighter than ``promised``; None: without any target."""
        if promised is None:
            return Limits(inf)
        least = max(self.least, promised)
        return Limits(least, None if self.most is None else max(least, self.most))


def limits_of(targets: Iterable[float | None]) -> Limits:
    """The range of targets that are promised already. Where nobody has one, nobody gets one."""
    known = list(targets)
    numbers = [one for one in known if one is not None]
    return Limits(min(numbers, default=inf), None if len(numbers) < len(known) else max(numbers))


@dataclass(frozen=True, slots=True)
class Asking:
    """The operator's answer to targets that requests bring.

    allow: False: they are passed over, all of them. ttft_s, itl_s, e2e_s: least and most seconds that may be asked for;
    None: the range of what the server and its classes have, for itl_s and e2e_s from the request's own class on.

    Raises:
        FieldError: a range that is none.
    """

    allow: bool = True
    ttft_s: Sequence[float | None] | None = None
    itl_s: Sequence[float | None] | None = None
    e2e_s: Sequence[float | None] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.allow, bool):
            raise FieldError("allow", self.allow, "true or false")
        for key in TARGETS:
            value = getattr(self, key)
            if value is not None:
                object.__setattr__(self, key, _range(key, value))

    def limits(self, key: str, promised: Iterable[float | None], own: float | None) -> Limits:
        """Of a target by its key. promised: what the server and its classes have. own: what the request's class has."""
        chosen = getattr(self, key)
        if chosen is not None:
            return Limits(*chosen)
        found = limits_of(promised)
        return found if key == "ttft_s" else found.from_own(own)


EVERYBODYS = Asking()
"""Within what the server and its classes have; see Asking."""


def _range(key: str, value: object) -> tuple[float, float | None]:
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise FieldError(key, value, ALLOWED)
    least, most = value
    for one in (least, most):
        if one is not None and (isinstance(one, bool) or not isinstance(one, int | float) or not 0 < one < inf):
            raise FieldError(key, value, ALLOWED)
    if least is None or (most is not None and most < least):
        raise FieldError(key, value, ALLOWED)
    return float(least), None if most is None else float(most)
