"""The kernels that a package's source defines, found without importing anything.

What a name stands for is followed through the package's own modules: ``from .triton_utils import triton`` where that
module does ``import triton`` under a condition, ``from .compat import *``, ``jit = partial(triton.jit, debug=True)``,
or a decorator of the package's own that puts a function under ``triton.jit``.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

TRITON = {"triton.jit", "triton.runtime.jit.jit"}
GLUON = {"gluon.jit", "triton.experimental.gluon.jit"}

_OPERATIONS = re.compile(
    r"triton\.language\.(core\.)?(load|store|program_id|arange|dot|dot_scaled|atomic_\w+|make_\w*ptr|make_tensor_descriptor)"
)
"""What only a kernel calls. A function of the host may well use the types of ``triton.language``."""

_SUSPECTS = re.compile(r"jit|triton|\btl\b")
_DEEPEST = 12


@dataclass(frozen=True)
class Definition:
    """A function's def, what is around it from the outside in, and which ``jit`` it is under.

    dialect: None where it calls what only kernels call, and no ``jit`` is seen; ``under`` then names its decorators.
    """

    node: ast.FunctionDef
    outer: tuple[ast.AST, ...]
    dialect: str | None
    under: str = ""

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


@dataclass
class _Module:
    """One module's source and what its names are bound to, wherever in it: imports, plain assignments, functions."""

    name: str
    is_package: bool
    tree: ast.Module
    _bindings: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.stars: list[str] = []
        self.functions: dict[str, list[ast.FunctionDef]] = {}
        for node in ast.walk(self.tree):
            match node:
                case ast.Import(names=aliases):
                    for alias in aliases:
                        bound = alias.asname or alias.name.partition(".")[0]
                        self._bind(bound, alias.name if alias.asname else bound)
                case ast.ImportFrom(names=aliases):
                    base = self._base(node)
                    for alias in aliases:
                        if alias.name == "*":
                            self.stars.append(base)
                        else:
                            self._bind(alias.asname or alias.name, f"{base}.{alias.name}")
                case ast.FunctionDef(name=name):
                    self.functions.setdefault(name, []).append(node)
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    if (dotted := _dotted(_made_of(value))) and dotted.partition(".")[0] != name:
                        self._bind(name, f"{self.name}.{dotted}")

    def _bind(self, name: str, target: str) -> None:
        self._bindings.setdefault(name, []).append(target)

    def _base(self, node: ast.ImportFrom) -> str:
        """The module that a ``from ... import`` names, absolute."""
        if not node.level:
            return node.module or ""
        parts = self.name.split(".")
        parts = parts[: len(parts) - node.level + self.is_package]
        return ".".join([*parts, *([node.module] if node.module else [])])

    def targets(self, dotted: str) -> list[str]:
        """What a dotted name of this module may stand for, one step further; nothing where it is no binding."""
        head, dot, rest = dotted.partition(".")
        bound = [f"{target}{dot}{rest}" for target in self._bindings.get(head, ())]
        return bound if bound or head in self.functions else [f"{base}.{dotted}" for base in self.stars]


