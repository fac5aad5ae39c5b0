"""Kinds of synthetic traffic: what each takes of the ``traffic`` section, and how it is drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from bench.traffic.drawn import mixture, phased, sessions
from bench.traffic.request import Request


class Drawn(NamedTuple):
    """keys: of the section, beside the transforms. read: the requests of a section and a seed, in order of arrival."""

    keys: tuple[str, ...]
    read: Callable[[Mapping[str, Any], int], Iterator[Request]]


DRAWN: Mapping[str, Drawn] = {
    "phased": Drawn(phased.KEYS, phased.read_phased),
    "sessions": Drawn(sessions.KEYS, sessions.read_sessions),
    "mixture": Drawn(mixture.KEYS, mixture.read_mixture),
}
"""By the name that ``traffic.kind`` has."""
