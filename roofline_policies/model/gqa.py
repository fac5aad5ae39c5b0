"""The sizes of grouped-query attention, as one block of a decoder layer."""

from __future__ import annotations

from dataclasses import dataclass, replace

from roofline_policies.errors import InputError
from roofline_policies.model.tensor_parallel import split, split_kv_heads


@dataclass(frozen=True, slots=True)
class GroupedAttention:
    """The sizes of grouped-query attention: of a whole model, or what one rank holds.

    qkv_bias, output_bias: of the projections. qk_norm: one norm for query heads, one for key heads.

    Raises:
        InputError: a size below one, or heads that cannot be grouped.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False

    def __post_init__(self) -> None:
        for name in ("num_heads", "num_kv_heads", "head_dim"):
            if getattr(self, name) < 1:
                raise _refuse("not a size", name, getattr(self, name), ("a positive integer",))
        if self.num_heads % self.num_kv_heads:
            raise _refuse(f"does not divide num_heads = {self.num_heads}", "num_kv_heads", self.num_kv_heads)

    @property
    def query_width(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_elements(self) -> int:
        """Cached elements per token and layer."""
        return 2 * self.num_kv_heads * self.head_dim

    def products(self, hidden: int) -> tuple[tuple[int, int], ...]:
        """The matrices that every row is multiplied with, as (outputs, inputs)."""
        return (self.query_width + self.kv_elements, hidden), (hidden, self.query_width)

    def other_elements(self, hidden: int) -> int:
        """Elements of weights beside ``products``: biases and norms."""
        biases = self.qkv_bias * (self.query_width + self.kv_elements) + self.output_bias * hidden
        return biases + self.qk_norm * 2 * self.head_dim

    def shard(self, tp_size: int) -> GroupedAttention:
        """What one of ``tp_size`` ranks holds; KV heads are on several ranks where there are fewer of them.

        Raises:
            InputError: the heads do not divide.
        """
        return replace(
            self,
            num_heads=split("num_heads", self.num_heads, tp_size),
            num_kv_heads=split_kv_heads(self.num_kv_heads, tp_size),
        )


def _refuse(problem: str, key: str, value: object, allowed: tuple[str, ...] | None = None) -> InputError:
    return InputError(problem, where="GroupedAttention", key=key, value=value, allowed=allowed)
