"""How far off two answers to one question were, by what has been seen of them: spreads, and how they fade.

What is known of few steps is mostly what is known of more: of a region of batch size what is known of its kind of step,
of a kind what is known of all steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf, sqrt

from roofline_policies.steps.correction import LEAST_SPREAD, MEMORY, PRIOR_SPREAD, REGIONS, region

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

KEEP = 1.0 - 1.0 / MEMORY

SEEN = 0.25
"""Evidence, in steps, below which nothing is known of a region."""

RESTORED = 16.0
"""Steps that what a server before this one learned counts for at most: it is right from the first step on, where
nothing has changed, and soon gone where something has."""


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


class Errors:
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


class Evidence:
    """Of one kind of step: errors of the start and of the fit, over all of its steps and by region of batch size.

    whole: of all kinds. A judged step is one by which the two are compared.
    """

    __slots__ = ("_all", "_judged", "_regions", "_whole")

    def __init__(self, whole: Whole) -> None:
        self._whole = whole
        self._all, self._judged = Errors(), Errors()
        self._regions = tuple(Errors() for _ in range(REGIONS))

    @property
    def judged(self) -> tuple[float, float]:
        """Decayed sums of squares over the judged steps: of the start and of the fit."""
        return self._judged.of_start, self._judged.of_fit

    @property
    def known_regions(self) -> list[int]:
        """Of which something was seen."""
        return [place for place, one in enumerate(self._regions) if one.weight > SEEN]

    def add(
        self, steps: Sequence[tuple[int, float, float]], judged: Sequence[tuple[float, float]], by_fit: bool
    ) -> None:
        """Count a block.

        steps: rows of the batch, and squares of the start and of the fit. judged: squares of those that tell which is
        better. by_fit: whether the fit answered.
        """
        all_start = all_fit = 0.0
        for rows, of_start, of_fit in steps:
            all_start += of_start
            all_fit += of_fit
            self._regions[region(rows)].add(1, of_start, of_fit)
        self._all.add(len(steps), all_start, all_fit)
        self._whole.add(len(steps), all_fit if by_fit else all_start)
        if judged:
            of_starts, of_fits = zip(*judged, strict=True)
            self._judged.add(len(judged), sum(of_starts), sum(of_fits))

    def variance(self, by_fit: bool) -> float:
        """Mean square over all steps of the kind."""
        return self._all.variance(by_fit, self._whole.variance)

    def start_spreads(self) -> tuple[float, ...]:
        """Of the start, by region; infinite where nothing was seen of one."""
        of_kind = self.variance(False)
        return tuple(
            max(LEAST_SPREAD, sqrt(one.variance(False, of_kind))) if one.weight > SEEN else inf for one in self._regions
        )

    def spreads(self, by_fit: bool, steps: int) -> tuple[float, tuple[float, ...]]:
        """Of the kind, and of each region, wider while little was seen (CAUTION). steps: of this kind so far."""
        caution = 1.0 + CAUTION / (1.0 + steps + self._whole.steps / FADES_EVERY)
        of_kind = self.variance(by_fit)
        kind = max(LEAST_SPREAD, sqrt(of_kind * caution))
        return kind, tuple(
            max(LEAST_SPREAD, sqrt(one.variance(by_fit, of_kind) * caution)) if one.weight > SEEN else kind
            for one in self._regions
        )

    def fade(self) -> None:
        """See FADE."""
        for one in (self._all, self._judged, *self._regions):
            one.fade(FADE)

    def kept(self) -> dict[str, list[float]]:
        """What ``restore`` takes."""
        regions = [number for one in self._regions for number in one.kept()]
        return {"judged": self._judged.kept(), "errors": self._all.kept(), "regions": regions}

    def restore(self, kept: Mapping[str, Sequence[float]]) -> None:
        """Go on with as many finite numbers of 0 or more as ``kept`` gives, as of RESTORED steps at most."""
        self._judged.restore(kept["judged"], RESTORED)
        self._all.restore(kept["errors"], RESTORED)
        for place, one in enumerate(self._regions):
            one.restore(kept["regions"][3 * place : 3 * place + 3], RESTORED)
