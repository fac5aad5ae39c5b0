"""What one kind of step takes, learned while it is served: a fit to the batch's sums beside the start's correction.

Two answers compete. The start's is ``StepCorrection``: what was predicted, with a scale and a constant. The fit has a
coefficient for each sum of the batch besides. Both are judged by steps before they learn from them, and the one with
the smaller error answers, so that what answers is never worse than the start on what it has seen.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from math import exp, isfinite, log, sqrt
from operator import mul
from statistics import median
from typing import NamedTuple

from roofline_policies.steps.correction import (
    FARTHEST,
    LEAST_S,
    LEAST_SPREAD,
    MEMORY,
    MOST_S,
    Line,
    StepCorrection,
    Z,
    fewest_rows,
)
from roofline_policies.steps.evidence import CAUTION, RESTORED, Evidence, Whole
from roofline_policies.steps.nonnegative import NonNegativeFit

BETTER = 0.95
"""Share of the start's squared error that the fit's has to come below to take over. It hands back at the same error:
two answers that are equally good would take turns with the noise, and every turn is a jump."""

FIT_MEMORY = 2.0 * MEMORY
"""Of the fit, which has more to find out than the start; where the device changes, see SHIFTED, it is cut short."""

GROUP_MEMORY = 24.0
"""Of each group of steps: what a group takes is kept anyway while others run, so it may be as of now. A judgement: a
second of steps, of which an error of 3% is known to 0.6%."""

SHIFTED = 5.0
"""Standard errors by which the median of a block is off where the device is another from then on, as when its clocks
fall. The median of 8 steps is off by as much once in 16,000 blocks by chance, and no single pause moves it."""

OUTLIER = 4.0
"""Spreads from what was expected at which a step counts for the fit at most: where few batches are like it, a single
one decides what its sums cost. One that neither the start nor the fit expected does not tell which is better."""

LEFT = 2.0
"""Steps that all before such a block count for. The start goes on as ever; the fit is there a second before it."""

BLOCK = 8
"""Steps that are judged together, a fraction of MEMORY: it saves the loop two thirds of what judging costs."""

RECENT = 64
"""Errors that make up the median that people are shown."""


class Shown(NamedTuple):
    """What people are shown of a kind of step.

    steps: seen. answers: ``start`` or ``fit``. median_error: of the last steps, relative to what was expected, None
    before the first. margins: by the fewest rows of each region of which something is known. bounded: steps that took
    FARTHEST times as long as expected, or as little, and counted as that; rejected: times that no step takes.
    """

    steps: int
    answers: str
    median_error: float | None
    margins: Mapping[int, float]
    bounded: int
    rejected: int


class _Step(NamedTuple):
    """One that was not judged yet. start_s: what the start expected of it."""

    predicted_s: float
    sums: Sequence[int]
    rows: int
    measured_s: float
    start_s: float


class LearnedKind:
    """Learns what one kind of step takes, as a Line. O(sums^2) a step, of fixed size, deterministic.

    The start's correction learns from each step at once. The fit, and who answers, follow in blocks: at first of one
    step, then of up to BLOCK.

    sums: how many of ``sums_of`` it depends on, from the first on. whole: what is known of all steps.
    group: place in the sums of what tells groups of steps apart, such as the number of drafts: what was learned of a
        group is kept while others run. From two groups on the fit answers: the start's scale is of the group that runs,
        and says nothing of others. No step is taken for a change of the device. None: there are no groups.
    left_out: places of sums that cost nothing of their own.
    """

    def __init__(self, sums: int, whole: Whole, group: int | None = None, left_out: Sequence[int] = ()) -> None:
        self._group = group
        self._left_out = tuple(left_out)
        self.groups: dict[int, int] = {}
        self.start = StepCorrection()
        self.fit = NonNegativeFit(2 + sums, FIT_MEMORY if group is None else GROUP_MEMORY)
        self.by_fit = False
        self.steps = self.bounded = self.rejected = 0
        self._evidence = Evidence(whole)
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._pending: list[_Step] = []
        self._fitted = Line()
        self.line = Line()
        self._answer()

    @property
    def errors(self) -> tuple[float, float]:
        """Decayed sums of squared log ratios of measured to expected, over the steps by which the two are judged: of
        the start and of the fit."""
        return self._evidence.judged

    def observe(self, predicted_s: float, sums: Sequence[int], rows: int, measured_s: float) -> None:
        """Count one step. sums: see ``sums_of``. rows: of its batch."""
        if not (LEAST_S <= predicted_s <= MOST_S and LEAST_S <= measured_s <= MOST_S):
            self.rejected += 1
            return
        start = self.start
        self._pending.append(_Step(predicted_s, sums, rows, measured_s, start.line.seconds(predicted_s)))
        start.observe(predicted_s, measured_s)
        self.steps += 1
        if self._group is not None:
            self.groups[sums[self._group]] = self.groups.get(sums[self._group], 0) + 1
        if len(self._pending) >= min(BLOCK, self.steps // 2):
            self._judge()
            self._answer()
        elif not self.by_fit:
            scale, add_s, *_ = start.line
            self.line = Line(scale, add_s, self.line.spread, (), self.line.spreads)

    def _judge(self) -> None:
        """Learn from the steps of a block, and let the better one answer."""
        correction, by_fit, used = self.start.line, self.by_fit, self.fit.features - 2
        fitted = self._fitted
        scale, add_s, each_s, factors = fitted.scale, fitted.add_s, fitted.each_s, fitted.factors
        level_s, most = correction.add_s / correction.scale, OUTLIER * self.line.spread
        seen = self.steps - len(self._pending)
        offs, fits, units, squares, judged = [], [], [], [], []
        for predicted_s, sums, batch, measured_s, start_s in self._pending:
            fit_s = scale * predicted_s + add_s + sum(map(mul, each_s, sums))
            if factors and self._group is not None:
                fit_s *= factors.get(sums[self._group], 1.0)
            expected_s = fit_s if by_fit else start_s
            self._recent.append(measured_s / expected_s)
            if not expected_s <= FARTHEST * measured_s <= FARTHEST**2 * expected_s:
                measured_s = min(max(measured_s, expected_s / FARTHEST), expected_s * FARTHEST)
                self.bounded += 1
            off, off_start, known = log(measured_s / fit_s), log(measured_s / start_s), seen / (seen + CAUTION)
            of_start, of_fit = known * off_start * off_start, known * off * off
            seen += 1
            squares.append((batch, of_start, of_fit))
            if -most <= off <= most or -most <= off_start <= most:
                judged.append((of_start, of_fit))
            offs.append(off)
            fits.append(fit_s)
            # Relative errors count, so all is divided by what the step is expected to take, but for the level: that of
            # the first steps may be off by orders of magnitude, and they would weigh as much more or less.
            units.append(1.0 / (predicted_s + level_s))
        settled = [self._known(step) for step in self._pending]
        if len(offs) == BLOCK and self._group is None and self._shifted(offs):
            self.fit.forget(LEFT)
        elif max(offs) > most or min(offs) < -most:
            offs = [min(max(off, -most), most) if sure else off for off, sure in zip(offs, settled, strict=True)]
        self._evidence.add(squares, judged, by_fit)
        targets = [*map(mul, map(mul, fits, units), map(exp, offs))]
        predicted, of_sums, *_ = zip(*self._pending, strict=True)
        columns = [[*map(mul, column, units)] for column in (predicted, *[*zip(*of_sums, strict=True)][:used])]
        columns.insert(1, units)
        for place in self._left_out:
            columns[2 + place] = [0.0] * len(units)
        self._pending.clear()
        groups = [0] * len(targets) if self._group is None else [sums[self._group] for sums in of_sums]
        for group in dict.fromkeys(groups):
            own = [at for at, one in enumerate(groups) if one == group]
            whole = len(own) == len(groups)
            of_group = columns if whole else [[column[at] for at in own] for column in columns]
            self.fit.observe(of_group, targets if whole else [targets[at] for at in own], group)
        found = self.fit.coefficients
        self._fitted = Line(found[0], found[1], each_s=tuple(found[2:]))
        if self._group is not None:
            self._fitted = self._fitted._replace(group=self._group, factors=self.fit.ratios())
        of_start, of_fit = self.errors
        self.by_fit = len(self.groups) > 1 or of_fit < (of_start if by_fit else BETTER * of_start)

    def _known(self, step: _Step) -> bool:
        """Whether enough was seen of a step's group for its distance from what was expected to say something else than
        that nothing was known of it."""
        return self._group is None or self.groups[step.sums[self._group]] > 2 * BLOCK

    def _shifted(self, offs: list[float]) -> bool:
        """Whether the fit is off by more than chance in a block. offs: log of measured to expected, of each step."""
        middle = 0.5 * sum(sorted(offs)[BLOCK // 2 - 1 : BLOCK // 2 + 1])  # the median
        return abs(middle) > SHIFTED * max(LEAST_SPREAD, sqrt(self._evidence.variance(True))) / sqrt(BLOCK)

    def _answer(self) -> None:
        """What answers from now on, with its spreads."""
        of = self._fitted if self.by_fit else self.start.line
        spread, spreads = self._evidence.spreads(self.by_fit, self.steps)
        near = self._near_start() if self.by_fit and self._group is None else None
        self.line = Line(of.scale, of.add_s, spread, of.each_s, spreads, near, of.group, of.factors)

    def _near_start(self) -> tuple[float, float, tuple[float, ...]]:
        """How far the fit may be below the start: by as much as that was above what was measured of batches as large.

        Batches that are like none before are where the fit knows least. A step that takes longer than was planned makes
        tokens late; one that takes less costs a smaller chunk, until the fit and the start have seen a few of them.
        """
        start = self.start.line
        return start.scale, start.add_s, tuple(exp(Z * spread) for spread in self._evidence.start_spreads())

    def fade(self) -> None:
        """Let evidence fade, see FADE."""
        self._evidence.fade()
        self._answer()

    def kept(self) -> dict[str, list[float]]:
        """What ``restore`` takes: what was learned, without the steps that were not judged yet."""
        return {
            "steps": [float(self.steps)],
            "start": self.start.kept(),
            "fit": self.fit.kept(),
            "fit_answers": [float(self.by_fit)],
            **self._evidence.kept(),
        }

    def restore(self, kept: Mapping[str, Sequence[float]]) -> None:
        """Go on where another one was, with the evidence of RESTORED steps at most.

        Raises:
            ValueError: it is not what ``kept`` of a kind with these sums gives.
        """
        for key, numbers in self.kept().items():
            if len(kept[key]) != len(numbers) or not all(isfinite(one) and one >= 0 for one in kept[key]):
                raise ValueError(f"{key} is not {len(numbers)} numbers of 0 or more")
        try:
            self.start = StepCorrection.restored(kept["start"], RESTORED)
        except ArithmeticError:
            raise ValueError("start is of no step") from None
        self.fit.restore(kept["fit"], RESTORED)
        found = self.fit.coefficients
        self._fitted = Line(found[0], found[1], each_s=tuple(found[2:]))
        self._evidence.restore(kept)
        self.by_fit = bool(kept["fit_answers"][0]) and self.errors[1] <= self.errors[0]
        self.steps = int(min(RESTORED, kept["steps"][0]))
        if min(self.start.line.scale, self._fitted.scale) <= 0:
            raise ValueError("it has steps take no time")
        self._answer()

    @property
    def shown(self) -> Shown:
        """What people are shown."""
        error = median(abs(ratio - 1.0) for ratio in self._recent) if self._recent else None
        margins = {rows: self.line.margin(rows) for rows in map(fewest_rows, self._evidence.known_regions)}
        return Shown(self.steps, "fit" if self.by_fit else "start", error, margins, self.bounded, self.rejected)
