"""The order in which waiting prompts are admitted: by when they are due, those that cannot be in time behind them.

The queue is a plain list that its owner reads from the front and takes entries out of anywhere; it stays sorted because
entries are inserted where they belong. Nothing here looks at more than LOOKED_AT entries, whatever the queue's length.

    aged (passed over for long enough), by age  <  in time, by due time  <  relegated, by age
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, MutableSequence, Sequence
from dataclasses import dataclass
from enum import IntEnum
from heapq import heappop, heappush
from itertools import islice
from math import inf
from typing import Generic, TypeVar

from roofline_policies.slo.capacity import Capacity, entering

T = TypeVar("T")

LOOKED_AT = 96
"""Prompts at the head of the queue that are judged at a time. What comes later is judged when it has moved up."""

NO_TARGET_S = 60.0
"""A prompt without a target on its first token or its end is taken to be due after this time, so that it keeps its
place among those that have one instead of waiting behind all of them."""

LEAST_IN_FLIGHT = 8
"""The prompt part-way through its chunks gets at least 1 / 8 of each chunk, however urgent others are. A judgement.
Higher delays that prompt more, and no other long prompt can start before it ends; lower lets prompts that are due
sooner miss."""


class Rank(IntEnum):
    """Where a prompt waits; smaller ones first."""

    AGED = 0
    IN_TIME = 1
    RELEGATED = 2


@dataclass(slots=True)
class Ticket:
    """What the place of one waiting prompt in the order depends on.

    arrival_s: when it came. due_s: when its first token is due at the latest, on the same clock. prefill_s: predicted
    seconds for the ``tokens`` of the prompt that were not cached when it came, on a device that does nothing else.
    started: a step of it was launched. class_due_s: when it would be due had it asked for nothing, where it asked for
    an earlier time than that; None: it has the place of its class. itl_s: its target between tokens, infinite without
    one.
    """

    arrival_s: float
    due_s: float
    prefill_s: float
    rank: Rank = Rank.IN_TIME
    tokens: int = 1
    started: bool = False
    class_due_s: float | None = None
    itl_s: float = inf

    @property
    def key(self) -> tuple[int, float, float]:
        """What the queue is sorted by: the rank, then the due time or the arrival, then the arrival."""
        return (self.rank, self.due_s if self.rank is Rank.IN_TIME else self.arrival_s, self.arrival_s)


def beside(sizes: Iterable[int], budget: int, page: int = 1) -> list[int]:
    """Of prompts that are due before the one part-way, in their order, those that a chunk of ``budget`` tokens has room
    for. They enter whole or not at all, and 1 / LEAST_IN_FLIGHT of the chunk stays with the one part-way."""
    most, kept = budget - max(page, budget // LEAST_IN_FLIGHT), 0
    found: list[int] = []
    for asked in sizes:
        kept += asked
        if kept > most:
            break
        found.append(asked)
    return found


def least_beside(tokens: int) -> int:
    """The smallest chunk that has room for a prompt of so many tokens ``beside`` the one part-way."""
    return tokens + -(-tokens // (LEAST_IN_FLIGHT - 1))


class Admission(Generic[T]):
    """Keeps one waiting queue in order.

    ticket: gives the ticket of an entry, the same object every time. The queue is passed to each method by its owner,
    who may replace the list.
    """

    def __init__(self, ticket: Callable[[T], Ticket]) -> None:
        self._ticket = ticket
        self.relegated = 0

    def _key(self, entry: T) -> tuple[int, float, float]:
        return self._ticket(entry).key

    def due_s(self, now_s: float, *entries: T | None) -> float | None:
        """Seconds until the earliest of these entries is due, those passed over left out; None where none is left."""
        tickets = [self._ticket(entry) for entry in entries if entry is not None]
        due = [ticket.due_s for ticket in tickets if ticket.rank is not Rank.RELEGATED]
        return min(due) - now_s if due else None

    def kept_tokens(
        self, now_s: float, part_way: T, queue: Iterable[T], tokens: Callable[[T], int], budget: int, page: int = 1,
        *, capacities: Sequence[Capacity] = (),
    ) -> int:  # fmt: skip
        """Tokens of a chunk to keep from the prompt part-way, for those that wait and are due before it.

        Only prompts that fit beside it count, since one prompt at a time is part-way, and only those that every
        capacity has room for: what is kept for others is lost. A prompt part-way that is late is due after everybody.
        tokens: of a waiting prompt, in whole pages. budget: tokens of the chunk.
        """
        due = islice(queue, self.due_before(now_s, part_way, queue))
        sizes = beside((tokens(entry) for entry in due), budget, page)
        return sum(sizes[: entering(capacities, sizes)] if capacities else sizes)

    def due_before(self, now_s: float, part_way: T, queue: Iterable[T], ahead_s: float = 0.0) -> int:
        """How many at the head of the queue are due before the prompt that is part-way, LOOKED_AT at most. One part-way
        that is late, or passed over, is due after everybody. ahead_s: seconds that it needs at least."""
        own = self._ticket(part_way)
        due_s = inf if own.due_s < now_s + ahead_s or own.rank is Rank.RELEGATED else own.due_s
        count = 0
        for entry in islice(queue, LOOKED_AT):
            ticket = self._ticket(entry)
            if ticket.rank is Rank.RELEGATED or ticket.due_s >= due_s:
                break
            count += 1
        return count

    def beside(
        self, now_s: float, part_way: T, queue: Sequence[T], budget: int, *, room_s: float = inf, ahead_s: float = 0.0
    ) -> int:
        """How many at the head of the queue go beside the prompt that is part-way, in this chunk or in the next ones.

        They are due before it, and each fits whole into a chunk of ``budget`` tokens that takes ``room_s`` at most. Who
        does not fit waits for the prompt that is part-way, and nobody passes it. ahead_s: as in ``due_before``.
        """
        count = self.due_before(now_s, part_way, queue, ahead_s)
        for place in range(count):
            ticket = self._ticket(queue[place])
            takes_s = ticket.prefill_s * LEAST_IN_FLIGHT / (LEAST_IN_FLIGHT - 1)
            if takes_s > room_s or not beside((ticket.tokens,), budget):
                return place
        return count

    def steps_back(self, now_s: float, part_way: T, ahead_s: float) -> bool:
        """Whether the prompt that is part-way should be passed over from now on: it will be late even if all that is
        computed is of it, as ``ahead_s`` says. It goes on with what others leave it, which is a share at least."""
        ticket = self._ticket(part_way)
        return ticket.rank is Rank.IN_TIME and now_s + ahead_s > ticket.due_s

    def insert(self, queue: MutableSequence[T], entry: T) -> None:
        """Put an entry where it belongs; O(log n) comparisons."""
        insort(queue, entry, key=self._key)

    def sort(self, queue: list[T]) -> None:
        """Put all entries in order, as when the order is adopted while prompts wait."""
        queue.sort(key=self._key)

    def move(self, queue: MutableSequence[T], entry: T, rank: Rank) -> bool:
        """Give an entry another rank and its new place. False where it is not in the queue; nothing changes then.

        One that is to be passed over and asked for an earlier time than its class has waits by its class's from now on.
        """
        ticket = self._ticket(entry)
        place = bisect_left(queue, ticket.key, key=self._key)
        while place < len(queue) and queue[place] is not entry and self._key(queue[place]) == ticket.key:
            place += 1
        if place == len(queue) or queue[place] is not entry:
            return False
        del queue[place]
        if rank is Rank.RELEGATED and ticket.class_due_s is not None:
            ticket.due_s, ticket.class_due_s = ticket.class_due_s, None
        else:
            ticket.rank = rank
        self.insert(queue, entry)
        return True

    def hopeless(
        self, queue: list[T], now_s: float, ahead_s: float, pace: float, defended_s: float = 0.0, *,
        beside: int = 0, soon_s: float = 0.0,
    ) -> list[T]:  # fmt: skip
        """Entries in time at the head of the queue to pass over so that the others can be in time.

        Where somebody would be late behind entries that asked for an earlier time than their classes have, it is these,
        and nobody else for their sake: who is passed over of those that asked for nothing does not depend on what
        others ask.

        ahead_s: seconds before the first of them can start. pace: seconds that pass for each predicted second of
        prefill, decoding included. defended_s: the tightest target between tokens that is kept; who has a tighter one
        is given up, in time or not. beside: so many at the head of the queue go beside a prompt that is part-way, and
        can start after ``soon_s`` already; for all others ``ahead_s`` holds what is left of that one.

        Taken in the order of due times; where one would be late, those so far that are given up go, the longest first;
        then the longest of the others: that leaves the most jobs in time. Source of the latter: J. M. Moore, "An n job,
        one machine sequencing algorithm for minimizing the number of late jobs", Management Science 15(1), 1968.
        """
        start = 0
        if queue and self._ticket(queue[0]).rank is not Rank.IN_TIME:
            start = bisect_left(queue, (int(Rank.IN_TIME), float("-inf"), 0.0), key=self._key)
        given_up: list[T] = []
        asked: list[T] = []
        longest: list[tuple[bool, float, int]] = []  # those kept so far, by who goes first
        starts_s = done_s = now_s + (soon_s if start < beside else ahead_s)
        for index in range(start, min(start + LOOKED_AT, len(queue))):
            ticket = self._ticket(queue[index])
            if ticket.rank is not Rank.IN_TIME:
                break
            if index == beside and index > start:
                starts_s, done_s = now_s + ahead_s, done_s + ahead_s - soon_s
            cost_s = ticket.prefill_s * pace
            if starts_s + cost_s > ticket.due_s:
                given_up.append(queue[index])  # late even if it were the next
                if ticket.class_due_s is not None:
                    return given_up  # where its class waits it may be in time, and leaves others less
                continue
            done_s += cost_s
            if ticket.class_due_s is not None:
                asked.append(queue[index])
            if done_s > ticket.due_s and asked:
                return given_up + asked  # the next look finds them where their classes wait
            own = (ticket.itl_s >= defended_s, -cost_s)
            while done_s > ticket.due_s and longest and longest[0][:2] < own:
                _, freed_s, place = heappop(longest)
                done_s += freed_s
                given_up.append(queue[place])
            if done_s > ticket.due_s:
                done_s -= cost_s
                given_up.append(queue[index])
            else:
                heappush(longest, (*own, index))
        return given_up

    def aged(self, queue: list[T], now_s: float, relegate_for_s: float) -> list[T]:
        """Relegated entries that have waited longer than that."""
        if not queue or self._ticket(queue[-1]).rank is not Rank.RELEGATED:
            self.relegated = 0
            return []
        place = bisect_left(queue, (int(Rank.RELEGATED), float("-inf"), 0.0), key=self._key)
        self.relegated = len(queue) - place
        found = []
        while place < len(queue) and now_s - self._ticket(queue[place]).arrival_s > relegate_for_s:
            found.append(queue[place])
            place += 1
        return found
