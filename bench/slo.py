"""The service-level objective a request is held to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from bench.checks import choice, number, only, optional_number


class ItlKind(StrEnum):
    """What ``itl_s`` limits. The kind decides who wins, so it is configuration, not a detail."""

    PER_GAP = "per_gap"  # a share of the gaps between tokens must keep it
    MEAN_TPOT = "mean_tpot"  # the request's mean time per output token must keep it


@dataclass(frozen=True, slots=True)
class Slo:
    """Limits in seconds; None does not limit.

    ttft_s: time to first token. itl_s: time between tokens, in the sense of ``itl_kind``.
    e2e_s: time to the last token. gap_fraction: share of the gaps that must keep ``itl_s`` under PER_GAP.
    """

    ttft_s: float | None
    itl_s: float | None
    itl_kind: ItlKind = ItlKind.PER_GAP
    e2e_s: float | None = None
    gap_fraction: float = 0.99

    @classmethod
    def from_config(cls, conf: Mapping[str, Any]) -> Slo:
        """The ``slo`` section.

        Raises:
            InputError: an unknown key, or a value out of range.
        """
        only(conf, "slo", ("ttft_s", "itl_s", "itl_kind", "e2e_s", "gap_fraction"))
        return cls(
            ttft_s=optional_number(conf, "ttft_s", "slo", above=0.0),
            itl_s=optional_number(conf, "itl_s", "slo", above=0.0),
            itl_kind=ItlKind(choice(conf, "itl_kind", "slo", [kind.value for kind in ItlKind])),
            e2e_s=optional_number(conf, "e2e_s", "slo", above=0.0),
            gap_fraction=number(conf, "gap_fraction", "slo", default=0.99, above=0.0, high=1.0),
        )

    def overrides(self) -> tuple[str, ...]:
        """This SLO as overrides of a policy's configuration, so that a policy aims at what it is judged by."""
        limits = {"ttft_s": self.ttft_s, "itl_s": self.itl_s, "e2e_s": self.e2e_s}
        return (
            *(f"slo.{key}={'null' if limit is None else limit}" for key, limit in limits.items()),
            f"slo.itl_kind={self.itl_kind}",
        )

    def __str__(self) -> str:
        itl = f"ITL <= {self.itl_s} s" if self.itl_s is not None else ""
        if itl:
            share = f"{self.gap_fraction:.0%} of gaps" if self.itl_kind is ItlKind.PER_GAP else "mean per request"
            itl += f" ({share})"
        ttft = f"TTFT <= {self.ttft_s} s" if self.ttft_s is not None else ""
        e2e = f"E2E <= {self.e2e_s} s" if self.e2e_s is not None else ""
        return ", ".join(part for part in (ttft, itl, e2e) if part) or "none"