def _dotted(node: ast.expr | None) -> str:
    """``a.b.c`` as text; "" for any other expression."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=name) if owner := _dotted(value):
            return f"{owner}.{name}"
    return ""


def _made_of(value: ast.expr) -> ast.expr | None:
    """What an assigned value does when it is called: ``partial(triton.jit, debug=True)`` what ``triton.jit`` does."""
    if not isinstance(value, ast.Call):
        return value
    if _dotted(value.func).rpartition(".")[2] == "partial" and value.args:
        return value.args[0]
    return None if value.args else value.func


class Package:
    """The source of a package.

    paths: module names and their files.
    """

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self._paths = paths
        self._modules: dict[str, _Module | None] = {}
        self._wraps: dict[str, bool] = {}

    def _module(self, name: str) -> _Module | None:
        if name not in self._modules:
            path = self._paths.get(name)
            try:
                tree = ast.parse(path.read_text(encoding="utf-8")) if path is not None else None
            except SyntaxError:  # templates, and code of other Pythons
                tree = None
            self._modules[name] = None
            if tree is not None and path is not None:
                self._modules[name] = _Module(name, path.stem == "__init__", tree)
        return self._modules[name]

    def origins(self, module: str, dotted: str) -> frozenset[str]:
        """What a dotted name in a module stands for in the end: names of others, or functions of the package."""
        found, pending, seen = set(), [(module, dotted, 0)], set()
        for where, name, deep in pending:  # which grows meanwhile
            if (where, name) in seen or deep > _DEEPEST:
                continue
            seen.add((where, name))
            source = self._module(where)
            targets = source.targets(name) if source is not None else []
            if not targets:
                found.add(f"{where}.{name}" if source is not None and name in source.functions else name)
            for target in targets:
                home, inside = self._split(target)
                if home and inside:
                    pending.append((home, inside, deep + 1))
                else:
                    found.add(target)
        return frozenset(found)

    def _split(self, target: str) -> tuple[str, str]:
        """The longest part of a dotted name that is a module of the package, and the rest."""
        parts = target.split(".")
        for length in range(len(parts), 0, -1):
            if (home := ".".join(parts[:length])) in self._paths:
                return home, ".".join(parts[length:])
        return "", target

    def dialect(self, module: str, called: ast.expr) -> str | None:
        """The ``jit`` that an expression stands for, or that a function of the package puts what it is given under."""
        if not (dotted := _dotted(called)):
            return None
        for origin in sorted(self.origins(module, dotted)):
            if origin in TRITON | GLUON:
                return origin
            if self._puts_under_jit(origin):
                return "triton.jit"
        return None

    def _puts_under_jit(self, function: str) -> bool:
        """Whether a function of the package uses ``triton.jit``, or another that does, not counting its own kernels."""
        if function not in self._wraps:
            self._wraps[function] = False  # meanwhile, for those that call each other
            home, name = self._split(function)
            source = self._module(home) if home else None
            nodes = source.functions.get(name, []) if source is not None else []
            self._wraps[function] = any(
                any(origin in TRITON or self._puts_under_jit(origin) for origin in self.origins(home, dotted))
                for node in nodes
                for dotted in _used(node)
            )
        return self._wraps[function]

    def definitions(self, module: str) -> Iterator[Definition]:
        """The kernels that a module defines, in the order of its source, and what only looks like one."""
        path = self._paths[module]
        text = path.read_text(encoding="utf-8")
        source = self._module(module) if _SUSPECTS.search(text) else None
        if source is None:
            return
        # ``kernel = triton.jit(f)`` and ``triton.jit(option=...)(f)`` make a kernel of a plain function
        calls = [node for node in ast.walk(source.tree) if isinstance(node, ast.Call) and len(node.args) == 1]
        of_call = {
            call.args[0].id: jit
            for call in calls
            if isinstance(call.args[0], ast.Name)
            and call.args[0].id in source.functions
            and (jit := self.dialect(module, call.func.func if isinstance(call.func, ast.Call) else call.func))
        }
        yield from self._walk(source, source.tree, (), of_call)

    def _walk(
        self, source: _Module, node: ast.AST, outer: tuple[ast.AST, ...], of_call: Mapping[str, str]
    ) -> Iterator[Definition]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef):
                yield from self._definition(source, child, outer, of_call)
            yield from self._walk(source, child, (*outer, child), of_call)

    def _definition(
        self, source: _Module, node: ast.FunctionDef, outer: tuple[ast.AST, ...], of_call: Mapping[str, str]
    ) -> Iterator[Definition]:
        decorators = [one.func if isinstance(one, ast.Call) else one for one in node.decorator_list]
        direct = [
            origin
            for one in decorators
            for origin in sorted(self.origins(source.name, _dotted(one)))
            if origin in TRITON | GLUON
        ]
        looks_like_one = self._looks_like_a_kernel(source.name, node)
        wrapped = [jit for one in decorators if looks_like_one and (jit := self.dialect(source.name, one))]
        if jits := [*direct, *wrapped, *([of_call[node.name]] if node.name in of_call else [])]:
            yield Definition(node, outer, jits[0])
        elif looks_like_one and not self._is_tritons(source.name, decorators):
            under = ", ".join(f"@{ast.unparse(one)}" for one in node.decorator_list) or "no decorator"
            yield Definition(node, outer, None, under)

    def _is_tritons(self, module: str, decorators: list[ast.expr]) -> bool:
        """Whether a decorator is one of Triton's own that makes something else than a kernel (``core.builtin``)."""
        return any(
            origin.partition(".")[0] == "triton" for one in decorators for origin in self.origins(module, _dotted(one))
        )

    def _looks_like_a_kernel(self, module: str, node: ast.FunctionDef) -> bool:
        """Whether a function itself calls what only kernels call."""
        return any(
            _OPERATIONS.fullmatch(origin)
            for dotted in _called(node)
            if "." in dotted or dotted in _BARE
            for origin in self.origins(module, dotted)
        )


_BARE = {"load", "store", "program_id", "arange", "dot"}
"""Operations that people import by name."""


def _called(node: ast.AST) -> Iterator[str]:
    """The dotted names that a function calls, those of functions inside it left out."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.ClassDef):
            continue
        if isinstance(child, ast.Call) and (dotted := _dotted(child.func)):
            yield dotted
        yield from _called(child)


def _used(node: ast.AST) -> Iterator[str]:
    """The dotted names in a function, decorators of functions inside it left out."""
    for child in ast.iter_child_nodes(node):
        if isinstance(node, ast.FunctionDef) and child in node.decorator_list:
            continue
        if isinstance(child, ast.Attribute | ast.Name) and (dotted := _dotted(child)):
            yield dotted
        yield from _used(child)
