"""What the running requests still need to meet their objectives: the tightest gap, and when the next token is due.

All running requests gain one token per decode step, together. So nothing has to be touched per request and step:
members of one target are kept in the order in which they came, and those that left are dropped when they come to the
front.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import replace
from heapq import heappop, heappush
from math import floor, log2
from typing import Generic, NamedTuple, TypeVar

from roofline_policies.slo.deadlines import Deadlines
from roofline_policies.slo.objectives import ItlKind, Slo

T = TypeVar("T", bound=Hashable)

AIM = 0.95
"""Share of a mean target that is aimed at. A request may end with any token, so one that is kept right at its target
misses it as often as not. A judgement: the least margin of a prediction is as large (2.5 spreads of 2%)."""

MOST_GROUPS = 64
"""Different targets that are told apart. Further ones are tightened to powers of two of a second, of which there are
few: a scheduler whose every request brings its own numbers must not take longer and longer over them."""


class Need(NamedTuple):
    """What running requests that can still meet their objective need; None: no such request has a target of this kind.

    gap_s: the tightest target per gap. mean_s: the tightest target on a mean. due_s: seconds until the first due token
    under a mean or an end-to-end target.
    """

    gap_s: float | None
    mean_s: float | None
    due_s: float | None


class _Member(NamedTuple, Generic[T]):
    request: T
    serial: int
    first_token_s: float
    joined: int


class _Group(Generic[T]):
    """Members with one objective.

    young: in the order of joining. old: those under a mean that have as many tokens as were expected. ends: a heap of
    those with an end-to-end target, by when they have to end.
    """

    __slots__ = ("ends", "old", "slo", "young")

    def __init__(self, slo: Slo, gone: Callable[[T], bool]) -> None:
        self.slo = slo
        self.young: deque[_Member[T]] = deque()
        self.ends: list[tuple[float, int, _Member[T]]] = []
        self.old: Deadlines[T] | None = None
        if slo.itl_s is not None and slo.itl_kind is ItlKind.MEAN_TPOT:
            self.old = Deadlines(AIM * slo.itl_s, gone)


class RunningTargets(Generic[T]):
    """Follows the running requests of one scheduler. Every method is O(1), amortised.

    gone: whether a request has left without ``leave``; asked of few, when it matters.
    """

    def __init__(self, gone: Callable[[T], bool] = lambda request: False) -> None:
        self._gone = gone
        self.clear()

    def clear(self) -> None:
        """Drop all requests."""
        self._steps = 0
        self._serial = 0
        self._serials: dict[T, int] = {}
        self._groups: dict[tuple[ItlKind, float | None, float | None], _Group[T]] = {}

    def join(self, request: T, slo: Slo, arrival_s: float, first_token_s: float, tokens: int) -> None:
        """Take in a request, or take it in anew, that has produced ``tokens`` tokens, the first at ``first_token_s``.

        One whose first token came too late cannot meet its objective any more and is not followed: delaying others for
        it would help nobody.
        """
        self.leave(request)
        if slo.ttft_s is not None and first_token_s - arrival_s > slo.ttft_s:
            return
        if slo.itl_s is None and slo.e2e_s is None:
            return
        group = self._group(slo)
        self._serial += 1
        self._serials[request] = self._serial
        member = _Member(request, self._serial, first_token_s, tokens - self._steps)
        if slo.itl_s is not None:
            group.young.append(member)
        if slo.e2e_s is not None:
            heappush(group.ends, (arrival_s + slo.e2e_s, self._serial, member))

    def leave(self, request: T) -> None:
        """Drop a request; nothing happens where it is not followed."""
        self._serials.pop(request, None)
        for group in self._groups.values():
            if group.old is not None:
                group.old.leave(request)

    def step(self) -> None:
        """Note that every request has produced one more token."""
        self._steps += 1
        for group in self._groups.values():
            if group.old is not None:
                group.old.step()

    def need(
        self, now_s: float, token_s: float, horizon: int, *,
        expected: Callable[[int], int] | None = None, fastest_s: float = 0.0, defended_s: float = 0.0,
    ) -> Need:  # fmt: skip
        """What is needed at ``now_s``.

        token_s: seconds between tokens as they come now. fastest_s: the same while nothing but decoding runs. horizon:
        tokens that a request is expected to produce at least: under a mean a request may wait now and catch up until
        then. expected: tokens that an answer has which is past so many already; None: ``horizon``.

        defended_s: the tightest target between tokens that is kept.

        A request that is not expected to end in time even while nothing but decoding runs is not followed any more, nor
        is one with a tighter target than is kept: its gaps are late by now.
        """
        expected = expected or (lambda tokens: horizon)
        gap_s = mean_s = due_s = None
        for group in self._groups.values():
            slo = group.slo
            if slo.itl_s is not None and slo.itl_s < defended_s:
                self._give_up(group)
                continue
            in_s = self._end_due_s(group, now_s, token_s, expected, fastest_s)
            if in_s is not None:
                due_s = in_s if due_s is None else min(due_s, in_s)
            if slo.itl_s is not None and slo.itl_kind is ItlKind.PER_GAP and self._lives(group):
                gap_s = slo.itl_s if gap_s is None else min(gap_s, slo.itl_s)
            in_s = self._mean_due_s(group, now_s, token_s, horizon)
            if in_s is not None and slo.itl_s is not None:
                mean_s = slo.itl_s if mean_s is None else min(mean_s, slo.itl_s)
                due_s = in_s if due_s is None else min(due_s, in_s)
        return Need(gap_s, mean_s, due_s)

    def _give_up(self, group: _Group[T]) -> None:
        for member in (*group.young, *(member for _, _, member in group.ends)):
            if self._serials.get(member.request) == member.serial:
                del self._serials[member.request]
        group.young.clear()
        group.ends.clear()
        if group.old is not None:
            group.old.clear()

    def _group(self, slo: Slo) -> _Group[T]:
        key = (slo.itl_kind, slo.itl_s, slo.e2e_s)
        if key not in self._groups and len(self._groups) >= MOST_GROUPS:
            self._groups = {known: kept for known, kept in self._groups.items() if self._anybody(kept)}
            if len(self._groups) >= MOST_GROUPS:
                slo = replace(slo, itl_s=_tightened(slo.itl_s), e2e_s=_tightened(slo.e2e_s))
                key = (slo.itl_kind, slo.itl_s, slo.e2e_s)
        if key not in self._groups:
            self._groups[key] = _Group(slo, self._gone)
        return self._groups[key]

    def _stays(self, member: _Member[T]) -> bool:
        if self._serials.get(member.request) != member.serial:
            return False
        if self._gone(member.request):
            del self._serials[member.request]
            return False
        return True

    def _lives(self, group: _Group[T]) -> bool:
        """Whether anybody with a target per gap still runs; drops those at the head that do not."""
        young = group.young
        while young and not self._stays(young[0]):
            young.popleft()
        return bool(young)

    def _anybody(self, group: _Group[T]) -> bool:
        """Whether anybody of the group still runs, whatever its target."""
        ends, old = group.ends, group.old
        while ends and not self._stays(ends[0][2]):
            heappop(ends)
        return self._lives(group) or bool(ends) or (old is not None and old.tightest_s() is not None)

    def _mean_due_s(self, group: _Group[T], now_s: float, token_s: float, horizon: int) -> float | None:
        """When the next token of the group's tightest member under a mean is due, at the latest.

        With n tokens so far and h expected, the mean over h is kept if the last of them comes by
        ``first + itl * (h - 1)``, and h - n - 1 tokens follow the next one. Beyond the horizon a request may end with
        any token, so its mean has to hold now: h = n + 1.

        Of the young ones, who came first is the tightest: it has used up more of its time than the tokens that it is
        ahead take.
        """
        old, young, itl_s = group.old, group.young, group.slo.itl_s
        if old is None or itl_s is None:
            return None
        while young and (young[0].joined + self._steps >= horizon or not self._stays(young[0])):
            member = young.popleft()
            if self._stays(member):
                old.join(member.request, member.first_token_s, member.joined + self._steps)
        old_s = old.tightest_s()
        found = None if old_s is None else old_s - now_s
        if young:
            tokens = young[0].joined + self._steps
            expected = max(horizon, tokens + 1)
            end_s = young[0].first_token_s + AIM * itl_s * (expected - 1)
            due_s = end_s - (expected - tokens - 1) * token_s - now_s
            found = due_s if found is None else min(found, due_s)
        return found

    def _end_due_s(
        self, group: _Group[T], now_s: float, token_s: float, expected: Callable[[int], int], fastest_s: float
    ) -> float | None:
        """When the next token of the member that has to end first is due, so that the expected tokens follow in time.
        Members that cannot end in time are dropped.

        One that has to end later and is further behind may be tighter by the difference of their tokens; how many will
        follow is known far less well than that.
        """
        ends = group.ends
        while ends:
            end_s, _, member = ends[0]
            if self._stays(member):
                tokens = member.joined + self._steps
                more = max(1, expected(tokens) - tokens)
                if now_s + more * fastest_s <= end_s:
                    return end_s - (more - 1) * token_s - now_s
                self.leave(member.request)
            heappop(ends)
        return None


def _tightened(target_s: float | None) -> float | None:
    """The power of two at or below a target."""
    return None if target_s is None else 2.0 ** floor(log2(target_s))
