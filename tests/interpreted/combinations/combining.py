"""What combinations of constructs are registered with: see ``combinations``."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

GRID = (3,)
ELEMENTS = 4096


def floats() -> torch.Tensor:
    return torch.randn(ELEMENTS, generator=torch.Generator().manual_seed(0))


def halves() -> torch.Tensor:
    return floats().to(torch.float16)


def below_three() -> torch.Tensor:
    return torch.randint(0, 3, (ELEMENTS,), generator=torch.Generator().manual_seed(1)).to(torch.int32)


@dataclass(frozen=True)
class Combination:
    """A kernel and how to launch it; ``arguments`` makes the tensors anew for each launch.

    interpretable: whether Triton's interpreter runs it as it is written.
    """

    kernel: Any
    makers: tuple[Any, ...]
    keywords: dict[str, Any]
    interpretable: bool

    def launch(self, kernel: Any) -> tuple[torch.Tensor, ...]:
        arguments = [maker() if callable(maker) else maker for maker in self.makers]
        kernel[GRID](*arguments, **self.keywords)
        return tuple(one for one in arguments if isinstance(one, torch.Tensor))


COMBINATIONS: dict[str, Combination] = {}


def combination(
    *makers: Any, interpretable: bool = True, available: bool = True, **keywords: Any
) -> Callable[[Any], Any]:
    """Registers a kernel under its name, and under one of its own for each further set of arguments.

    available: False where the installed Triton has not what the kernel uses; there is no such combination then.
    """

    def register(kernel: Any) -> Any:
        if not available:
            return kernel
        name = kernel.fn.__name__
        if name in COMBINATIONS:
            name += f"_{len(COMBINATIONS)}"
        COMBINATIONS[name] = Combination(kernel, makers, keywords, interpretable)
        return kernel

    return register
