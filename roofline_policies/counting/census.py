"""Census: every Triton kernel in an installed package, and what rewriting each of them gives.

The source is read for definitions; the functions come from importing the modules that hold them. Where a package or a
GPU that a module needs is missing, it is imported with stand-ins, and every kernel of it says which.
"""

import __future__

import ast
import builtins
import copy
import dis
import importlib.util
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table
from triton import JITFunction, knobs

from roofline_policies.counting.stand_ins import first_line, load
from roofline_policies.counting.wrappers import way_in

TRITON = {"triton.jit", "triton.runtime.jit.jit"}
GLUON = {"gluon.jit", "triton.experimental.gluon.jit"}


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
    """The kernels of a package in the order of its source; Gluon's apart, because they are not Triton."""

    kernels: tuple[Kernel, ...]
    gluon: tuple[Kernel, ...]


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
    paths = sorted((path, root.parents[package.count(".")]) for root in roots for path in root.rglob("*.py"))
    kernels, gluon = [], []
    for path, base in track(paths, f"{package}: finding kernels", console=Console(stderr=True)):
        file = path.relative_to(base)
        module = ".".join(file.parent.parts if file.stem == "__init__" else file.with_suffix("").parts)
        found = list(_definitions(path.read_text(encoding="utf-8")))
        triton = any(definition.dialect in TRITON for definition in found)
        namespace, how = load(module, package) if triton else (None, "")
        functions = dict(_functions(namespace or {}))
        for definition in found:
            at = (module, definition.qualname, file.as_posix(), definition.node.lineno)
            if definition.dialect in GLUON:
                gluon.append(Kernel(*at, None, "Gluon, not Triton"))
            elif namespace is None:
                kernels.append(Kernel(*at, None, how))
            elif function := functions.get((str(path), definition.first_line)):
                kernels.append(Kernel(*at, function, how))
            else:
                kernels.append(Kernel(*at, *_build(definition, namespace, path)))
    return Census(tuple(kernels), tuple(gluon))


def survey(package: str, rewrite: Callable[[JITFunction], Any]) -> list[Row]:
    """Rewrites every kernel of a package. Raises what ``find_kernels`` raises.

    rewrite: gives an object with ``exact`` and ``sites``, each with a ``cost`` and a ``kind``; what it raises becomes
        the row's error.
    """
    rows = []
    for kernel in track(find_kernels(package).kernels, f"{package}: rewriting", console=Console(stderr=True)):
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
    totals = {
        "definitions": len(rows),
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


@dataclass(frozen=True)
class _Definition:
    """A kernel's def, what is around it from the outside in, and which ``jit`` it is under."""

    node: ast.FunctionDef
    outer: tuple[ast.AST, ...]
    dialect: str

    @property
    def qualname(self) -> str:
        names = []
        for node in self.outer:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names += [node.name, *(["<locals>"] if isinstance(node, ast.FunctionDef) else [])]
        return ".".join([*names, self.node.name])

    @property
    def first_line(self) -> int:
        """Where Python says its code starts: at the first decorator."""
        return min([self.node.lineno, *(decorator.lineno for decorator in self.node.decorator_list)])


def _definitions(text: str) -> Iterator[_Definition]:
    """The kernels defined in a source text, in its order."""
    if not re.search(r"\bjit\b", text):
        return
    tree = ast.parse(text)
    origin = {  # what a name stands for wherever in the file it is imported
        alias.asname: f"{node.module}.{alias.name}" if isinstance(node, ast.ImportFrom) else alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in (ast.alias(a.name, a.asname or a.name) for a in node.names)
    }

    def dialect(decorator: ast.expr) -> str | None:
        called = decorator.func if isinstance(decorator, ast.Call) else decorator
        head, dot, rest = ast.unparse(called).partition(".")
        name = f"{origin.get(head, head)}{dot}{rest}"
        return name if name in TRITON | GLUON else None

    # ``kernel = triton.jit(f)`` and ``triton.jit(option=...)(f)`` make a kernel of a plain function
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call) and len(node.args) == 1)
    of_call = {
        call.args[0].id: jit for call in calls if isinstance(call.args[0], ast.Name) and (jit := dialect(call.func))
    }

    def walk(node: ast.AST, outer: tuple[ast.AST, ...]) -> Iterator[_Definition]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef):
                jits = [*map(dialect, child.decorator_list), of_call.get(child.name)]
                yield from (_Definition(child, outer, jit) for jit in list(filter(None, jits))[:1])
            yield from walk(child, (*outer, child))

    yield from walk(tree, ())


def _functions(namespace: dict[str, Any]) -> Iterator[tuple[tuple[str, int], JITFunction]]:
    """The kernels a namespace and its classes hold, under their file and first line."""
    held = list(namespace.values())
    held += [value for cls in held if isinstance(cls, type) for value in vars(cls).values()]
    for value in (way_in(one)[1] for one in held):
        if isinstance(value, JITFunction):
            yield (value.fn.__code__.co_filename, value.fn.__code__.co_firstlineno), value


def _build(definition: _Definition, namespace: dict[str, Any], path: Path) -> tuple[JITFunction | None, str]:
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
        if free := sorted(_reads(code) - {*scope, *vars(builtins), node.name}):
            return None, f"{where}: free variables {', '.join(free)}"
        exec(code, scope)
        return JITFunction(scope[node.name]), f"built from its source: {where}"
    except Exception as error:  # default values and imports run whatever the package wrote
        return None, f"{where}: {first_line(error)}"


def _reads(code: CodeType) -> set[str]:
    """The global names that code and the functions in it read."""
    names = {step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return names.union(*(_reads(inner) for inner in code.co_consts if isinstance(inner, CodeType)))
