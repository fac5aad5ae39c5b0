"""Service-level objectives: of the server, of a priority class, of one request; the nearest to the request holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from sys import float_info

from roofline_policies.errors import FieldError


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


@dataclass(frozen=True, slots=True)
class Slo:
    """Latency targets in seconds; None means no target.

    Raises:
        FieldError: a target that is not a number greater than zero.
    """

    ttft_s: float | None = None
    itl_s: float | None = None
    itl_kind: ItlKind = ItlKind.PER_GAP
    e2e_s: float | None = None

    def __post_init__(self) -> None:
        for key in ("ttft_s", "itl_s", "e2e_s"):
            value = getattr(self, key)
            if value is not None and not (_is_number(value) and 0 < value <= float_info.max):
                raise FieldError(key, value, "a number of seconds greater than 0, or null for no target")
        object.__setattr__(self, "itl_kind", _kind(self.itl_kind))

    def narrowed(self, values: Mapping[str, object]) -> Slo:
        """This one with some of its targets replaced.

        Raises:
            FieldError: an unknown key, or a value that is no target.
        """
        known = [item.name for item in fields(self)]
        for key in values:
            if key not in known:
                raise FieldError(str(key), values[key], f"one of {', '.join(known)}")
        return replace(self, **values)  # type: ignore[arg-type]  # checked when it is made


@dataclass(frozen=True, slots=True)
class Objectives:
    """The targets of each request: of the server, of a class, of the request itself.

    server: requests of which nothing else is known. classes: requests by the priority that they came with.
    """

    server: Slo = Slo()
    classes: Mapping[int, Slo] = field(default_factory=dict)

    def of(self, priority: int | None = None, own: object = None) -> Slo:
        """The objective of one request.

        own: targets that the request itself brings, as a mapping of Slo's fields; what it leaves out is its class's.

        Raises:
            FieldError: ``own`` is no such mapping.
        """
        slo = self.server if priority is None else self.classes.get(priority, self.server)
        if own is None:
            return slo
        if not isinstance(own, Mapping):
            raise FieldError("slo", own, "a mapping with ttft_s, itl_s, itl_kind, e2e_s")
        return slo.narrowed(own)

    def every(self) -> tuple[Slo, ...]:
        """All objectives that are configured."""
        return (self.server, *self.classes.values())
