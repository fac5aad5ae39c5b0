"""What counting makes of a kernel: a row for each place it counts, and the source that is compiled instead."""

from __future__ import annotations

import inspect
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from roofline_policies.counting.kernel import CountedKernel, counted
from roofline_policies.counting.rewriting.callees import Kernel
from roofline_policies.counting.rewriting.source import RESERVED
from roofline_policies.counting.sites import Cost, Exactness, Site
from roofline_policies.counting.wrappers import way_in


@dataclass(frozen=True)
class Explanation:
    """How one kernel is counted.

    name: as the user wrote it.
    sources: rewritten source of the kernel, then of the helpers that count, by the names they have in it.
    """

    name: str
    exactness: Exactness
    sources: dict[str, str]

    def audits(self) -> list[str]:
        """A line for each audit, and for each problem that one found."""
        if not self.exactness.audits:
            return [f"{self.name} is not audited: it has not been compiled; a launch does that, and so does bench"]
        return [line for audit in self.exactness.audits for line in str(audit).splitlines()]

    def verdict(self) -> str:
        """One line: whether the counts are exact, and how many sites there are."""
        sites = self.exactness.sites
        if not sites:
            return f"{self.name} is exact: it moves no bytes and multiplies no matrices"
        if self.exactness.exact:
            return f"{self.name} is exact: all {len(sites)} sites are counted"
        left_out = sum(site.cost is Cost.NOT_EXACT for site in sites)
        if not left_out:
            return f"{self.name} is not exact: {len(self.exactness.problems)} problems found when it was compiled"
        return f"{self.name} is not exact: {left_out} of {len(sites)} sites not counted, its counts are lower bounds"

    def table(self) -> Table:
        """A row for each site."""
        table = Table("kind", "how it is counted", "where", "construct", box=box.ASCII2)
        table.columns[2].no_wrap = True
        for site in self.exactness.sites:
            cost = f"{site.cost}, after the loop" if site.after_loop else site.cost
            table.add_row(site.kind, cost, escape(where(site)), escape(site.construct))
        return table

    def record(self) -> dict[str, Any]:
        """The same as one JSON object; files as Python knows them."""
        return {
            "kernel": self.name,
            "exact": self.exactness.exact,
            "sites": [asdict(site) for site in self.exactness.sites],
            "audits": [asdict(audit) for audit in self.exactness.audits],
            "sources": self.sources,
        }


def explain(kernel: Any, name: str) -> Explanation:
    """How ``kernel``, which may count already or be wrapped in anything that ``wrappers.way_in`` sees into, is counted.

    Raises:
        Uncountable: it is no Triton kernel, or something in it cannot be counted.
    """
    if isinstance(kernel, CountedKernel) and kernel.mode == "inline":
        return Explanation(name, kernel.exactness(), _sources(kernel.twin))
    inside = way_in(kernel)[1]
    counting = counted(kernel if inside is None else inside)
    return Explanation(name, counting.exactness(), _sources(counting.twin))


def where(site: Site) -> str:
    """``file:line`` of a site, the file as seen from the folder it was imported from."""
    file = Path(site.file)
    folders = [folder for folder in (Path(entry or ".").absolute() for entry in sys.path) if folder in file.parents]
    shown = file.relative_to(max(folders, key=lambda folder: len(folder.parts))) if folders else file
    return f"{shown}:{site.line}"


def _sources(twin: Any) -> dict[str, str]:
    """The source of a counting kernel, then that of every counting function it reaches."""
    found: dict[str, str] = {}
    pending, seen = [(twin.fn.__name__, twin)], {id(twin)}
    for name, function in pending:  # which grows meanwhile
        unique = name if name not in found else f"{name} of {function.fn.__module__}"
        found[unique] = inspect.getsource(function.fn).rstrip() + "\n"
        for helper, value in function.fn.__globals__.items():
            if helper.startswith(f"{RESERVED}_") and isinstance(value, Kernel) and id(value) not in seen:
                seen.add(id(value))
                pending.append((helper, value))
    return found
