"""Published models against what SGLang would build of them: a table in Markdown, then one JSON line.

    python -m bench.models --processes 2 --json models.jsonl

Each is built without weights, in a process of its own, its KV cache in 16 bits. With --json every model is written as
soon as it is done, one to a line, and those in the file are not built again, but for those that were refused.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bench.composition import writable
from bench.models.builds import each
from bench.models.comparison import Comparison, table
from bench.models.published import chosen
from roofline_policies.errors import EXIT_BAD_INPUT, InputError


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: 0, EXIT_BAD_INPUT before anything is built, 1 if a model was refused."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.models", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="names of models; default: all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="results, one to a line; goes on where it ended")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="builds at a time")
    arguments = parser.parse_args(argv)
    try:
        if arguments.processes < 1:
            raise InputError("no build would run", where="models", key="--processes", value=arguments.processes,
                             allowed="1 or more")  # fmt: skip
        models = chosen(arguments.only)
        done = _read(arguments.json) if arguments.json is not None else {}
    except InputError as error:
        print(error, file=sys.stderr)
        return EXIT_BAD_INPUT
    left = [one for one in models if one.name not in done or done[one.name].refused is not None]
    for count, row in enumerate(each(left, arguments.processes), 1):
        done[row.name] = row
        if arguments.json is not None:
            with arguments.json.open("a", encoding="utf-8") as file:
                print(json.dumps(row.plain()), file=file)
        told = "refused" if row.refused is not None else f"{row.explained_share:.2%} explained"
        print(f"[{count}/{len(left)}] {row.name}: {told}, {row.seconds:.0f} s", file=sys.stderr, flush=True)
    rows = [
        replace(
            done[one.name],
            published_parameters=one.parameters,
            published_kv_bytes_per_token=one.kv_bytes_per_token,
        )
        for one in models
    ]
    print(table(rows))
    print(json.dumps({"models": [row.plain() for row in rows]}))
    return 1 if any(row.refused is not None for row in rows) else 0


def _read(file: Path) -> dict[str, Comparison]:
    """Results of an earlier run by name.

    Raises:
        InputError: the file cannot be written or read, or a line is no result.
    """
    writable(file.parent, "models")
    if not file.exists():
        return {}
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        allowed = "a new file, or one that this command wrote"
        problem = f"cannot be read: {reason}"
        raise InputError(problem, where="models", key="--json", value=str(file), allowed=allowed) from None
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        try:
            told = json.loads(line)
            told.pop("ratio")
            row = Comparison(**told | {"unexplained": tuple(told["unexplained"].items()),
                                       "estimated": tuple(told["estimated"])})  # fmt: skip
        except (ValueError, TypeError, KeyError, AttributeError):
            raise InputError("is no result of bench.models", where=str(file), key=f"line {number}") from None
        found[row.name] = row
    return found


if __name__ == "__main__":
    sys.exit(main())
