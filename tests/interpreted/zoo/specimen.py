"""What a zoo kernel is registered with, and what its inputs, strategies and closed forms are built from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st

from tests.interpreted.oracle import Tally

Launch = Callable[..., tuple[torch.Tensor, ...]]


@dataclass(frozen=True)
class Specimen:
    """A kernel, how to draw its parameters, launch it, and what it should then have executed.

    launch(kernel, **params) makes its inputs from ``params`` alone, so two launches differ only in the kernel.
    closed_form(**params): None where the counts depend on data in a way the oracle alone tells.
    uncountable: the rewriter may refuse this kernel; if it does not, it must still count exactly.
    """

    name: str
    kernel: Any
    params: st.SearchStrategy[dict[str, Any]]
    launch: Launch
    closed_form: Callable[..., Tally] | None
    uncountable: bool


ZOO: dict[str, Specimen] = {}


def specimen(
    kernel: Any,
    closed_form: Callable[..., Tally] | None = None,
    uncountable: bool = False,
    available: bool = True,
    **params: Any,
) -> Callable[[Launch], Launch]:
    """Registers a launch under its own name.

    available: False where the installed Triton has not what the kernel uses; there is no such specimen then.
    """

    def register(launch: Launch) -> Launch:
        name = launch.__name__
        assert name not in ZOO, name
        if not available:
            return launch
        drawn = st.fixed_dictionaries({**params, "seed": st.integers(0, 999)})
        ZOO[name] = Specimen(name, kernel, drawn, launch, closed_form, uncountable)
        return launch

    return register


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def integers(seed: int, low: int, high: int, *shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    """Uniform in [low, high)."""
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def blank(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """An output whose untouched elements stay recognizable."""
    return torch.full(shape, 7).to(dtype)


def total(tensor: torch.Tensor) -> int:
    return int(tensor.sum())


def small(low: int = 1, high: int = 40) -> st.SearchStrategy[int]:
    return st.integers(low, high)


def interval(n: int, low: int, high: int) -> int:
    """How many i of [0, n) lie in [low, high)."""
    return max(0, min(n, high) - max(0, low))
