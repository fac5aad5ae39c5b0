"""Draws of the acceptance process for whole batches: the same whatever else is in the batch, and in whatever order."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from roofline_policies.steps.acceptance import Acceptance

Integers = npt.NDArray[np.int64]

# SplitMix64: the odd integer next to 2^64 over the golden ratio, by which its state goes on, and the two factors and
# three shifts of its mixing. Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA
# 2014; the mixing is that of D. Stafford, "Better bit mixing", 2011, variant 13.
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31 = np.uint64(30), np.uint64(27), np.uint64(31)

_DIGITS = 53
"""Bits of a double's fraction, with the one that is not written: so many of the 64 are kept."""


class AcceptedRuns:
    """How many leading drafts of each chain are accepted.

    requests: ids of all requests there will be. priorities: of each; None: none has one.

    The draft of a request's q-th output token is accepted if u(q) < p, where u(q) is the q-th draw of the request's own
    stream and p follows from its place in the chain. A token is drafted again only while chains before it broke off
    earlier, so each draw decides once; and runs with other numbers of drafts meet the same draws.

    u is SplitMix64, started with the request's key, of which any draw can be had without those before it.
    """

    def __init__(
        self, acceptance: Acceptance, requests: Sequence[str], priorities: Sequence[int | None] | None = None
    ) -> None:
        self._acceptance = acceptance
        self._keys = np.array([acceptance.key(request) for request in requests], np.uint64)
        of = [None] * len(requests) if priorities is None else priorities
        self._levels = [acceptance.level(request, one) for request, one in zip(requests, of, strict=True)]
        self._probabilities = lru_cache(maxsize=None)(self._probabilities_of)

    def of(self, rows: Integers, positions: Integers, steps: int, second: float = 0.0) -> Integers:
        """Accepted drafts of each chain, 0 to ``steps``.

        rows: which requests, as places in ``requests``. positions: of the first draft of each chain, counted in output
        tokens of its request. second: of the traffic, at which they are drafted.
        """
        if not steps:
            return np.zeros(len(rows), np.int64)
        counters = (positions[:, None] + np.arange(1, steps + 1)).astype(np.uint64)
        accepted = _draws(self._keys[rows, None] + counters * _GOLDEN) < self.chances(rows, steps, second)
        runs: Integers = np.logical_and.accumulate(accepted, axis=1).sum(axis=1, dtype=np.int64)
        return runs

    def chances(self, rows: Integers, steps: int, second: float = 0.0) -> npt.NDArray[np.float64]:
        """Of each chain and each place in it: that the draft is accepted, given that all before it were."""
        known: npt.NDArray[np.float64] = self._probabilities(steps)[rows]
        level = self._acceptance.drifted(second)
        if not level:
            return known
        with np.errstate(divide="ignore"):  # 0 and 1 stay what they are
            odds = np.exp(np.log1p(-known) - np.log(known) - level)
        moved: npt.NDArray[np.float64] = 1.0 / (1.0 + odds)
        return moved

    def _probabilities_of(self, steps: int) -> npt.NDArray[np.float64]:
        """Of all requests, for each place in a chain."""
        if not any(self._levels):
            alike = np.array(self._acceptance.probabilities(steps))
            return np.broadcast_to(alike, (len(self._keys), steps))
        return np.array([self._acceptance.probabilities(steps, level) for level in self._levels])


def _draws(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """Uniform in [0, 1), _DIGITS bits each. Products of uint64 arrays wrap, as they are meant to."""
    mixed = (state ^ (state >> _S30)) * _MIX_1
    mixed = (mixed ^ (mixed >> _S27)) * _MIX_2
    return ((mixed ^ (mixed >> _S31)) >> np.uint64(64 - _DIGITS)).astype(np.float64) * 2.0**-_DIGITS
