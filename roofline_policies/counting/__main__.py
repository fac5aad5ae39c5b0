"""The commands of the counting package.

    python -m roofline_policies.counting explain package.module:kernel   how a kernel is counted, and its new source
    python -m roofline_policies.counting explain package                 the same of every kernel of a package, in short
    python -m roofline_policies.counting bench [MODULE:ATTRIBUTE]        what counting costs in machine code

Tables and then one JSON line on stdout, progress on stderr.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from typing import Any

import triton
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from triton import knobs
from triton.runtime.autotuner import Autotuner, Heuristics

from roofline_policies.counting.compiled.cost import Case, CostRow, compare, cost_record, cost_table, launches_of
from roofline_policies.counting.compiled.machine_code import Launch, MachineCodeError
from roofline_policies.counting.explain import explain
from roofline_policies.counting.kernel import CountedKernel, counted
from roofline_policies.counting.packages import census
from roofline_policies.counting.packages.stand_ins import first_line, load
from roofline_policies.counting.rewriting.callees import Kernel
from roofline_policies.counting.triton_versions import UntriedTriton, require_tried
from roofline_policies.errors import EXIT_BAD_INPUT, InputError, Uncountable

CASES = "bench.kernels.attention:SERVING"
CAPABILITY = 90
WIDTH = 200
"""Columns of a table that is not printed to a terminal."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code: 0; EXIT_BAD_INPUT; 1 where ``bench`` could not compile a kernel."""
    parser = argparse.ArgumentParser(
        prog="python -m roofline_policies.counting",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="explain | bench")
    explains = commands.add_parser("explain", help="how kernels are counted")
    explains.add_argument("target", help="package.module:kernel, or a package to survey")
    explains.set_defaults(command=_explain)
    benches = commands.add_parser("bench", help="what counting costs in machine code, compiled for sm_90 without a GPU")
    benches.add_argument("target", nargs="?", default=CASES, help=f"a tuple of cases (default: {CASES})")
    benches.add_argument("--only", default="", metavar="TEXT", help="the cases with TEXT in their name")
    benches.set_defaults(command=_bench)
    for command in (explains, benches):
        command.add_argument("--json", action="store_true", help="print the JSON line only")
    options = parser.parse_args(arguments)
    try:
        require_tried()
        return int(options.command(options))
    except (InputError, Uncountable, UntriedTriton) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return EXIT_BAD_INPUT


def _explain(options: argparse.Namespace) -> int:
    return (_explain_kernel if ":" in options.target else _explain_package)(options)


def _explain_kernel(options: argparse.Namespace) -> int:
    module, _, path = options.target.partition(":")
    namespace, how = _namespace(module, "explain", with_stand_ins=True)
    explanation = explain(_attribute(namespace, path, options.target, "explain"), options.target)
    if options.json:
        print(json.dumps(explanation.record() | {"module": how}))
        return 0
    console = _console()
    console.print(explanation.table())
    print(explanation.verdict())
    print(*explanation.audits(), sep="\n")
    if how != "imported":
        print(f"{module} was {how}")
    for name, source in explanation.sources.items():
        print(f"\n# {name}, rewritten\n{source}", end="")
    return 0


def _explain_package(options: argparse.Namespace) -> int:
    _compiled_only("explain", "a package")
    package = options.target
    if not all(part.isidentifier() for part in package.split(".")):
        raise InputError("no such package", where="explain", value=package, allowed="package, package.module:kernel")
    try:
        with redirect_stdout(sys.stderr):  # what packages print while they are imported
            rows = census.survey(package, lambda function: counted(function).exactness())
    except ModuleNotFoundError as error:
        allowed = "an installed package, package.module:kernel"
        raise InputError(str(error), where="explain", value=package, allowed=allowed) from None
    if not options.json:
        _console().print(*census.summary(rows), sep="\n")
    print(json.dumps({"package": package, **census.record(rows)}))
    return 0


