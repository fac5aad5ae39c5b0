"""The report on a kernel: each place that moves bytes or multiplies matrices, and how it is counted."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What happens at a site."""

    LOAD = "load"
    STORE = "store"
    ATOMIC = "atomic"
    DOT = "dot"
    ASSEMBLY = "assembly"  # inline assembly: invisible to us
    REFUSAL = "refusal"  # something that cannot be counted, under a condition that is a constant


class Cost(StrEnum):
    """How a site is counted. All are exact but one; what is refused is never counted wrong."""

    CONSTANT = "constant"  # no mask: known when the kernel is compiled
    AFFINE = "affine"  # from the ends of the mask's interval: a few scalar instructions
    REDUCTION = "reduction"  # by adding up the mask: a reduction across the warps of a program
    IF_COMPILED = "refused if compiled"  # where the constant says so; else the compiler does not look at it
    NOT_EXACT = "not exact"  # not counted; the kernel's counts are lower bounds


@dataclass(frozen=True)
class Site:
    """One place in the source of a kernel or of a helper it calls.

    after_loop: its count over a loop is one closed form, evaluated behind the loop.
    cost: what the source promises. Where the compiler finds a block in place of a scalar (a helper called with another
        argument than the source suggests), an affine site is counted by a reduction: as exact, only dearer.
    """

    kind: Kind
    cost: Cost
    file: str
    line: int
    construct: str
    after_loop: bool = False

    def __str__(self) -> str:
        behind = ", after the loop" if self.after_loop else ""
        return f"{self.file}:{self.line}: {self.kind}: {self.cost}{behind}: {self.construct}"


@dataclass(frozen=True)
class Audit:
    """What a compiled twin's TTIR does, held against what was counted while it was traced; see ``audit``.

    traced: places that access memory or multiply matrices, as the source has them: these are counted. kept: those of
        them that are still there in the TTIR; ``dropped`` names the others, which the compiler found equal or unused.
    problems: what is in one and not in the other; where there is one, the counts are not exact.
    failure: why there was no audit, or "".
    """

    kernel: str
    traced: int = 0
    kept: int = 0
    problems: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    failure: str = ""

    def __str__(self) -> str:
        """A line, and one for each problem and each place that was dropped."""
        if self.failure:
            return f"{self.kernel}: not audited: {self.failure}"
        told = f"{self.kernel}: audited: {self.traced} places counted, {self.kept} kept by the compiler"
        return "\n".join([told, *(f"  {one}" for one in self.problems), *(f"  dropped: {one}" for one in self.dropped)])


@dataclass(frozen=True)
class Exactness:
    """All sites of a kernel and of the helpers it calls.

    audits: of what was compiled so far, one for each; none under Triton's interpreter, which compiles nothing.
    """

    sites: tuple[Site, ...]
    audits: tuple[Audit, ...] = ()

    @property
    def exact(self) -> bool:
        """Whether the counts are exact: no site is left out, and no audit found anything."""
        return not self.problems and all(site.cost is not Cost.NOT_EXACT for site in self.sites)

    @property
    def problems(self) -> tuple[str, ...]:
        """What the audits found, each once."""
        return tuple(dict.fromkeys(problem for audit in self.audits for problem in audit.problems))
