"""Looks for every attribute of ``needs.objects`` in the installed SGLang, name by name."""

from __future__ import annotations

import ast
import inspect
import pkgutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, reduce
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from roofline_policies.errors import IncompatibleServer
from sglang_patches.needs.classes import CLASSES, LIVE


def needed(kind: type) -> frozenset[str]:
    """The names that a protocol of ``needs.objects`` declares itself, its bases left out."""
    own = {*vars(kind).get("__annotations__", ()), *vars(kind)}
    return frozenset(name for name in own - {*vars(_Empty)} if not name.startswith(("__", "_abc_")))


class _Empty(Protocol):
    """What every protocol has."""


def declared(found: type) -> set[str]:
    """The attributes that objects of a class have, read from the class: nothing is constructed.

    Those of its bases and mixins count: class attributes, methods, properties, slots, dataclass fields, and whatever a
    method assigns to its first parameter (``self.name = ...``), under whatever condition.
    """
    names: set[str] = set()
    for base in found.__mro__[:-1]:
        names |= vars(base).keys() | vars(base).get("__dataclass_fields__", {}).keys()
        slots = vars(base).get("__slots__", ())
        names |= {slots} if isinstance(slots, str) else set(slots)
        module = sys.modules.get(base.__module__)
        if module is not None:
            names |= _assigned(module).get(base.__qualname__, frozenset())
    return names


@cache
def _assigned(module: ModuleType) -> Mapping[str, frozenset[str]]:
    """What the methods of each class of a module assign, by the class's qualified name. Empty without its source."""
    try:
        tree = ast.parse(inspect.getsource(module))
    except (OSError, TypeError):
        return {}
    return dict(_classes(tree, ""))


def _classes(body: ast.AST, prefix: str) -> Iterator[tuple[str, frozenset[str]]]:
    for node in ast.iter_child_nodes(body):
        if isinstance(node, ast.ClassDef):
            methods = (item for item in node.body if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef))
            yield prefix + node.name, frozenset(name for method in methods for name in _stores(method))
            yield from _classes(node, f"{prefix}{node.name}.")
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _classes(node, prefix)


def _stores(method: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    parameters = [*method.args.posonlyargs, *method.args.args]
    for node in ast.walk(method) if parameters else ():
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and isinstance(node.value, ast.Name)
            and node.value.id == parameters[0].arg
        ):
            yield node.attr


def find(target: str) -> Any:
    """What lies at a dotted path.

    Raises:
        IncompatibleServer: nothing does.
    """
    try:
        return pkgutil.resolve_name(target)
    except (AttributeError, ImportError) as error:
        raise IncompatibleServer(f"{target}: not found in SGLang {version('sglang')} ({error})") from error


def missing(kind: type, target: str) -> list[str]:
    """The names of a protocol that SGLang's class at a dotted path does not have, sorted.

    Raises:
        IncompatibleServer: there is no such class.
    """
    return sorted(needed(kind) - declared(find(target)))


def verify_classes(classes: Mapping[type, str] = CLASSES) -> None:
    """Nothing, if SGLang's classes have all that is read or set on their objects.

    Raises:
        IncompatibleServer: names each attribute that is missing, with the version and the modules that use it.
    """
    lacking = [(target, name) for kind, target in classes.items() for name in missing(kind, target)]
    _refuse(lacking)


def verify_live(scheduler: object, live: Mapping[str, type] = LIVE) -> None:
    """The same of a scheduler that was built, and of what it holds.

    Raises:
        IncompatibleServer: as ``verify_classes``.
    """
    lacking = []
    for path, kind in live.items():
        try:
            found = reduce(getattr, path.split("."), scheduler) if path else scheduler
        except AttributeError:
            continue  # named where its holder is looked at
        lacking += [(_named(found), name) for name in sorted(needed(kind)) if not hasattr(found, name)]
    _refuse(lacking)


def _named(found: object) -> str:
    return f"{type(found).__module__}.{type(found).__qualname__}"


def _refuse(lacking: Iterable[tuple[str, str]]) -> None:
    told = [f"{target}.{name} (read by {', '.join(readers(name)) or 'nothing'})" for target, name in lacking]
    if told:
        raise IncompatibleServer(f"SGLang {version('sglang')} lacks {'; '.join(told)}")


def readers(name: str) -> list[str]:
    """The modules of this package that use an attribute of this name, as paths from the package."""
    return sorted(path for path, names in _used().items() if name in names)


@cache
def _used() -> Mapping[str, frozenset[str]]:
    """Attributes, and texts that may name one, of each module of this package outside this room."""
    package, found = Path(__file__).parents[1], {}
    for path in package.rglob("*.py"):
        if path.parent != Path(__file__).parent:
            nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
            names = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
            texts = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
            found[path.relative_to(package).as_posix()] = frozenset(names | texts)
    return found
