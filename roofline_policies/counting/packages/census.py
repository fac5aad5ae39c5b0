"""Census: every Triton kernel in an installed package, and what rewriting each of them gives.

The source is read for definitions; the functions come from importing the modules that hold them. Where a package or a
GPU that a module needs is missing, it is imported with stand-ins, and every kernel of it says which.
"""

import __future__

import ast
import builtins
import contextlib
import copy
import dis
import importlib
import importlib.util
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table
from triton import JITFunction, knobs

from roofline_policies.counting.packages.definitions import GLUON, Definition, Package
from roofline_policies.counting.packages.stand_ins import first_line, load
from roofline_policies.counting.wrappers import way_in

NOT_SEEN = "not seen"
"""How the error begins of a function that looks like a kernel where the source shows no ``triton.jit``."""


@dataclass(frozen=True)
class Kernel:
    """One definition. ``file`` is relative to where the package lies; ``obtained`` says how, or why there is none."""

    module: str
    qualname: str
    file: str
    line: int
    function: JITFunction | None
    obtained: str


@dataclass(frozen=True)
class Census:
    """The kernels of a package in the order of its source; Gluon's apart, because they are not Triton.

    unseen: functions that call what only kernels call, where no ``triton.jit`` was found.
    """

    kernels: tuple[Kernel, ...]
    gluon: tuple[Kernel, ...]
    unseen: tuple[Kernel, ...] = ()


@dataclass(frozen=True)
class Row:
    """What rewriting a kernel gave: is it exact, how many sites cost what, and the kinds of those that are not counted;
    or the error, where it was not rewritten."""

    kernel: Kernel
    exact: bool
    costs: Counter[str]
    left_out: frozenset[str] = frozenset()
    error: str | None = None


def find_kernels(package: str) -> Census:
    """Every ``@triton.jit`` definition in an installed package's source, with its function where that can be had.

    Importing modules runs them, and what they cache about a device stays: best in a process of its own. What was
    imported with stand-ins is taken out of ``sys.modules`` again.

    Raises:
        ModuleNotFoundError: there is no such package.
        RuntimeError: Triton's interpreter is on, so that kernels are not compiled functions.
    """
    if knobs.runtime.interpret:
        raise RuntimeError("a census is of compiled kernels: unset TRITON_INTERPRET")
    spec = importlib.util.find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError(f"no package {package!r}", name=package)
    roots = map(Path, spec.submodule_search_locations)
    files = sorted((path, root.parents[package.count(".")]) for root in roots for path in root.rglob("*.py"))
    named = {_module_name(path.relative_to(base)): (path, path.relative_to(base)) for path, base in files}
    source = Package({module: path for module, (path, _) in named.items()})
    kernels, gluon, unseen = [], [], []
    built: dict[tuple[str, int], JITFunction] = {}
    for module, (path, file) in track(named.items(), f"{package}: finding kernels", console=Console(stderr=True)):
        found = list(source.definitions(module))
        namespace, how = load(module, package) if any(one.dialect not in GLUON for one in found) else (None, "")
        functions = dict(_functions(namespace or {}))
        for definition in found:
            at = (module, definition.qualname, file.as_posix(), definition.node.lineno)
            function = functions.get((str(path), definition.first_line))
            if definition.dialect in GLUON:
                gluon.append(Kernel(*at, None, "Gluon, not Triton"))
            elif function is not None:
                kernels.append(Kernel(*at, function, how))
            elif definition.dialect is None:
                unseen.append(Kernel(*at, None, f"no triton.jit is found: under {definition.under}"))
            elif namespace is None:
                kernels.append(Kernel(*at, None, how))
            else:
                function, how_built = _build(definition, namespace, path, source, module)
                kernels.append(Kernel(*at, function, how_built))
                if function is not None:
                    built[str(path), definition.first_line] = function
    _join(built)
    return Census(tuple(kernels), tuple(gluon), tuple(unseen))


def _module_name(file: Path) -> str:
    return ".".join(file.parent.parts if file.stem == "__init__" else file.with_suffix("").parts)


def survey(package: str, rewrite: Callable[[JITFunction], Any]) -> list[Row]:
    """Rewrites every kernel of a package; what only looks like one has a row too. Raises what ``find_kernels`` raises.

    rewrite: gives an object with ``exact`` and ``sites``, each with a ``cost`` and a ``kind``; what it raises becomes
        the row's error.
    """
    found = find_kernels(package)
    rows = [Row(kernel, False, Counter(), error=f"{NOT_SEEN}: {kernel.obtained}") for kernel in found.unseen]
    for kernel in track(found.kernels, f"{package}: rewriting", console=Console(stderr=True)):
        if kernel.function is None:
            rows.append(Row(kernel, False, Counter(), error=f"not obtained: {kernel.obtained}"))
            continue
        try:
            told = rewrite(kernel.function)
        except Exception as error:  # whatever went wrong is what the census is there to list
            rows.append(Row(kernel, False, Counter(), error=f"{type(error).__name__}: {error}"))
            continue
        left_out = frozenset(str(site.kind) for site in told.sites if site.cost == "not exact")
        rows.append(Row(kernel, bool(told.exact), Counter(str(site.cost) for site in told.sites), left_out))
    return rows


