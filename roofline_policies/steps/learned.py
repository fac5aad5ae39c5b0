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
    PRIOR_SPREAD,
    REGIONS,
    Line,
    StepCorrection,
    fewest_rows,
    region,
)
from roofline_policies.steps.nonnegative import NonNegativeFit

BETTER = 0.95
"""Share of the start's squared error that the fit's has to come below to take over. It hands back at the same error:
two answers that are equally good would take turns with the noise, and every turn is a jump."""

THIN = 4.0
"""Steps that the wider evidence counts for beside a region's own, or a kind's own: with fewer, what is known of a
region is mostly what is known of its kind, and of a kind what is known of all steps. A judgement."""

CAUTION = 8.0
"""Steps that have to be seen until the variance is no more than twice what they show: at the start three times the
spread, after a hundred steps 4% more. The error of a step before which few were seen counts for less by as much: what
it shows is mostly that."""

FADES_EVERY = 16
"""Steps of any kind after which all evidence fades by FADE."""

FADE = 0.94
"""Evidence of a kind, or of a region, that no longer occurs halves in some 180 steps of others, and what is known of
all steps takes its place. Else a kind that ran only while the server warmed up would keep the margin of its first
steps, never fit beside running requests, and so never run again."""

FIT_MEMORY = 2.0 * MEMORY
"""Of the fit, which has more to find out than the start; where the device changes, see SHIFTED, it is cut short."""

SHIFTED = 5.0
"""Standard errors by which the median of a block is off where the device is another from then on, as when its clocks
fall. The median of 8 steps is off by as much once in 16,000 blocks by chance, and no single pause moves it."""

OUTLIER = 4.0
"""Spreads from what was expected at which a step counts for the fit at most: where few batches are like it, a single
one decides what its sums cost. One that neither the start nor the fit expected does not tell which is better."""

LEFT = 2.0
"""Steps that all before such a block count for. The start goes on as ever; the fit is there a second before it."""

KEEP = 1.0 - 1.0 / MEMORY

SEEN = 0.25
"""Evidence, in steps, below which nothing is known of a region."""

BLOCK = 8
"""Steps that are judged together, a fraction of MEMORY: it saves the loop two thirds of what judging costs."""

RESTORED = 16.0
"""Steps that what a server before this one learned counts for at most: it is right from the first step on, where
nothing has changed, and soon gone where something has."""

RECENT = 64
"""Errors that make up the median that people are shown."""


class Whole:
    """Squared errors of what answered, over steps of all kinds: what is known of a kind of which little is."""

    __slots__ = ("_square", "_weight", "steps")

    KEEP = 1.0 - 1.0 / (4.0 * MEMORY)

    def __init__(self) -> None:
        self.steps = 0
        self._weight, self._square = THIN, THIN * PRIOR_SPREAD**2

    @property
    def variance(self) -> float:
        return self._square / self._weight

    def kept(self) -> list[float]:
        """What ``restore`` takes."""
        return [self._weight, self._square]

    def restore(self, kept: Sequence[float]) -> None:
        """Go on with what ``kept`` gave, as of no more than RESTORED steps.

        Raises:
            ValueError: it is not that.
        """
        weight, square = kept
        if not (0 < weight < float("inf") and 0 <= square < float("inf")):
            raise ValueError("errors are not numbers of 0 or more")
        less = min(1.0, RESTORED / weight)
        self._weight, self._square = less * weight, less * square

    def add(self, steps: int, squares: float) -> None:
        """Count the squared errors of some steps."""
        keep = self.KEEP**steps
        self.steps += steps
        self._weight = self._weight * keep + steps
        self._square = self._square * keep + squares


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


