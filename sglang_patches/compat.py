"""What of the installed SGLang fits this package, and what does not: hooks, attributes, messages. Starts no server.

    python -m sglang_patches.compat

Prints a table and one JSON line. The exit code is 0 where all fits, and 1 where a server with a policy would be refused
or the virtual server would not run. An untested version is named, and is no misfit by itself.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version

from rich.console import Console
from rich.table import Table

from roofline_policies.errors import IncompatibleServer

try:
    from sglang_patches.cpu import branches, setup
    from sglang_patches.hooks import SCHEDULER_HOOKS
    from sglang_patches.launch.flags import CLI_HOOKS
    from sglang_patches.launch.reload import MANAGER_HOOKS
    from sglang_patches.loop import messages
    from sglang_patches.needs.attributes import find, missing, needed, readers
    from sglang_patches.needs.classes import CLASSES, OTHER_CLASSES
    from sglang_patches.needs.classes import REPLACED as REPLACED_BY_THE_VIRTUAL_SERVER
    from sglang_patches.needs.sglang_version import TESTED_VERSIONS
except ImportError as error:  # the installed SGLang lacks a name that is imported, or there is none
    if __name__ != "__main__":
        raise
    print(f"does not fit: {error}")
    print(json.dumps({"fits": False, "problems": [{"kind": "import", "target": error.name, "problem": str(error)}]}))
    sys.exit(1)

HOOKS = (*CLI_HOOKS, *SCHEDULER_HOOKS, *MANAGER_HOOKS, *setup.HOOKS)
"""All that any process of a server applies."""

REPLACED = (*REPLACED_BY_THE_VIRTUAL_SERVER, *branches.REPLACED)


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that is needed.

    kind: hook, attributes, replaced or messages. needs: what of it. problem: None where it fits.
    """

    kind: str
    target: str
    needs: str
    problem: str | None


def lines() -> list[Line]:
    """Everything that is needed of the installed SGLang, one line each."""
    found = [Line("hook", hook.target, f"({', '.join(hook.parameters)})", _problem(hook.check)) for hook in HOOKS]
    for kind, target in (*CLASSES.items(), *OTHER_CLASSES.items()):
        found.append(Line("attributes", target, ", ".join(sorted(needed(kind))), _lacks(kind, target)))
    found += [Line("replaced", target, "to be there", _problem(partial(find, target))) for target in REPLACED]
    carried = ", ".join(kind.__name__ for kind in messages.MESSAGES)
    return [*found, Line("messages", "sglang.srt.managers.io_struct", carried, _problem(messages.register))]


def _lacks(kind: type, target: str) -> str | None:
    try:
        names = missing(kind, target)
    except IncompatibleServer as error:
        return str(error)
    return "; ".join(f"lacks {name} (read by {', '.join(readers(name))})" for name in names) or None


def _problem(check: Callable[[], object]) -> str | None:
    try:
        check()
    except IncompatibleServer as error:
        return str(error)
    return None


def report(found: Sequence[Line]) -> int:
    """Prints a table and a JSON line; returns the exit code."""
    installed, problems = version("sglang"), [asdict(line) for line in found if line.problem is not None]
    tested = installed in TESTED_VERSIONS
    table = Table(title=f"SGLang {installed} ({'tested' if tested else 'not tested'})", show_lines=True)
    for column in ("", "what", "needs", "fits"):
        table.add_column(column, overflow="fold")
    for line in found:
        table.add_row(line.kind, line.target, line.needs, "yes" if line.problem is None else line.problem)
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    counts = Counter(line.kind for line in found)
    print(json.dumps({
        "sglang": installed, "tested": tested, "fits": not problems, "checked": counts, "problems": problems,
    }))  # fmt: skip
    return 1 if problems else 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m sglang_patches.compat", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.parse_args(argv)
    return report(lines())


if __name__ == "__main__":
    sys.exit(main())
