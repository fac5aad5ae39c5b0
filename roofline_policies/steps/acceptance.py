"""Which drafts of speculative decoding a target model accepts, as a stated process rather than as a measurement.

    P(draft i is accepted | all before it were) = 1 / (1 + exp(-(logit(p_i) + level of the request)))

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

    Raises:
        FieldError: no position, a probability outside 0 to 1, or a spread that is negative or not finite.
    """

    per_position: tuple[float, ...]
    spread: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.per_position or not all(0 <= probability <= 1 for probability in self.per_position):
            raise FieldError("per_position", self.per_position, "one probability or more, each 0 to 1")
        if not (isfinite(self.spread) and self.spread >= 0):
            raise FieldError("spread", self.spread, "a finite number, 0 or more")

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

    def level(self, request: str) -> float:
        """How much easier to draft for than others a request is, on the scale of the logit."""
        if not self.spread:
            return 0.0
        return self.spread * _NORMAL.inv_cdf((_bits(request, self.seed, b"level") + 0.5) / 2**64)


def _shifted(probability: float, level: float) -> float:
    if probability in (0.0, 1.0):
        return probability
    odds = log(probability) - log(1.0 - probability) + level
    return 1.0 / (1.0 + exp(-odds)) if odds >= 0 else exp(odds) / (1.0 + exp(odds))


def _bits(request: str, seed: int, purpose: bytes) -> int:
    digest = blake2b(request.encode(), digest_size=8, key=str(seed).encode(), person=purpose).digest()
    return int.from_bytes(digest, "little")
