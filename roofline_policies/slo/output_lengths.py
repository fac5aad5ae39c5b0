"""How many tokens answers have: a quantile of the recent ones, from a streaming sketch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from datasketches import kll_floats_sketch  # type: ignore[import-untyped]

KEPT = 2048
"""Answers after which the older of two sketches is dropped: the last 2,048 to 4,096 count, in constant memory."""

QUANTILE = 0.02
"""Share of answers that may be shorter than the length that is counted on: one in fifty."""


FEWEST = 50
"""Answers before the quantile is known: of fewer than fifty, one in fifty is less than one answer."""

FEWEST_EARLY, DOUBT = 4, 7
"""Before that, of ``n`` requests of which none had an answer below some length, ``n / (n + DOUBT)`` of that length is
counted on, from FEWEST_EARLY requests on. The shortest of n log-normal lengths with a sigma of 1 is, in the mean of its
logarithm, above their fiftieth by a factor of 2.8, 1.9, 1.3, 1.0 for n of 4, 8, 16, 32; (n + 7) / n is 2.8, 1.9, 1.4,
1.2. Most traffic spreads less. A judgement; more keeps means as if they were gaps for longer."""


MEAN_OVER = 64
"""Recent answers that carry about two thirds of the weight in their mean length, which is then known to an eighth."""

FEWEST_IN_MEAN = 4
"""Answers before a mean is told at all."""


class OutputLengths:
    """Lengths of recent answers. O(1).

    Source of the sketch: Karnin, Lang, Liberty, "Optimal Quantile Approximation in Streams", FOCS 2016, as in Apache
    DataSketches; 200 gives ranks within 1.7%.
    """

    def __init__(self) -> None:
        self._older: Any = None
        self._newer = kll_floats_sketch(200)
        self._known: Any = None
        self._least = self._typical = 1
        self._count = self._sum = 0.0
        self._answers = 0
        self._shortest: int | None = None

    @property
    def known(self) -> bool:
        """Whether enough answers have ended to tell how long they are."""
        return self._known is not None

    def add(self, tokens: int) -> None:
        """Count one answer."""
        keep = 1.0 - 1.0 / MEAN_OVER
        self._answers += 1
        self._count, self._sum = self._count * keep + 1.0, self._sum * keep + tokens
        self._shortest = tokens if self._shortest is None else min(self._shortest, tokens)
        self._newer.update(float(tokens))
        if self._older is None and self._newer.n < FEWEST:
            return
        if self._newer.n >= KEPT:
            self._older, self._newer = self._newer, kll_floats_sketch(200)
        if self._newer.n % 16 == 0 or self._older is None:
            known = self._newer
            if self._older is not None:
                known = kll_floats_sketch(200)
                known.merge(self._older)
                known.merge(self._newer)
            self._known = known
            self._typical = self.expected(0)
            self._least = max(1, int(known.get_quantile(QUANTILE)))

    def running(self, tokens: Iterable[int]) -> None:
        """Note how many tokens those have that run. Until lengths are known, what all that ended and some that run have
        reached tells how short an answer hardly is: the first ones to end are the short ones, so that it errs low."""
        if self.known:
            return
        count, found = self._answers, 1
        for reached in sorted(tokens, reverse=True):
            count += 1
            most = reached if self._shortest is None else min(self._shortest, reached)
            if count >= FEWEST_EARLY:
                found = max(found, most * count // (count + DOUBT))
        if self._shortest is not None and self._answers >= FEWEST_EARLY:
            found = max(found, self._shortest * self._answers // (self._answers + DOUBT))
        self._least = found

    def expected(self, tokens: int) -> int:
        """Tokens of an answer that has so many already: the median of the recent answers that were longer; one more
        token where none was, or before there were enough."""
        known = self._known
        if known is None:
            return tokens + 1
        longer = 1.0 - known.get_rank(float(tokens), True)
        return max(tokens + 1, int(known.get_quantile(1.0 - longer / 2.0)))

    def typical(self) -> int:
        """``expected`` of an answer that has none yet, ready to be read in every pass."""
        return self._typical

    def least(self) -> int:
        """Tokens that all but one in fifty of the recent answers have; before there were enough, fewer than any had."""
        return self._least

    def mean(self) -> float | None:
        """Tokens of the recent answers in the mean, None before there were a few."""
        return self._sum / self._count if self._answers >= FEWEST_IN_MEAN else None
