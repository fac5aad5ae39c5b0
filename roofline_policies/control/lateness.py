"""What is measured is heard: gaps between tokens that came later than they were planned, and what is done about it.

A plan promises something: a gap whose steps are hardly to take longer than its target (expected seconds times margin)
is late once in a while and not more often. The margin is made of the spread of errors, as if they were normal. Where
they are not (one step in twelve takes half as long again, because the host does something else), gaps are late time
and again, and the spread does not tell. Then the target that policies see is tightened, slowly and within bounds,
until gaps are late as seldom as was promised.

Gaps that were planned late, because not even the least chunk fits or a prompt has waited for long enough, promise
nothing: a tighter target would not bring them in time. Neither do gaps that were longer than any plan within reach
could have kept in time, such as a pause of the whole process.
"""

from __future__ import annotations

from typing import NamedTuple

from roofline_policies.contract.view import ForwardMode, IterationRecord, PlannedGap, QueueState
from roofline_policies.steps.correction import STEPS_PER_LATE_ONE

PROMISED = 1.0 / STEPS_PER_LATE_ONE
"""Share of gaps that the margin lets be late."""

MOST_TIGHTENING = 2.0
"""Factor by which a target is tightened at most, and by which a gap may exceed its plan to be one that this can help. A
judgement: half of a gap left unused costs about a quarter of the prompt tokens per second; at more, something else
should be mended."""

ALARM = 8.0
"""Late gaps, less those that the promise allows, from which a target is tightened. By chance (late gaps at half the
promised share) it is reached about once in a million gaps."""

STEP = 0.02
"""By which each further late gap tightens: from late always to twice as tight takes 58 gaps. As large as the least
spread of a prediction."""

LEAK = 0.5 * PROMISED
"""Late gaps that a gap in time makes up for, at first. The more in a row were in time, the more each counts
(``Tightening.count``), so that both together are in balance where late gaps come at random with the promised share."""

LIGHT = 0.125
"""What a gap in time counts that could not have been late within reach: it says little about those that could."""

MEMORY = 4.0 * STEPS_PER_LATE_ONE
"""Recent gaps that carry about two thirds of the weight in the shares that people are shown."""

BLOCK = 32
"""Gaps that are held against a target on the mean together: one alone says nothing about a mean. The shortest answers
for which a mean differs much from a gap have about as many tokens; a judgement."""


class Tightening:
    """The factor by which one kind of target is tightened. O(1), deterministic, monotone: had more gaps been late, it
    would not be lower.

    Its state is a debt of late gaps that those in time pay off. Below ALARM nothing is changed; above, the factor
    grows in proportion, up to ``most``.

    Source of the idea to steer by the share of misses, bounded and without a model of them: I. Gibbs, E. Candes,
    "Adaptive conformal inference under distribution shift", 2021, section 2.
    """

    __slots__ = ("_in_a_row", "debt", "most")

    def __init__(self, most: float) -> None:
        self.debt = self._in_a_row = 0.0
        self.most = most

    @property
    def _most_debt(self) -> float:
        return ALARM + (self.most - 1.0) / STEP

    def adopt(self, most: float) -> None:
        """Tighten by at most this factor from now on."""
        self.most = most
        self.debt = min(self.debt, self._most_debt)

    @property
    def factor(self) -> float:
        """1 or more, at most ``most``."""
        return 1.0 if self.debt <= ALARM else min(self.most, 1.0 + STEP * (self.debt - ALARM))

    def count(self, late: bool, gaps: float = 1.0) -> None:
        """Count a gap, or a block of so many."""
        if late:
            self.debt = min(self.debt + 1.0, self._most_debt)
            self._in_a_row = 0.0
        else:
            self.debt = max(0.0, self.debt - gaps * LEAK * (1.0 + self._in_a_row * PROMISED))
            self._in_a_row += gaps


class ShownLateness(NamedTuple):
    """What people are shown of one kind of target; shares are of the recent gaps, or blocks of them.

    name: of the gaps. judged: gaps under such a target since the server started. late: share of those planned in time
    that came late, None where none was lately. promised: the share that the margin lets be late. late_by: how much
    later than their target these were, relative, None without one. planned_late: share of all that came late as
    planned. beyond: share of all that took more than MOST_TIGHTENING times as long as planned and were late by it: a
    tighter target does not help these. tightened: factor by which the target is tightened now. since_s: seconds since
    prediction and measurement began to disagree, None where they agree. says: the same in words.
    """

    name: str
    judged: int
    late: float | None
    promised: float
    late_by: float | None
    planned_late: float
    beyond: float
    tightened: float
    since_s: float | None
    says: str


