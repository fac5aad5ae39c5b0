"""Service-level objectives: of the server, of a priority class, of one request; the nearest to the request holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from sys import float_info
from typing import NamedTuple

from roofline_policies.errors import FieldError
from roofline_policies.slo.asking import EVERYBODYS, Asking


class ItlKind(StrEnum):
    """How an inter-token target is read."""

    PER_GAP = "per_gap"  # 99% of a request's gaps are within the target
    MEAN_TPOT = "mean_tpot"  # the mean of a request's gaps is within the target


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _kind(value: object) -> ItlKind:
    try:
        return ItlKind(str(value))
    except ValueError:
        raise FieldError("itl_kind", value, " or ".join(kind.value for kind in ItlKind)) from None


TARGETS = ("ttft_s", "itl_s", "itl_kind", "e2e_s")
"""What is promised of a request, and what a request may ask for itself. Its weight it may not."""


@dataclass(frozen=True, slots=True)
class Slo:
    """Latency targets in seconds; None means no target.

    weight: what one request that meets them counts for, beside those of other classes.

    Raises:
        FieldError: a target or a weight that is not a finite number greater than zero.
    """

    ttft_s: float | None = None
    itl_s: float | None = None
    itl_kind: ItlKind = ItlKind.PER_GAP
    e2e_s: float | None = None
    weight: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        for key in ("ttft_s", "itl_s", "e2e_s"):
            value = getattr(self, key)
            if value is not None and not (_is_number(value) and 0 < value <= float_info.max):
                raise FieldError(key, value, "a number of seconds greater than 0, or null for no target")
        if not (_is_number(self.weight) and 0 < self.weight <= float_info.max):
            raise FieldError("weight", self.weight, "a finite number greater than 0; 1 where all count alike")
        object.__setattr__(self, "itl_kind", _kind(self.itl_kind))

    def narrowed(self, values: Mapping[str, object]) -> Slo:
        """This one with some of its targets replaced.

        Raises:
            FieldError: an unknown key, or a value that is no target.
        """
        for key in values:
            if key not in TARGETS:
                raise FieldError(str(key), values[key], f"one of {', '.join(TARGETS)}")
        return replace(self, **values)  # type: ignore[arg-type]  # checked when it is made


def soonest(own: Slo, promised: Slo) -> Slo:
    """``own`` as it is kept: its first token and its end are due no later than ``promised`` has them.

    Whoever is due later is longer in time, so that others would be passed over for it. So a later time wins nothing.
    """
    return replace(own, ttft_s=_sooner(own.ttft_s, promised.ttft_s), e2e_s=_sooner(own.e2e_s, promised.e2e_s))


def _sooner(one: float | None, other: float | None) -> float | None:
    return other if one is None else one if other is None else min(one, other)


class Granted(NamedTuple):
    """What a request that brought targets is promised. refused: the keys of those that it does not get as asked."""

    slo: Slo
    refused: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Objectives:
    """The targets of each request: of the server, of a class, of the request itself.

    server: requests of which nothing else is known. classes: requests by the priority that they came with.
    requests: how far requests may move from these.
    """

    server: Slo = Slo()
    classes: Mapping[int, Slo] = field(default_factory=dict)
    requests: Asking = EVERYBODYS

    def of(self, priority: int | None = None) -> Slo:
        """The objective of a request that brings none of its own."""
        return self.server if priority is None else self.classes.get(priority, self.server)

    def asked(self, priority: int | None, own: object) -> Slo:
        """What a request asks for that brings targets of its own; what it leaves out is its class's.

        own: a mapping of Slo's fields.

        Raises:
            FieldError: ``own`` is no such mapping.
        """
        if not isinstance(own, Mapping):
            raise FieldError("slo", own, "a mapping with ttft_s, itl_s, itl_kind, e2e_s")
        return self.of(priority).narrowed(own)

    def granted(self, priority: int | None, own: Mapping[str, object]) -> Granted:
        """What such a request is promised: as near to what it asks for as ``requests`` allows.

        A kind of target between tokens that nobody is promised here is not granted; the request's class's holds then.

        Raises:
            FieldError: see ``asked``.
        """
        promised, asked = self.of(priority), self.asked(priority, own)
        if not self.requests.allow:
            return Granted(promised, tuple(str(key) for key in own))
        every = self.every()
        kinds = {one.itl_kind for one in every if one.itl_s is not None} or {promised.itl_kind}
        # Every gap within 50 ms is far more than a mean of 50 ms: too much where the operator says nothing of it.
        tighter = asked.itl_kind is ItlKind.PER_GAP is not promised.itl_kind and self.requests.itl_s is None
        if asked.itl_kind in kinds and not tighter:
            alike = [one.itl_s for one in every if one.itl_kind is asked.itl_kind]
            kind, itl_s = asked.itl_kind, self.requests.limits("itl_s", alike, promised.itl_s).nearest(asked.itl_s)
        else:  # the number that was asked for means another thing under another kind
            kind, itl_s = promised.itl_kind, promised.itl_s
        slo = Slo(
            self.requests.limits("ttft_s", (one.ttft_s for one in every), promised.ttft_s).nearest(asked.ttft_s),
            itl_s,
            kind,
            self.requests.limits("e2e_s", (one.e2e_s for one in every), promised.e2e_s).nearest(asked.e2e_s),
            weight=promised.weight,
        )
        return Granted(slo, tuple(str(key) for key in own if getattr(slo, key) != getattr(asked, key)))

    def every(self) -> tuple[Slo, ...]:
        """All objectives that are configured."""
        return (self.server, *self.classes.values())
