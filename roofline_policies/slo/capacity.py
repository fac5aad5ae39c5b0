"""What a server can run out of, how full each of it is, and how many more requests it takes: which of them binds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from math import inf
from typing import NamedTuple


class Resource(StrEnum):
    """What requests take a share of. All but the last cannot be exceeded."""

    KV_TOKENS = "kv_tokens"
    WINDOW_TOKENS = "window_tokens"
    STATE_SLOTS = "state_slots"
    REQUEST_SLOTS = "request_slots"
    GRAPH_REQUESTS = "graph_requests"

    __hash__ = str.__hash__


class Capacity(NamedTuple):
    """One resource at one moment.

    used, size: in its own unit: tokens of the KV pool or of the pool of sliding windows, slots of recurrent states
        (Mamba, gated delta nets), slots of the table of requests, or requests that decode under the largest captured
        graph. What a cache would give up at once does not count as used.
    per_request: units that one more request is expected to take, above 0.
    """

    resource: Resource
    used: int
    size: int
    per_request: float = 1.0

    @property
    def hard(self) -> bool:
        """Whether nothing enters beyond it. A batch above the largest graph runs, but without one."""
        return self.resource is not Resource.GRAPH_REQUESTS

    @property
    def room(self) -> float:
        """How many more requests are expected to fit, not rounded; below 0 where it is exceeded."""
        return (self.size - self.used) / self.per_request


def binding(capacities: Iterable[Capacity]) -> Capacity | None:
    """The capacity that the fewest more requests fit into; of equals the first. None where none is known."""
    return min(capacities, key=lambda one: one.room, default=None)


def more_requests(capacities: Iterable[Capacity]) -> float:
    """How many more requests are expected to fit into every hard capacity, whole ones; infinite where none is known."""
    least = min((one.room for one in capacities if one.hard), default=inf)
    return inf if least == inf else max(0, int(least))


def graph_requests(capacities: Iterable[Capacity]) -> int | None:
    """The largest batch that decodes under a captured graph, None where no graph was captured."""
    return next((one.size for one in capacities if one.resource is Resource.GRAPH_REQUESTS), None)


def entering(capacities: Sequence[Capacity], tokens: Iterable[int]) -> int:
    """How many of the next prompts fit into every hard capacity, in their order.

    tokens: of each prompt, which it takes of the KV pool at least; of everything else it takes its ``per_request``.
    A pool of windows holds no more of a prompt than of one that runs.
    """
    left = [(one, float(one.size - one.used)) for one in capacities if one.hard]
    count = 0
    for asked in tokens:
        left = [
            (one, rest - (max(asked, 1) if one.resource is Resource.KV_TOKENS else one.per_request))
            for one, rest in left
        ]
        if any(rest < 0 for _, rest in left):
            break
        count += 1
    return count
