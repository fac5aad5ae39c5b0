"""When the next token of some running request is due, the tightest of them.

Running requests gain one token per decode step, all of them together, so ``due - itl_s * steps`` stays what it is while
a request runs: the heap of these never has to be put in order anew. Who left is dropped when it comes to the top.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)

_SMALL = 64
"""Entries below which it is not worth looking for those that left."""


class Deadlines(Generic[T]):
    """The due times of the next tokens of its members. ``join`` and ``tightest_s`` are O(log members), amortised.

    itl_s: seconds between the due times of a request's tokens.
    gone: whether a member has left without ``leave``. Asked when it matters, of few members; one that is gone is not
        missed until it joins anew.
    """

    def __init__(self, itl_s: float, gone: Callable[[T], bool] = lambda member: False) -> None:
        self._itl_s = itl_s
        self._gone = gone
        self._serial = count()
        self.clear()

    def clear(self) -> None:
        """Drop all members."""
        self._steps = 0
        self._heap: list[tuple[float, int, T]] = []
        self._serials: dict[T, int] = {}
        self._limit = _SMALL

    def join(self, member: T, first_due_s: float, tokens: int) -> None:
        """Take in a request, or take it in anew, that has produced ``tokens`` tokens.

        first_due_s: when the first of them was due.
        """
        serial = next(self._serial)
        self._serials[member] = serial
        heappush(self._heap, (first_due_s + self._itl_s * (tokens - self._steps), serial, member))
        if len(self._heap) > self._limit:
            self._drop()

    def leave(self, member: T) -> None:
        """Drop a member; nothing happens where it is none."""
        self._serials.pop(member, None)

    def step(self) -> None:
        """Note that every member has produced one more token."""
        self._steps += 1

    def tightest_s(self) -> float | None:
        """When the first of the members' next tokens is due, None where there are no members."""
        heap = self._heap
        while heap:
            key, serial, member = heap[0]
            if self._stays(serial, member):
                return key + self._itl_s * self._steps
            heappop(heap)
            self._forget(serial, member)
        return None

    def _stays(self, serial: int, member: T) -> bool:
        return self._serials.get(member) == serial and not self._gone(member)

    def _forget(self, serial: int, member: T) -> None:
        if self._serials.get(member) == serial:
            del self._serials[member]

    def _drop(self) -> None:
        """Look through all entries, after as many joins as there are: those below the top might never reach it."""
        kept = []
        for entry in self._heap:
            if self._stays(*entry[1:]):
                kept.append(entry)
            else:
                self._forget(*entry[1:])
        heapify(kept)
        self._heap = kept
        self._limit = max(_SMALL, 2 * len(kept))