class _Errors:
    """Decayed squares of both answers' errors, of as many steps as ``weight`` says."""

    __slots__ = ("of_fit", "of_start", "weight")

    def __init__(self) -> None:
        self.weight = self.of_start = self.of_fit = 0.0

    def add(self, steps: int, of_start: float, of_fit: float) -> None:
        """Count the squares of some steps."""
        keep = KEEP**steps
        self.weight = self.weight * keep + steps
        self.of_start = self.of_start * keep + of_start
        self.of_fit = self.of_fit * keep + of_fit

    def kept(self) -> list[float]:
        """What ``restore`` takes."""
        return [self.weight, self.of_start, self.of_fit]

    def restore(self, kept: Sequence[float], most: float) -> None:
        """Go on with three numbers that ``kept`` gave, as of no more than ``most`` steps."""
        self.weight, self.of_start, self.of_fit = kept
        self.fade(min(1.0, most / self.weight) if self.weight else 1.0)

    def fade(self, by: float) -> None:
        self.weight *= by
        self.of_start *= by
        self.of_fit *= by

    def variance(self, by_fit: bool, wider: float) -> float:
        """Mean square of what answers. wider: of the wider evidence, which counts as THIN steps."""
        return ((self.of_fit if by_fit else self.of_start) + THIN * wider) / (self.weight + THIN)


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
    """

    def __init__(self, sums: int, whole: Whole) -> None:
        self.start = StepCorrection()
        self.fit = NonNegativeFit(2 + sums, FIT_MEMORY)
        self.by_fit = False
        self.steps = self.bounded = self.rejected = 0
        self._whole = whole
        self._errors, self._expected = _Errors(), _Errors()
        self._regions = tuple(_Errors() for _ in range(REGIONS))
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._pending: list[_Step] = []
        self._fitted = Line()
        self.line = Line()
        self._answer()

    @property
    def errors(self) -> tuple[float, float]:
        """Decayed sums of squared log ratios of measured to expected, over the steps by which the two are judged: of
        the start and of the fit."""
        return self._expected.of_start, self._expected.of_fit

    def observe(self, predicted_s: float, sums: Sequence[int], rows: int, measured_s: float) -> None:
        """Count one step. sums: see ``sums_of``. rows: of its batch."""
        if not (LEAST_S <= predicted_s <= MOST_S and LEAST_S <= measured_s <= MOST_S):
            self.rejected += 1
            return
        start = self.start
        self._pending.append(_Step(predicted_s, sums, rows, measured_s, start.line.seconds(predicted_s)))
        start.observe(predicted_s, measured_s)
        self.steps += 1
        if len(self._pending) >= min(BLOCK, self.steps // 2):
            self._judge()
            self._answer()
        elif not self.by_fit:
            scale, add_s, *_ = start.line
            self.line = Line(scale, add_s, self.line.spread, (), self.line.spreads)

    def _judge(self) -> None:
        """Learn from the steps of a block, and let the better one answer."""
        correction, by_fit, used = self.start.line, self.by_fit, self.fit.features - 2
        scale, add_s, _, each_s, _ = self._fitted
        level_s, most = correction.add_s / correction.scale, OUTLIER * self.line.spread
        seen = self.steps - len(self._pending)
        offs, fits, units = [], [], []
        judged, judged_start, judged_fit, all_start, all_fit = 0, 0.0, 0.0, 0.0, 0.0
        for predicted_s, sums, batch, measured_s, start_s in self._pending:
            fit_s = scale * predicted_s + add_s + sum(map(mul, each_s, sums))
            expected_s = fit_s if by_fit else start_s
            self._recent.append(measured_s / expected_s)
            if not expected_s <= FARTHEST * measured_s <= FARTHEST**2 * expected_s:
                measured_s = min(max(measured_s, expected_s / FARTHEST), expected_s * FARTHEST)
                self.bounded += 1
            off, off_start, known = log(measured_s / fit_s), log(measured_s / start_s), seen / (seen + CAUTION)
            of_start, of_fit = known * off_start * off_start, known * off * off
            seen += 1
            all_start += of_start
            all_fit += of_fit
            self._regions[region(batch)].add(1, of_start, of_fit)
            if -most <= off <= most or -most <= off_start <= most:
                judged += 1
                judged_start += of_start
                judged_fit += of_fit
            offs.append(off)
            fits.append(fit_s)
            # Relative errors count, so all is divided by what the step is expected to take, but for the level: that of
            # the first steps may be off by orders of magnitude, and they would weigh as much more or less.
            units.append(1.0 / (predicted_s + level_s))
        steps = len(offs)
        if steps == BLOCK and self._shifted(offs):
            self.fit.forget(LEFT)
        elif max(offs) > most or min(offs) < -most:
            offs = [min(max(off, -most), most) for off in offs]
        self._errors.add(steps, all_start, all_fit)
        self._expected.add(judged, judged_start, judged_fit)
        self._whole.add(steps, all_fit if by_fit else all_start)
        predicted, of_sums, *_ = zip(*self._pending, strict=True)
        columns = [[*map(mul, column, units)] for column in (predicted, *[*zip(*of_sums, strict=True)][:used])]
        columns.insert(1, units)
        self._pending.clear()
        self.fit.observe(columns, [*map(mul, map(mul, fits, units), map(exp, offs))])
        found = self.fit.coefficients
        self._fitted = Line(found[0], found[1], each_s=tuple(found[2:]))
        of_start, of_fit = self.errors
        self.by_fit = of_fit < (of_start if by_fit else BETTER * of_start)

    def _shifted(self, offs: list[float]) -> bool:
        """Whether the fit is off by more than chance in a block. offs: log of measured to expected, of each step."""
        variance = self._errors.variance(True, self._whole.variance)
        middle = 0.5 * sum(sorted(offs)[BLOCK // 2 - 1 : BLOCK // 2 + 1])  # the median
        return abs(middle) > SHIFTED * max(LEAST_SPREAD, sqrt(variance)) / sqrt(BLOCK)

    def _answer(self) -> None:
        """What answers from now on, with its spreads."""
        of_kind = self._errors.variance(self.by_fit, self._whole.variance)
        kind = self._spread(of_kind)
        spreads = tuple(
            self._spread(one.variance(self.by_fit, of_kind)) if one.weight > SEEN else kind for one in self._regions
        )
        of = self._fitted if self.by_fit else self.start.line
        self.line = Line(of.scale, of.add_s, kind, of.each_s, spreads)

    def _spread(self, variance: float) -> float:
        seen = self.steps + self._whole.steps / FADES_EVERY
        return max(LEAST_SPREAD, sqrt(variance * (1.0 + CAUTION / (1.0 + seen))))

    def fade(self) -> None:
        """Let evidence fade, see FADE."""
        self._errors.fade(FADE)
        self._expected.fade(FADE)
        for one in self._regions:
            one.fade(FADE)
        self._answer()

    def kept(self) -> dict[str, list[float]]:
        """What ``restore`` takes: what was learned, without the steps that were not judged yet."""
        return {
            "steps": [float(self.steps)],
            "start": self.start.kept(),
            "fit": self.fit.kept(),
            "fit_answers": [float(self.by_fit)],
            "expected": self._expected.kept(),
            "errors": self._errors.kept(),
            "regions": [number for one in self._regions for number in one.kept()],
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
        self._expected.restore(kept["expected"], RESTORED)
        self._errors.restore(kept["errors"], RESTORED)
        for place, one in enumerate(self._regions):
            one.restore(kept["regions"][3 * place : 3 * place + 3], RESTORED)
        self.by_fit = bool(kept["fit_answers"][0]) and self.errors[1] <= self.errors[0]
        self.steps = int(min(RESTORED, kept["steps"][0]))
        if min(self.start.line.scale, self._fitted.scale) <= 0:
            raise ValueError("it has steps take no time")
        self._answer()

    @property
    def shown(self) -> Shown:
        """What people are shown."""
        error = median(abs(ratio - 1.0) for ratio in self._recent) if self._recent else None
        known = [fewest_rows(place) for place, one in enumerate(self._regions) if one.weight > SEEN]
        margins = {rows: self.line.margin(rows) for rows in known}
        return Shown(self.steps, "fit" if self.by_fit else "start", error, margins, self.bounded, self.rejected)
