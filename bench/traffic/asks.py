"""Requests that ask for targets of their own: a share of a traffic, drawn from the seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bench.checks import number, only, section
from bench.traffic.request import Request
from roofline_policies.errors import InputError

STREAM = 0xA5C, 0x510
"""Names the stream of who asks: with a seed before it, no other stream of a traffic is drawn from the same."""


@dataclass(frozen=True, slots=True)
class Asks:
    """What a share of the requests asks for.

    share: 0 to 1. slo: what they send in ``custom_params.slo``, sensible or not.
    """

    share: float
    slo: Any


def read_asks(value: object, where: str) -> Asks | None:
    """What is under the key ``asks``; None for null.

    Raises:
        InputError: not a section of a share and of something to ask for.
    """
    if value is None:
        return None
    here = f"{where}.asks"
    fields = section(value, here)
    only(fields, here, ("share", "slo"))
    if fields.get("slo") is None:
        raise InputError("is missing", where=here, key="slo", allowed="e.g. {ttft_s: 0.5}; it is sent as it is")
    return Asks(number(fields, "share", here, low=0.0, high=1.0), fields["slo"])


def asking(count: int, share: float, seed: int) -> list[bool]:
    """Which of ``count`` requests ask, by their places in the traffic: a larger share only adds some."""
    return [bool(draw < share) for draw in np.random.default_rng((seed, *STREAM)).random(count)]


def ask(requests: Sequence[Request], asks: Asks | None, seed: int) -> list[Request]:
    """The requests, some of them with targets of their own."""
    if asks is None:
        return list(requests)
    drawn = asking(len(requests), asks.share, seed)
    return [replace(one, slo=asks.slo) if asks_now else one for one, asks_now in zip(requests, drawn, strict=True)]
