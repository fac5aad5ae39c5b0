"""Lengths and times that synthetic traffic draws: log-normal, and never outside of their bounds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.checks import count, number, only, section
from roofline_policies.errors import InputError


@dataclass(frozen=True, slots=True)
class LogNormal:
    """What is drawn of one thing: ``median`` times e to ``sigma`` times a standard normal, cut to its bounds.

    least, most: in the unit of the median; most: None where there is no bound. sigma 0: all are alike.
    """

    median: float
    sigma: float = 0.0
    least: float = 0.0
    most: float | None = None

    def draw(self, source: np.random.Generator) -> float:
        """One value."""
        value = max(self.least, self.median * math.exp(self.sigma * float(source.standard_normal())))
        return value if self.most is None else min(value, self.most)

    def tokens(self, source: np.random.Generator) -> int:
        """One length in whole tokens; the bounds are whole."""
        return round(self.draw(source))


def read_tokens(conf: Mapping[str, Any], key: str, where: str, *, low: int = 1) -> LogNormal:
    """The lengths under ``key``: {median, sigma, least, most} in tokens, all but the median optional.

    low: the least that a length may be, and the default of ``least``.

    Raises:
        InputError: no such section, a value out of range, or ``most`` below ``least``.
    """
    here, fields = f"{where}.{key}", section(conf.get(key), f"{where}.{key}")
    only(fields, here, ("median", "sigma", "least", "most"))
    least = count(fields, "least", here, default=low, low=low)
    most = None if fields.get("most") is None else count(fields, "most", here, low=low)
    if most is not None and most < least:
        raise InputError("is below least", where=here, key="most", value=most, allowed=f"whole number >= {least}")
    return LogNormal(
        number(fields, "median", here, low=low), number(fields, "sigma", here, default=0.0, low=0.0), least, most
    )


def read_seconds(conf: Mapping[str, Any], key: str, where: str) -> LogNormal:
    """The times under ``key``: {median, sigma} in seconds.

    Raises:
        InputError: no such section, or a value out of range.
    """
    here, fields = f"{where}.{key}", section(conf.get(key), f"{where}.{key}")
    only(fields, here, ("median", "sigma"))
    return LogNormal(number(fields, "median", here, above=0.0), number(fields, "sigma", here, default=0.0, low=0.0))


def arrivals_s(per_s: float, duration_s: float, source: np.random.Generator) -> list[float]:
    """Poisson arrivals in [0, duration_s), in seconds; a longer duration leaves those before it as they are."""
    found: list[float] = []
    now_s = float(source.exponential(1.0 / per_s))
    while now_s < duration_s:
        found.append(now_s)
        now_s += float(source.exponential(1.0 / per_s))
    return found
