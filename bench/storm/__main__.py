"""A storm: every knob at random in every decision, under mixed load, until so many iterations or seconds have passed.

    python -m bench.storm virtual --iterations 100000
    python -m bench.storm live --model-path .cache/demo_model --seconds 300
    python -m bench.storm live --model-path .cache/demo_model --seconds 300 --retract-every 16

``virtual`` runs SGLang's scheduler on the virtual clock, a few hundred requests on each of many servers drawn at
random: chunk and page sizes, prefix cache, overlap, mixing, the orders of SGLang's own, small caps, little memory.
``live`` sends to a real server. A request that gets another number of tokens than it asked for is lost, unless its own
client has left. The exit code is 1 where one was lost, a server died or the policy failed. Equal seeds make equal
virtual rounds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.storm import live, rounds
from bench.storm.round import Result
from roofline_policies.errors import EXIT_BAD_INPUT, InputError

MOST_ITERATIONS, MOST_SECONDS = 10_000_000, 86_400
"""More is taken for a slip of the keyboard: a day, and five hours of one core at 600 iterations a second
(docs/measured/storms.md)."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: 0, EXIT_BAD_INPUT before anything ran, 1 where anything was lost."""
    options = _parser().parse_args(argv)
    try:
        results = _virtual(options) if options.form == "virtual" else _live(options)
    except InputError as error:
        print(error, file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return report(options.form, results)


def report(form: str, results: Sequence[tuple[str, Result]]) -> int:
    """Prints a table and a JSON line of what became of each server's requests; returns the exit code."""
    table = Table(title=f"storm, {form}")
    for column in ("server", "requests", "served", "left", "lost", "iterations", "changes", "retractions", "problem"):
        table.add_column(column, justify="left" if column in ("server", "problem") else "right", overflow="fold")
    counted = ("requests", "served", "left", "lost", "iterations", "changes", "retractions")
    for name, result in results:
        table.add_row(name, *[str(getattr(result, key)) for key in counted], result.problem or "")
    total = {key: sum(getattr(result, key) for _, result in results) for key in counted}
    table.add_row(f"all {len(results)}", *map(str, total.values()), "", style="bold")
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    problems = [{"server": name, **asdict(result)} for name, result in results if result.problem or result.lost]
    print(json.dumps({"storm": form, "servers": len(results), **total, "problems": problems}))
    return 1 if problems or not results else 0


def _virtual(options: argparse.Namespace) -> list[tuple[str, Result]]:
    return rounds.run(
        iterations=options.iterations,
        seconds=options.seconds,
        requests=options.requests,
        seed=options.seed,
        processes=options.processes,
        policy=options.policy,
        retract_every=options.retract_every,
    )


def _live(options: argparse.Namespace) -> list[tuple[str, Result]]:
    arguments = (*live.SERVER_ARGS, *(options.server_args or "").split())
    return [
        live.run(
            options.model_path,
            arguments,
            policy=options.policy,
            seconds=options.seconds,
            seed=options.seed,
            retract_every=options.retract_every,
        )
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.storm", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    forms = parser.add_subparsers(dest="form", required=True)
    virtual = forms.add_parser("virtual", help="SGLang's scheduler on the virtual clock")
    virtual.add_argument(
        "--iterations", type=_within(1, MOST_ITERATIONS), default=20_000, help="of all rounds together"
    )
    virtual.add_argument("--requests", type=_within(1, 100_000), default=400, help="of each round")
    virtual.add_argument("--processes", type=_within(1, 256), default=2)
    real = forms.add_parser("live", help="a real server on this machine")
    real.add_argument("--model-path", type=Path, required=True, help="as sglang.launch_server takes it; a folder")
    real.add_argument("--server-args", help=f"in one string, after {' '.join(live.SERVER_ARGS)}")
    for form, seconds in ((virtual, 3600), (real, 60)):
        form.add_argument(
            "--seconds", type=_within(1, MOST_SECONDS), default=seconds, help="most, of this machine's clock"
        )
        form.add_argument("--seed", type=_within(0, 2**31), default=0)
        form.add_argument("--retract-every", type=_within(2, 10_000), help="steps between two forced retractions")
        form.add_argument("--policy", help="as --policy of a server takes it, instead of the storm")
    return parser


def _within(low: int, high: int) -> type[int]:
    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r}; allowed: a whole number from {low} to {high}")
        return value

    return read  # type: ignore[return-value]  # argparse calls it


if __name__ == "__main__":
    sys.exit(main())