class Kept:
    """How one kind of target is kept. O(1) per gap.

    name: of the target, as people are told.
    """

    __slots__ = ("_all", "_beyond", "_excess", "_late", "_planned_late", "_promised", "judged", "name", "since_s",
                 "tightening")  # fmt: skip

    KEEP = 1.0 - 1.0 / MEMORY

    def __init__(self, name: str, most: float) -> None:
        self.name = name
        self.tightening = Tightening(most)
        self.judged = 0
        self.since_s: float | None = None
        self._all = self._promised = self._late = self._excess = self._planned_late = self._beyond = 0.0

    def add(self, took_s: float, slow_s: float, target_s: float, now_s: float, gaps: int = 1) -> None:
        """Count a gap that took so long. slow_s: what it was hardly to exceed. All of them sums where gaps is more."""
        keep, late, tightening = self.KEEP, took_s > target_s, self.tightening
        self.judged += gaps
        self._all = self._all * keep + 1.0
        self._promised *= keep
        self._late *= keep
        self._excess *= keep
        self._planned_late *= keep
        self._beyond *= keep
        if slow_s > target_s:
            self._planned_late += late
            return
        if took_s > MOST_TIGHTENING * slow_s and late:
            self._beyond += 1.0
            return
        self._promised += 1.0
        if late:
            self._late += 1.0
            self._excess += took_s / target_s - 1.0
            tightening.count(True)
            if self.since_s is None and tightening.debt >= ALARM:
                self.since_s = now_s
            return
        at_stake = slow_s * tightening.factor * MOST_TIGHTENING >= target_s
        tightening.count(False, gaps if at_stake else gaps * LIGHT)
        if self.since_s is not None and tightening.debt <= 0.5 * ALARM:
            self.since_s = None

    def shown(self, now_s: float) -> ShownLateness:
        """What people are shown at this moment."""
        late = self._late / self._promised if self._promised > 0.5 else None
        late_by = self._excess / self._late if self._late > 0.5 else None
        since_s = None if self.since_s is None else max(0.0, now_s - self.since_s)
        of_all = max(1.0, self._all)
        return ShownLateness(
            self.name, self.judged, late, PROMISED, late_by, self._planned_late / of_all, self._beyond / of_all,
            self.tightening.factor, since_s, self._said(late, late_by, since_s),
        )  # fmt: skip

    def _said(self, late: float | None, late_by: float | None, since_s: float | None) -> str:
        if since_s is None or late is None:
            return "as promised" if self.judged else "nothing measured yet"
        factor = self.tightening.factor
        if late <= PROMISED:
            done = (
                f"targets are still taken {factor:.2f} times as tight" if factor > 1.0 else "targets are as they were"
            )
            return (
                f"gaps {self.name} came later than planned, first {since_s:.0f} s ago: of the recent ones that were "
                f"planned in time {late:.1%} are late, {PROMISED:.1%} were promised; {done}"
            )
        by = "" if late_by is None else f" by {late_by:.0%} in the mean"
        done = f"targets are taken {factor:.2f} times as tight" if factor > 1.0 else "targets stay as they are"
        return (
            f"gaps {self.name} have come later than planned for {since_s:.0f} s: of the recent ones that were planned "
            f"in time {late:.1%} were late{by}, {PROMISED:.1%} were promised; {done}"
        )


class Lateness:
    """Follows the gaps between the tokens of one server's running requests, from their plan to their end. O(1).

    All requests that decode in two consecutive steps with decode rows have the same gap between them, so one gap a
    step is all there is to measure. most: see ControllerSettings.tighten.
    """

    def __init__(self, most: float) -> None:
        self.gaps, self.means = Kept("between two tokens", most), Kept("in the mean", most)
        self.kinds = {"per_gap": self.gaps, "mean": self.means}
        self._number = 0
        self._slow_s: float | None = None
        self._ended: tuple[int, float] = (0, 0.0)
        self._alone = True
        self._block = (0, 0.0, 0.0, 0.0)

    def adopt(self, most: float) -> None:
        """Tighten by at most this factor from now on."""
        for kept in self.kinds.values():
            kept.tightening.adopt(most)

    def pause(self) -> None:
        """Note that nobody waits for a next token."""
        self._slow_s = None

    def launched(self, mode: ForwardMode, slow_s: float | None, queue: QueueState) -> PlannedGap | None:
        """Note that a step starts; what was planned of the gap that it ends, None where it gives running requests none.

        slow_s: what it hardly ever exceeds, None where steps are not predicted. queue: as of the decision before it,
        with the targets that requests have.
        """
        if mode is ForwardMode.PREFILL:
            if self._slow_s is not None:
                self._slow_s = None if slow_s is None else self._slow_s + slow_s
            return None
        planned_s = None if self._slow_s is None or slow_s is None else self._slow_s + slow_s
        self._slow_s = 0.0
        self._number += 1
        return PlannedGap(self._number, planned_s, queue.gap_s, queue.mean_s)

    def ended(self, record: IterationRecord) -> None:
        """Judge the gap that a finished step ends."""
        planned = record.gap
        self._alone = self._alone and record.alone
        if planned is None:
            return
        told_s = record.done_s if record.told_s is None else record.told_s
        (number, before_s), self._ended = self._ended, (planned.number, told_s)
        alone, self._alone = self._alone, True
        slow_s, took_s = planned.slow_s, told_s - before_s
        if slow_s is None or number != planned.number - 1 or not alone:
            return
        if planned.gap_s is not None:
            self.gaps.add(took_s, slow_s, planned.gap_s, told_s)
        if planned.mean_s is not None:
            count, took, slow, target = self._block
            self._block = (count + 1, took + took_s, slow + slow_s, target + planned.mean_s)
            if self._block[0] == BLOCK:
                self.means.add(*self._block[1:], told_s, BLOCK)
                self._block = (0, 0.0, 0.0, 0.0)

    def tightened(self, queue: QueueState) -> QueueState:
        """The queue with the targets that policies are to keep; the very same one while gaps are as promised."""
        by_gap, by_mean = self.gaps.tightening.factor, self.means.tightening.factor
        if by_gap == 1.0 and by_mean == 1.0:
            return queue
        gap_s = None if queue.gap_s is None else queue.gap_s / by_gap
        mean_s = None if queue.mean_s is None else queue.mean_s / by_mean
        return queue._replace(gap_s=gap_s, mean_s=mean_s)

    @property
    def disagreeing(self) -> set[str]:
        """Kinds of target, as in ``shown``, whose gaps come later than planned."""
        return {kind for kind, kept in self.kinds.items() if kept.since_s is not None}

    def shown(self, now_s: float) -> dict[str, ShownLateness]:
        """What people are shown of each kind of target."""
        return {kind: kept.shown(now_s) for kind, kept in self.kinds.items()}
