"""Which drafts of speculative decoding a target model accepts, as a stated process rather than as a measurement.

    P(draft i is accepted | all before it were) = 1 / (1 + exp(-(logit(p_i) + level of the request + drift so far)))

A chain of K drafts is accepted up to the first that is not. Not modelled: trees of drafts, of which a sibling may be
accepted where the first child was not; any influence of temperature, of what the text says, or of its length so far.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from math import exp, isfinite, log
from statistics import NormalDist

from roofline_policies.errors import FieldError

_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True)
class Acceptance:
    """The process.

    per_position: probability that the draft at a position of the chain is accepted given that all before it were, of a
        request at level 0; the last repeats.
    spread: standard deviation of the requests' levels, which are normal around 0: some texts are easier to draft for,
        at all positions. 0: all requests are alike. A probability of 0 or 1 is the same at every level.
    seed: of all draws.
    of_class: (priority, level) of classes of requests that are easier or harder to draft for; others are at 0.
    drift: (second, level) points between which the level of all requests moves on straight lines, ascending; before the
        first and after the last it stays. Empty: at 0.

    Raises:
        FieldError: no position, a probability outside 0 to 1, a spread that is negative or not finite, or points of the
            drift that are not ascending and finite.
    """

    per_position: tuple[float, ...]
    spread: float = 0.0
    seed: int = 0
    of_class: tuple[tuple[int, float], ...] = ()
    drift: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        if not self.per_position or not all(0 <= probability <= 1 for probability in self.per_position):
            raise FieldError("per_position", self.per_position, "one probability or more, each 0 to 1")
        if not (isfinite(self.spread) and self.spread >= 0):
            raise FieldError("spread", self.spread, "a finite number, 0 or more")
        times = [second for second, _ in self.drift]
        if times != sorted(set(times)) or not all(isfinite(number) for point in self.drift for number in point):
            raise FieldError("drift", self.drift, "[second, level] points of ascending seconds")
        if not all(isfinite(level) for _, level in self.of_class):
            raise FieldError("of_class", self.of_class, "a finite level for each priority")

    def probabilities(self, steps: int, level: float = 0.0) -> tuple[float, ...]:
        """Of a request at ``level``: for each of ``steps`` drafts, given that all before it were accepted."""
        given = self.per_position
        chain = (*given[:steps], *given[-1:] * (steps - len(given)))
        return chain if level == 0 else tuple(_shifted(probability, level) for probability in chain)

    def mean_accepted(self, steps: int, level: float = 0.0) -> float:
        """Drafts accepted per verify step of a request at ``level``, the target's own token not counted.

            sum over i = 1..steps of p_1 p_2 ... p_i

        Source: Leviathan, Kalman and Matias, "Fast inference from transformers via speculative decoding", ICML 2023,
        whose formula is this sum less 1 with one probability for all positions.
        """
        mean, all_before = 0.0, 1.0
        for probability in self.probabilities(steps, level):
            all_before *= probability
            mean += all_before
        return mean

    def key(self, request: str) -> int:
        """64 bits that start a request's own stream of draws: they depend on the seed and its id alone."""
        return _bits(request, self.seed, b"draws")

    def level(self, request: str, priority: int | None = None) -> float:
        """How much easier to draft for than others a request is, on the scale of the logit."""
        of_class = dict(self.of_class).get(priority, 0.0) if priority is not None else 0.0
        if not self.spread:
            return of_class
        return of_class + self.spread * _NORMAL.inv_cdf((_bits(request, self.seed, b"level") + 0.5) / 2**64)

    def drifted(self, second: float) -> float:
        """How much easier to draft for than at level 0 all requests are at this time of the traffic."""
        if not self.drift:
            return 0.0
        before = self.drift[0]
        for point in self.drift:
            if second < point[0]:
                if point is self.drift[0]:
                    return point[1]
                share = (second - before[0]) / (point[0] - before[0])
                return before[1] + share * (point[1] - before[1])
            before = point
        return before[1]


def _shifted(probability: float, level: float) -> float:
    if probability in (0.0, 1.0):
        return probability
    odds = log(probability) - log(1.0 - probability) + level
    return 1.0 / (1.0 + exp(-odds)) if odds >= 0 else exp(odds) / (1.0 + exp(odds))


def _bits(request: str, seed: int, purpose: bytes) -> int:
    digest = blake2b(request.encode(), digest_size=8, key=str(seed).encode(), person=purpose).digest()
    return int.from_bytes(digest, "little")
