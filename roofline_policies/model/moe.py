"""Work of a mixture of experts: the MLPs of one decoder layer, of which a router picks a few for every row.

What a router picks depends on the text. FLOPs do not: every row goes through equally many experts of equal size. How
many distinct experts a batch reaches does, and with it the weights that are read; here it is an expected value.

Source: N. Shazeer et al., "Outrageously Large Neural Networks", arXiv 1701.06538, for the layer; D. Dai et al.,
"DeepSeekMoE", arXiv 2401.06066, for shared experts; SGLang 0.5.23, ``models/qwen3_moe.py``, ``models/deepseek_v2.py``,
``layers/moe/moe_runner/triton_utils/fused_moe.py`` for what is executed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import expm1, log1p

from roofline_policies.errors import InputError
from roofline_policies.model.tensor_parallel import refuse_split, split


@dataclass(frozen=True, slots=True)
class Experts:
    """The experts of one layer: gated MLPs of three matrices each, without biases.

    count: routed experts. chosen: of them for every row. width: inner width of each of them.
    shared_width: inner width of the shared experts together, through which every row goes; 0: there are none.

    How chosen experts are weighted (normalised or not, scaled) and whether groups of them are chosen first changes no
    figure here: with rows that choose alike at random, groups leave an expert's share of the rows as it is.

    Raises:
        InputError: a size below one, a negative shared width, or more chosen than there are.
    """

    count: int
    chosen: int
    width: int
    shared_width: int = 0

    def __post_init__(self) -> None:
        for name in ("count", "chosen", "width"):
            if getattr(self, name) < 1:
                raise _refuse("not a size", name, getattr(self, name), "a positive integer")
        if self.shared_width < 0:
            raise _refuse("not a size", "shared_width", self.shared_width, "a positive integer, or 0 for none")
        if self.chosen > self.count:
            raise _refuse("more than there are", "chosen", self.chosen, f"at most count = {self.count}")

    def active(self, rows: int) -> float:
        """The expected number of distinct experts that ``rows`` rows reach, an estimate.

        Every row misses an expert with probability ``1 - chosen / count`` where rows choose independently and
        uniformly, so that ``count (1 - (1 - chosen / count)^rows)`` are reached. Trained routers balance their experts,
        but rows of one text resemble each other and reach fewer.

        Source: linearity of the expectation over experts; the occupancy problem of W. Feller, "An Introduction to
        Probability Theory and Its Applications", volume 1, II.5.
        """
        if rows < 1:
            return 0.0
        if self.chosen == self.count:
            return float(self.count)
        return -self.count * expm1(rows * log1p(-self.chosen / self.count))

    def expert_elements(self, hidden: int) -> int:
        """Elements of the three matrices of one routed expert."""
        return 3 * hidden * self.width

    def shard(self, tp_size: int) -> Experts:
        """What one of ``tp_size`` ranks holds: a part of every expert, and the whole router.

        Raises:
            InputError: a width does not divide, or there are more ranks than experts, which SGLang refuses.
        """
        if tp_size > self.count:
            raise refuse_split(f"more than the {self.count} experts", tp_size)
        return replace(
            self,
            width=split("expert width", self.width, tp_size),
            shared_width=split("shared expert width", self.shared_width, tp_size),
        )


def _refuse(problem: str, key: str, value: object, allowed: str) -> InputError:
    return InputError(problem, where="Experts", key=key, value=value, allowed=allowed)
