"""What is asked of a server lately: requests per second, how long they are, and their targets between tokens."""

from __future__ import annotations

from math import exp, floor, inf, log2
from typing import NamedTuple

from roofline_policies.slo.objectives import Slo

MEMORY_S = 15.0
"""Seconds in which the weight of an arrival falls to 1 / e. A judgement: at ten requests a second a rate is then known
to 8%; higher follows traffic that shifts later."""

LEAST_SPAN_S = 2.0
"""Seconds over which a rate is told at least: the first requests of a server may come together."""

MOST_TARGETS = 4
"""Targets that a demand tells apart, and that a policy has to price."""

MOST_KEPT = 64
"""Targets of which the weight is followed. Others are taken for the power of two below them, of which there are few: a
server whose every request brings its own number must not take longer and longer over them."""

FORGOTTEN = 1e-3
"""Share of what is asked for under which a target is dropped: some seven times MEMORY_S after its last request."""


class Target(NamedTuple):
    """Requests with one target between tokens. itl_s: the target, infinite where they have none. share: of all that is
    asked for, each request counted by its weight."""

    itl_s: float
    share: float


class Demand(NamedTuple):
    """What was asked for lately, means per request.

    requests_per_s: that came. prompt_tokens: to be computed. cached_tokens: found in the cache as it came.
    output_tokens: of an answer. prefix_tokens: of the prompt that a token is in, cached ones included; long prompts
    have more tokens, so that is more than the mean prompt.
    targets: tightest first, at most MOST_TARGETS.
    """

    requests_per_s: float
    prompt_tokens: float
    cached_tokens: float
    output_tokens: float
    prefix_tokens: float
    targets: tuple[Target, ...]


class Arrivals:
    """Sums over the requests that came, each with a weight that decays with time. O(targets) per request."""

    def __init__(self) -> None:
        self._first_s: float | None = None
        self._last_s = 0.0
        self._count = self._tokens = self._cached = self._squares = 0.0
        self._weights: dict[float, float] = {}
        self._targets: tuple[Target, ...] = ()

    def add(self, now_s: float, slo: Slo, tokens: int, cached: int = 0) -> None:
        """Count a request. tokens: of its prompt that have to be computed; cached: that need not be."""
        if self._first_s is None:
            self._first_s = self._last_s = now_s
        keep = exp((self._last_s - now_s) / MEMORY_S)
        self._last_s = now_s
        self._count = self._count * keep + 1.0
        self._tokens = self._tokens * keep + tokens
        self._cached = self._cached * keep + cached
        self._squares = self._squares * keep + tokens * (tokens + cached)
        target_s = inf if slo.itl_s is None else slo.itl_s
        if target_s not in self._weights and len(self._weights) >= MOST_KEPT and target_s < inf:
            target_s = 2.0 ** floor(log2(target_s))
        kept = {target: weight * keep for target, weight in self._weights.items()}
        kept[target_s] = kept.get(target_s, 0.0) + slo.weight
        least = FORGOTTEN * sum(kept.values())
        self._weights = {target: weight for target, weight in kept.items() if weight >= least}
        self._targets = _told(self._weights)

    def now(self, now_s: float, output_tokens: float | None) -> Demand | None:
        """What is asked for at this moment. output_tokens: of a recent answer in the mean, None before the first ended:
        then, and before the first request, it is not known."""
        if self._first_s is None or output_tokens is None:
            return None
        span_s = MEMORY_S * (1.0 - exp(-max(LEAST_SPAN_S, now_s - self._first_s) / MEMORY_S))
        rate = self._count * exp((self._last_s - now_s) / MEMORY_S) / span_s
        tokens, cached = self._tokens / self._count, self._cached / self._count
        return Demand(rate, tokens, cached, output_tokens, self._squares / self._tokens, self._targets)


def _told(weights: dict[float, float]) -> tuple[Target, ...]:
    """Of too many, the one with the least weight counts with the next looser one, or the next tighter at the end."""
    total = sum(weights.values())
    found = [Target(target_s, weight / total) for target_s, weight in sorted(weights.items())]
    while len(found) > MOST_TARGETS:
        least = min(range(len(found)), key=lambda place: found[place].share)
        beside = least + 1 if least + 1 < len(found) else least - 1
        found[beside] = found[beside]._replace(share=found[beside].share + found[least].share)
        del found[least]
    return tuple(found)
