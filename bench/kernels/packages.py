"""Public packages of Triton kernels: how many are rewritten, and whether what is counted is what is executed.

    python -m bench.kernels.packages [PACKAGE ...]

For each package: ``explain PACKAGE``, and its own functions (``package_calls``) under Triton's interpreter, each launch
once as it is and once counted. A package that is not installed is named. Prints a table and then one JSON line; exit
code 1 where a count or an output differs, or a counted launch ends in an error.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.kernels.package_calls import CALLS

HOMES = {"liger_kernel": "liger_kernel.ops"}
"""Where the names in a package's calls begin, where that is not the package itself."""

_LIMIT_S = 1800


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.kernels.packages", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("packages", nargs="*", metavar="PACKAGE", help=f"of {', '.join(CALLS)} (default: all)")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        _work(options.worker)
    chosen = options.packages or list(CALLS)
    if unknown := [package for package in chosen if package not in CALLS]:
        parser.error(f"no calls of {', '.join(unknown)}; allowed: {', '.join(CALLS)}")
    missing = [package for package in chosen if importlib.util.find_spec(package) is None]
    if missing:
        print(f"not installed: {', '.join(missing)}", file=sys.stderr)
    results = {package: _of(package) for package in chosen if package not in missing}
    Console(width=160).print(_table(results))
    print(json.dumps({"packages": results, "missing": missing}))
    wrong = any(one["mismatches"] or one["crashes"] for one in results.values())
    return 1 if wrong else 0


def _of(package: str) -> dict[str, Any]:
    """Both reports on one package, each from a process of its own."""
    survey = _json_of([sys.executable, "-m", "roofline_policies.counting", "explain", package, "--json"], {})
    launches = _json_of(
        [sys.executable, "-m", "bench.kernels.packages", "--worker", package], {"TRITON_INTERPRET": "1"}
    )
    return {**survey.get("kernels", {}), "not rewritten": survey.get("reasons", {}), **launches}


def _json_of(command: list[str], environment: dict[str, str]) -> dict[str, Any]:
    done = subprocess.run(
        command, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True, timeout=_LIMIT_S, check=False
    )
    lines = done.stdout.strip().splitlines()
    if not lines:
        raise SystemExit(f"{' '.join(command[1:])} ended with {done.returncode} and said nothing")
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def _work(package: str) -> None:
    """Make a package's calls and print what was found; ends the process."""
    import torch

    from bench.kernels.interpreted import Report, compared

    report = Report()

    def t(*shape: int) -> torch.Tensor:
        return torch.randn(shape)

    names = {
        "torch": torch,
        "t": t,
        "r": lambda *shape: t(*shape).requires_grad_(),
        "logs": lambda *shape: torch.nn.functional.logsigmoid(t(*shape)).requires_grad_(),
        "targets": lambda count, below: torch.randint(0, below, (count,)),
    }
    with compared(report) as comparison:
        for call in CALLS[package]:
            torch.manual_seed(0)
            comparison.call = call
            try:
                _backwards(eval(call, {**names, **_modules(package, call)}))
            except Exception as error:  # whatever a package does without a GPU
                report.failed[call] = f"{type(error).__name__}: {str(error)[:300]}"
            told = asdict(report) | {"launched": sorted(report.launched), "inexact": sorted(report.inexact)}
            print(json.dumps(told), flush=True)  # after each call: the last line holds, also where one ends the process
    os._exit(0)  # extensions of packages can crash in the interpreter's teardown


def _modules(package: str, call: str) -> dict[str, Any]:
    """The modules that a call's dotted name goes through, imported; by its first name."""
    home, parts = HOMES.get(package, package), call.partition("(")[0].split(".")
    for length in range(1, len(parts)):
        try:
            importlib.import_module(".".join([home, *parts[:length]]))
        except ModuleNotFoundError:
            break
    return {parts[0]: importlib.import_module(f"{home}.{parts[0]}")}


def _backwards(result: Any) -> None:
    outputs = result if isinstance(result, tuple | list) else [result]
    losses = [one.float().sum() for one in outputs if hasattr(one, "requires_grad") and one.requires_grad]
    if losses:
        sum(losses).backward()


def _table(results: dict[str, dict[str, Any]]) -> Table:
    columns = ("definitions", "not seen", "obtained", "rewritten", "exact")
    table = Table(
        "package", *columns, "launched", "launches", "equal", "refused", "mismatches", "crashes", "failed calls"
    )
    for package, one in results.items():
        numbers = [one.get(name, 0) for name in columns]
        sizes = [len(one[name]) for name in ("refused", "mismatches", "crashes", "failed")]
        row = (*numbers, len(one["launched"]), one["launches"], one["equal"], *sizes)
        table.add_row(package, *map(str, row))
    return table


if __name__ == "__main__":
    sys.exit(main())
