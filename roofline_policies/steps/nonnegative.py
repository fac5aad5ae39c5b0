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


FEW = 4.0
"""Pairs at which half of what is left over of a group is taken for its own."""

RESTORED = -1
"""The group of what another fit learned."""


class _Sums:
    """Decayed sums of the pairs of one group."""

    __slots__ = ("products", "targets", "weight")

    def __init__(self, features: int) -> None:
        self.weight = 0.0
        self.products = [[0.0] * features for _ in range(features)]
        self.targets = [0.0] * features

    def add(
        self, columns: Sequence[Sequence[float]], targets: Sequence[float], weights: Sequence[float], keep: float
    ) -> None:
        self.weight = keep * self.weight + sum(weights)
        for place, column in enumerate(columns):
            weighted = [*map(mul, weights, column)]
            self.targets[place] = keep * self.targets[place] + sum(map(mul, weighted, targets))
            for other in range(place + 1):
                product = keep * self.products[place][other] + sum(map(mul, weighted, columns[other]))
                self.products[place][other] = self.products[other][place] = product

    def fade(self, keep: float) -> None:
        self.weight *= keep
        self.products = [[keep * product for product in row] for row in self.products]
        self.targets = [keep * target for target in self.targets]


class NonNegativeFit:
    """Fits ``target = sum of coefficients * features`` with ``coefficients >= 0``, the first of which is believed in.

    The squares that are made small are decayed with each pair; every coefficient but the first is held near 0 by DOUBT
    of its own feature's squares, so that no scale of a feature matters. After some pairs follows one round of
    coordinate descent from the last solution, with the first coefficient at its best for the others: a few rounds after
    a change the solution is exact.

    features: how many. memory: recent pairs that carry about two thirds of the weight, of each group: pairs of a group
    fade with pairs of the same group alone, so that what tells features apart is kept while only one group is seen.

    Source of the descent: Franc, Hlavac and Navara, "Sequential coordinate-wise algorithm for the non-negative least
    squares problem", CAIP 2005.
    """

    __slots__ = ("_groups", "coefficients", "features", "keep", "products", "targets", "weight")

    def __init__(self, features: int, memory: float) -> None:
        self.features = features
        self.keep = 1.0 - 1.0 / memory
        self.weight = 0.0
        self.coefficients = [1.0] + [0.0] * (features - 1)
        self.products = [[0.0] * features for _ in range(features)]
        self.targets = [0.0] * features
        self._groups: dict[int, _Sums] = {}

    def observe(self, columns: Sequence[Sequence[float]], targets: Sequence[float], group: int = 0) -> None:
        """Count pairs of one group, one or more.

        columns: the values of each feature, oldest first; of the first above 0, of the others 0 or more; all finite.
        """
        # Pairs are counted together, column by column: one by one they would cost the loop three times as much.
        weights = [self.keep**age for age in range(len(targets) - 1, -1, -1)]
        own = self._groups.get(group)
        if own is None:
            own = self._groups[group] = _Sums(self.features)
        own.add(columns, targets, weights, weights[0] * self.keep)
        if len(self._groups) == 1:
            self.weight, self.targets, self.products = own.weight, own.targets, own.products
        else:
            self._add_up()
        self.descend()

    def ratios(self) -> dict[int, float]:
        """Of each group: its targets over what the solution makes of them, in the mean of its own pairs, nearer to 1
        where those are few. What one solution for all groups leaves over."""
        found = {}
        for group, own in self._groups.items():
            explained = sum(map(mul, own.products[0], self.coefficients))
            if group != RESTORED and explained > 0:
                found[group] = 1.0 + (own.targets[0] / explained - 1.0) * own.weight / (own.weight + FEW)
        return found

    def _add_up(self) -> None:
        groups = self._groups.values()
        self.weight = sum(one.weight for one in groups)
        self.targets = [sum(parts) for parts in zip(*(one.targets for one in groups), strict=True)]
        self.products = [
            [sum(parts) for parts in zip(*rows, strict=True)]
            for rows in zip(*(one.products for one in groups), strict=True)
        ]

    def forget(self, most: float) -> None:
        """Let all pairs so far count for no more than ``most``."""
        if self.weight <= most:
            return
        keep = most / self.weight
        for one in self._groups.values():
            one.fade(keep)
        self._add_up()
        self.weight = most

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
        restored = _Sums(features)
        restored.weight, restored.targets, restored.products = self.weight, self.targets, self.products
        self._groups = {RESTORED: restored}
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