def _bench(options: argparse.Namespace) -> int:
    _compiled_only("bench", "machine code")
    module, _, path = options.target.partition(":")
    namespace, _ = _namespace(module, "bench")
    cases = _cases(_attribute(namespace, path, options.target, "bench"), options)
    rows, problems = _measured(cases)
    if not options.json:
        print(cost_table(rows), end="")
        same = Counter(row.same_without_ledger for row in rows)
        told = f"{same[True]} of {same[True] + same[False]}"
        print(f"compiled without a ledger: the machine code of the original in {told} launches")
        for row in rows:
            if row.audit is not None:
                print(row.audit)
    for name, problem in problems.items():
        print(f"{name}: {problem}", file=sys.stderr)
    result = {
        "target": f"sm_{CAPABILITY}",
        "triton": triton.__version__,
        "cases": options.target,
        "kernels": [cost_record(row) for row in rows],
        "problems": problems,
    }
    print(json.dumps(result))
    return 1 if problems else 0


def _measured(cases: Sequence[Case]) -> tuple[list[CostRow], dict[str, str]]:
    """The rows of all launches, and what went wrong, by name."""
    rows: list[CostRow] = []
    problems: dict[str, str] = {}
    launches: list[tuple[str, Launch]] = []
    counting: dict[int, CountedKernel] = {}  # by identity: a kernel's own hash is that of all it refers to
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("recording launches", total=None)
        for case in cases:
            try:
                with redirect_stdout(sys.stderr):
                    launches += launches_of(case)
            except Exception as error:  # whatever the case's own code raises
                problems[case.name] = first_line(error)
        progress.update(task, total=len(launches))
        for name, launch in launches:
            progress.update(task, description=name)
            try:
                if id(launch.kernel) not in counting:
                    counting[id(launch.kernel)] = counted(launch.kernel)
                rows += compare(name, launch, counting[id(launch.kernel)], capability=CAPABILITY)
            except (MachineCodeError, Uncountable) as error:
                problems[name] = _cause(error)
            progress.advance(task)
    return rows, problems


def _cause(error: BaseException) -> str:
    """The last line of what an error, or what led to it, says: compilers say there what is wrong."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {(str(error).strip() or '?').splitlines()[-1].strip()}"


def _cases(value: Any, options: argparse.Namespace) -> list[Case]:
    cases = list(value) if isinstance(value, Iterable) else []
    if not cases or not all(isinstance(getattr(one, "name", None), str) and hasattr(one, "launch") for one in cases):
        allowed = "a tuple of objects with a name and a launch()"
        raise InputError("holds no cases", where="bench", value=options.target, allowed=allowed)
    chosen = [case for case in cases if options.only in case.name]
    if not chosen:
        names = [case.name for case in cases]
        raise InputError("is in no case's name", where="bench", key="--only", value=options.only, allowed=names)
    return chosen


def _namespace(module: str, command: str, *, with_stand_ins: bool = False) -> tuple[Mapping[str, Any], str]:
    """What a module holds, and how it was obtained."""
    if not all(part.isidentifier() for part in module.split(".")):
        raise InputError("no such module", where=command, value=module, allowed="package.module:name")
    with redirect_stdout(sys.stderr):  # what modules print while they are imported
        if with_stand_ins:
            namespace, how = load(module, module.partition(".")[0])
        else:
            try:
                namespace, how = vars(importlib.import_module(module)), "imported"
            except Exception as error:  # it runs whatever its author wrote
                namespace, how = None, f"import failed: {first_line(error)}"
    if namespace is None:
        raise InputError(how, where=command, value=module, allowed="a module that can be imported here")
    return namespace, how


def _attribute(namespace: Mapping[str, Any], path: str, target: str, command: str) -> Any:
    """What a dotted path leads to."""
    first, *rest = path.split(".")
    try:
        value = namespace[first]
        for name in rest:
            value = getattr(value, name)
    except (KeyError, AttributeError):
        kernels = [name for name, one in namespace.items() if isinstance(one, Kernel | Autotuner | Heuristics)]
        allowed = {"explain": kernels or "a Triton kernel"}.get(command, "a tuple of cases")
        raise InputError("no such attribute", where=command, value=target, allowed=allowed) from None
    return value


def _compiled_only(command: str, what: str) -> None:
    if knobs.runtime.interpret:
        problem = f"{what} needs kernels that are compiled, and TRITON_INTERPRET is set; unset it"
        raise InputError(problem, where=command)


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else WIDTH)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # extensions that a surveyed package imports can crash in the interpreter's teardown
