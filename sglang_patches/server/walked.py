"""What a walk over a model's modules came to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from roofline_policies.model.rank_model import RankModel


@dataclass(frozen=True)
class Walked:
    """A model as it was walked.

    unexplained: bytes of weights by the classes of modules of which nothing is known. modules, unexplained_modules:
    how many have weights of their own, and how many of those are such.
    """

    rank_model: RankModel
    unexplained: Mapping[str, int]
    modules: int
    unexplained_modules: int

    @property
    def explained_share(self) -> float:
        """Of the bytes of all weights."""
        held = self.rank_model.weight_bytes
        return 1.0 if not held else 1 - self.rank_model.unexplained_bytes / held