def summary(rows: list[Row]) -> list[Table]:
    """The kernels that are not exact or not rewritten, these by reason, how all were obtained, site costs, totals."""
    listed = Table("kernel", "where", "why", title="not exact or not rewritten")
    for kernel, why in _short(rows):
        listed.add_row(escape(kernel.qualname), f"{kernel.file}:{kernel.line}", escape(why))
    return [listed, *(_counts(title, counter) for title, counter in _counters(rows).items())]


def record(rows: list[Row]) -> dict[str, Any]:
    """The same as one JSON object."""
    short = [
        {"kernel": f"{kernel.module}:{kernel.qualname}", "file": kernel.file, "line": kernel.line, "why": why}
        for kernel, why in _short(rows)
    ]
    return {**{title: dict(counter) for title, counter in _counters(rows).items()}, "not exact or not rewritten": short}


def _short(rows: list[Row]) -> list[tuple[Kernel, str]]:
    """The kernels that are not exact or not rewritten, and why."""
    return [
        (row.kernel, row.error or f"not exact: {', '.join(sorted(row.left_out))} not counted")
        for row in rows
        if not row.exact
    ]


def _counters(rows: list[Row]) -> dict[str, Counter[str]]:
    unseen = sum((row.error or "").startswith(NOT_SEEN) for row in rows)
    totals = {
        "definitions": len(rows) - unseen,
        "not seen": unseen,
        "obtained": sum(row.kernel.function is not None for row in rows),
        "rewritten": sum(row.error is None for row in rows),
        "exact": sum(row.exact for row in rows),
    }
    return {
        "reasons": Counter(re.sub(r"\S*\d\S*", "...", why.partition("\n")[0]) for _, why in _short(rows)),
        "obtained": Counter(row.kernel.obtained for row in rows),
        "sites": sum((row.costs for row in rows), Counter[str]()),
        "kernels": Counter(totals),
    }


def _counts(title: str, counter: Counter[str]) -> Table:
    table = Table("count", "what", title=title)
    for name, count in counter.most_common():
        table.add_row(str(count), escape(name))
    return table


def _functions(namespace: dict[str, Any]) -> Iterator[tuple[tuple[str, int], JITFunction]]:
    """The kernels a namespace and its classes hold, under their file and first line."""
    held = list(namespace.values())
    held += [value for cls in held if isinstance(cls, type) for value in vars(cls).values()]
    for value in (way_in(one)[1] for one in held):
        if isinstance(value, JITFunction):
            yield (value.fn.__code__.co_filename, value.fn.__code__.co_firstlineno), value


def _build(
    definition: Definition, namespace: dict[str, Any], path: Path, source: Package, module: str
) -> tuple[JITFunction | None, str]:
    """A kernel that its module does not hold, made from its source alone, and how; or None and why not."""
    inside = any(isinstance(one, ast.FunctionDef) for one in definition.outer)
    where = "defined inside a function" if inside else "not held by its module"
    node = copy.copy(definition.node)
    node.decorator_list = []  # they may need what is around them; of these only the jit is applied, without options
    needs = [
        stmt
        for one in definition.outer
        for stmt in ast.iter_child_nodes(one)
        if isinstance(stmt, ast.Import | ast.ImportFrom)
    ]
    future = __future__.annotations
    flags = future.compiler_flag if namespace.get("annotations") is future else 0
    scope = dict(namespace)
    try:
        exec(compile(ast.Module(list(needs), []), str(path), "exec"), scope)
        code = compile(ast.Module([node], []), str(path), "exec", flags, dont_inherit=True)
        scope.update(_real_triton(_reads(code), source, module))
        if free := sorted(_reads(code) - {*scope, *vars(builtins), node.name}):
            return None, f"{where}: free variables {', '.join(free)}"
        exec(code, scope)
        return JITFunction(scope[node.name]), f"built from its source: {where}"
    except Exception as error:  # default values and imports run whatever the package wrote
        return None, f"{where}: {first_line(error)}"


def _join(built: dict[tuple[str, int], JITFunction]) -> None:
    """Kernels that were built from their source call each other, and not what a package has in their place.

    That is either the same function without its ``jit``, or another of its name in the same file, as where one branch
    defines kernels and the other functions that refuse.
    """
    named = {(path, function.fn.__qualname__): function for (path, _), function in built.items()}
    for function in built.values():
        names = function.fn.__globals__
        for name, value in list(names.items()):
            if isinstance(value, FunctionType):
                place = value.__code__.co_filename, value.__code__.co_firstlineno
                namesake = named.get((value.__code__.co_filename, value.__qualname__), value)
                names[name] = built.get(place, namesake)


def _real_triton(names: set[str], source: Package, module: str) -> Iterator[tuple[str, Any]]:
    """Triton's modules by the names a module has for them: a package may put something else there without a GPU."""
    for name in sorted(names):
        for origin in source.origins(module, name):
            if origin.partition(".")[0] == "triton" and origin != name:
                with contextlib.suppress(ImportError):
                    yield name, importlib.import_module(origin)
            elif origin == name == "triton":
                yield name, importlib.import_module(name)


def _reads(code: CodeType) -> set[str]:
    """The global names that code and the functions in it read."""
    names = {step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return names.union(*(_reads(inner) for inner in code.co_consts if isinstance(inner, CodeType)))
