"""Least squares with coefficients of 0 or more and weights that decay: of fixed size, O(features^2) a pair."""

from __future__ import annotations

from collections.abc import Sequence
from operator import mul

DOUBT = 0.003
"""Weight of the belief that a coefficient beside the first is 0: relative variance that is added to that of its
feature. While all steps are of one shape nothing tells features apart, and this leaves all to the first of them. What
differs by more than about 5%, its square root, decides for itself. A judgement: more is slower to see what is there,
less takes noise for it, where something that is as good answers in its place."""

LEAST_SHARE = 0.1
"""Of what is to be explained, that the first feature explains at least: what others take over at this moment may not
be theirs at the next."""


class NonNegativeFit:
    """Fits ``target = sum of coefficients * features`` with ``coefficients >= 0``, the first of which is believed in.

    The squares that are made small are decayed with each pair; every coefficient but the first is held near 0 by DOUBT
    of its own feature's squares, so that no scale of a feature matters. After some pairs follows one round of
    coordinate descent from the last solution, with the first coefficient at its best for the others: a few rounds after
    a change the solution is exact.

    features: how many. memory: recent pairs that carry about two thirds of the weight.

    Source of the descent: Franc, Hlavac and Navara, "Sequential coordinate-wise algorithm for the non-negative least
    squares problem", CAIP 2005.
    """

    __slots__ = ("coefficients", "features", "keep", "products", "targets", "weight")

    def __init__(self, features: int, memory: float) -> None:
        self.features = features
        self.keep = 1.0 - 1.0 / memory
        self.weight = 0.0
        self.coefficients = [1.0] + [0.0] * (features - 1)
        self.products = [[0.0] * features for _ in range(features)]
        self.targets = [0.0] * features

    def observe(self, columns: Sequence[Sequence[float]], targets: Sequence[float]) -> None:
        """Count pairs, one or more.

        columns: the values of each feature, oldest first; of the first above 0, of the others 0 or more; all finite.
        """
        # Pairs are counted together, column by column: one by one they would cost the loop three times as much.
        weights = [self.keep**age for age in range(len(targets) - 1, -1, -1)]
        keep = weights[0] * self.keep
        self.weight = keep * self.weight + sum(weights)
        for place, column in enumerate(columns):
            weighted = [*map(mul, weights, column)]
            self.targets[place] = keep * self.targets[place] + sum(map(mul, weighted, targets))
            for other in range(place + 1):
                product = keep * self.products[place][other] + sum(map(mul, weighted, columns[other]))
                self.products[place][other] = self.products[other][place] = product
        self.descend()

    def forget(self, most: float) -> None:
        """Let all pairs so far count for no more than ``most``."""
        if self.weight <= most:
            return
        keep, self.weight = most / self.weight, most
        self.products = [[keep * product for product in row] for row in self.products]
        self.targets = [keep * target for target in self.targets]

    def kept(self) -> list[float]:
        """What ``restore`` takes."""
        return [self.weight, *self.coefficients, *self.targets, *(product for row in self.products for product in row)]

    def restore(self, kept: Sequence[float], most: float) -> None:
        """Go on where another fit of as many features was, whose pairs count for no more than ``most``.

        kept: finite numbers of 0 or more, as many as ``kept`` gives.
        """
        (self.weight, *rest), features = kept, self.features
        self.coefficients, self.targets = rest[:features], rest[features : 2 * features]
        self.products = [rest[start : start + features] for start in range(2 * features, len(rest), features)]
        self.forget(most)

    def descend(self) -> None:
        """One round over all coefficients."""
        found, of_first = self.coefficients, self.products[0]
        square, whole = of_first[0], self.targets[0]
        least = LEAST_SHARE * whole / square
        others = sum(map(mul, of_first, found)) - square * found[0]
        first = (whole - others) / square
        if first < least:  # the sums have changed under the others
            shrink = (whole - least * square) / others
            found[1:] = [shrink * coefficient for coefficient in found[1:]]
            first = least
        for place in range(1, self.features):
            row, old = self.products[place], found[place]
            own, ratio = row[place], row[0] / square
            if not own:
                continue
            found[0] = first
            slope = self.targets[place] - sum(map(mul, row, found)) - DOUBT * own * old
            move = slope / (own - row[0] * ratio + DOUBT * own)
            if move * ratio > first - least:
                move = max(0.0, first - least) / ratio
            found[place] = max(0.0, old + move)
            first -= (found[place] - old) * ratio
        found[0] = first
