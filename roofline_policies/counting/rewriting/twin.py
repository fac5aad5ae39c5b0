"""A function and its counting twin, as source."""

from __future__ import annotations

from dataclasses import dataclass
from types import FunctionType
from typing import Protocol

from roofline_policies.counting.rewriting.callees import Kernel
from roofline_policies.counting.sites import Site


@dataclass(frozen=True)
class Rewritten:
    """A function and its counting twin.

    sites: its own and those of its helpers.
    counts: whether there is anything to count: a site, or a call of a function it is given.
    helpers: names in ``source`` that stand for other rewritten functions.
    shapes: parameters whose shape a caller should pass along.
    functions: parameters it calls.
    places: of each call in ``source``, by its line and column, the line and column of what it stands for in the file.
    defaults: parameters whose default ``source`` only names, with the name of the counting form where that is called.
    """

    kernel: Kernel
    source: str
    sites: tuple[Site, ...]
    counts: bool
    helpers: dict[str, Rewritten]
    shapes: tuple[str, ...]
    functions: frozenset[str]
    defaults: dict[str, str | None]
    places: dict[tuple[int, int], tuple[int, int]]

    @property
    def original(self) -> FunctionType:
        """The Python function it was made from."""
        function: FunctionType = self.kernel.fn
        return function


class Helpers(Protocol):
    """Where the twins of the functions that a kernel calls come from."""

    @property
    def version(self) -> str:
        """What is written into each twin: see ``build.version``."""

    @property
    def shadow(self) -> bool:
        """Whether twins only count, and write nothing."""

    def helper(self, kernel: Kernel, given: frozenset[tuple[str, type]] = frozenset()) -> Rewritten:
        """The twin of a function that is called inside kernels, for arguments of these classes of aggregates."""
