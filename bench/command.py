"""What the commands with overrides share: their arguments, and an orderly end when they are asked to leave."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from bench.composition import choices


def overrides_of(argv: Sequence[str] | None, name: str, doc: str | None, *, epilog: str | None = None) -> list[str]:
    """The overrides of conf/bench/NAME.yaml that ``python -m bench.NAME`` was given; ``--help`` prints and leaves.

    argv: None for the process's own. doc, epilog: what ``--help`` shows, line for line.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m bench.{name}",
        description=doc,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    of_what = f"hydra overrides of conf/bench/{name}.yaml"
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=of_what)
    overrides: list[str] = parser.parse_args(argv).overrides
    return overrides


def listed(groups: Sequence[str]) -> str:
    """A line for each configuration group, with the choices it has."""
    return "\n".join(f"  {group + ':':10}{', '.join(choices(group))}" for group in groups)


def leave_when_asked() -> None:
    """From here on SIGTERM ends the process as Ctrl-C does, by an exception: what has to be stopped is stopped."""
    signal.signal(signal.SIGTERM, _leave)


def _leave(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)
