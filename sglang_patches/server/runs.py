"""Which modules of a model run, and how often in one forward pass: watched while SGLang warms up, then no more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from torch import nn


class Runs:
    """What forward passes of a model entered, from its construction until ``end``.

    Graph capture enters every module, a replay none. Passes are not told apart: what most modules are entered is taken
    for the number of passes, so the others' share of it is how often they run in one.
    """

    def __init__(self, model: nn.Module) -> None:
        self._entered: Counter[str] = Counter()
        self._towers: set[str] = set()
        self._ran: set[str] = set()
        self._passes = 1
        self._handles: list[Any] = [
            module.register_forward_pre_hook(self._enter(name)) for name, module in model.named_modules() if name
        ]

    def _enter(self, name: str) -> Callable[..., None]:
        def entered(module: nn.Module, args: object) -> None:
            self._entered[name] += 1

        return entered

    @property
    def watching(self) -> bool:
        """Whether the hooks are still on."""
        return bool(self._handles)

    @property
    def seen(self) -> bool:
        """Whether anything has run."""
        return bool(self._entered)

    def end(self) -> None:
        """Take the hooks off: from now on a pass costs nothing."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if self._entered:
            self._passes = Counter(self._entered.values()).most_common(1)[0][0]
        self._towers = {tower for name in self._entered for tower in _towers(name)}
        self._ran = {name[:at] for name in self._entered for at in _ends(name)}

    def times(self, name: str) -> int:
        """How often a module is entered in a pass; 1 for one that is read without being called, as heads are."""
        return max(1, round(self._entered[name] / self._passes))

    def ran(self, name: str) -> bool:
        """Whether a module, or one inside it, was entered."""
        return not self._entered or name in self._ran

    def reaches(self, name: str) -> bool:
        """Whether a module belongs to what runs: something in its tower was entered, or nothing at all has run.

        A tower is what stands first or second in a module's name, such as ``visual`` or ``model.vision_tower``. What
        stands alone (a head) and what stands deep inside a tower that runs may be read without being called.
        """
        towers = _towers(name)
        return not self._entered or not towers or towers[-1] in self._towers


def _ends(name: str) -> list[int]:
    """Where a module's name and those of the modules around it end."""
    return [at for at, letter in enumerate(name) if letter == "."] + [len(name)]


def _towers(name: str) -> list[str]:
    """The first two prefixes of a module's name that hold other modules."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, min(3, len(parts)))]
