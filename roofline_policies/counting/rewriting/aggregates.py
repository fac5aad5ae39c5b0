"""Which of Triton's aggregates a name holds; what their methods are, is not to be seen in the source of a call."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias, TypeGuard

from triton.language import core
from triton.runtime.jit import JITFunction

from roofline_policies.counting.rewriting.callees import Names

Given: TypeAlias = frozenset[tuple[str, type]]
"""Parameters of a function that hold aggregates, and which."""


def is_aggregate(value: Any) -> TypeGuard[type]:
    """Whether ``value`` is a class under ``triton.language.core._aggregate``."""
    return isinstance(value, type) and getattr(value, "__triton_aggregate__", False) is True


class Aggregates:
    """The aggregates in one function, as far as its source and the classes of its arguments show them.

    A name has a class where everything it is assigned is of that class.
    """

    def __init__(self, tree: ast.FunctionDef, names: Names, given: Given) -> None:
        self._tree = tree
        self._names = names
        self._classes: dict[str, type | None] = dict(given)
        for argument in (*tree.args.posonlyargs, *tree.args.args, *tree.args.kwonlyargs):
            declared = names.resolve(argument.annotation) if argument.annotation is not None else None
            if is_aggregate(declared):
                self._classes.setdefault(argument.arg, declared)
        for name, value in _assignments(tree):
            cls = self.of(value)
            self._classes[name] = cls if self._classes.get(name, cls) is cls else None

    def of(self, node: ast.expr) -> type | None:
        """The class of what ``node`` evaluates to; None where it is no aggregate or the source does not show it."""
        match node:
            case ast.Name(id=name):
                return self._classes.get(name)
            case ast.Attribute(value=value, attr=field):
                declared = getattr(self.of(value), "__annotations__", {}).get(field)
                return declared if is_aggregate(declared) else None
            case ast.IfExp(body=body, orelse=orelse):
                cls = self.of(body)
                return cls if cls is self.of(orelse) else None
            case ast.Call():
                target = self._names.resolve(node.func)
                if is_aggregate(target):
                    return target
                if target is core.aggregate_replace and node.args:
                    return self.of(node.args[0])
                function = self.method(node) or target
                if isinstance(function, JITFunction):
                    return _returned(function, self.given(node, function))
        return None

    def method(self, call: ast.Call) -> JITFunction[Any] | None:
        """The method of an aggregate that ``call`` calls on a value."""
        owner = self.of(call.func.value) if isinstance(call.func, ast.Attribute) else None
        member = getattr(owner, call.func.attr, None) if isinstance(call.func, ast.Attribute) and owner else None
        return member if isinstance(member, JITFunction) else None

    def given(self, call: ast.Call, function: Any) -> Given:
        """Which parameters of ``function`` get aggregates from ``call``."""
        receiver = [call.func.value] if self.method(call) is not None and isinstance(call.func, ast.Attribute) else []
        arguments: Mapping[str | None, ast.expr] = {
            **dict(zip(function.arg_names, [*receiver, *call.args], strict=False)),
            **{keyword.arg: keyword.value for keyword in call.keywords},
        }
        classes = {name: self.of(value) for name, value in arguments.items() if name is not None}
        return frozenset((name, cls) for name, cls in classes.items() if cls is not None)

    def returned(self) -> type | None:
        """The class of what the function returns."""
        values = [node.value for node in ast.walk(self._tree) if isinstance(node, ast.Return)]
        classes = {None if value is None else self.of(value) for value in values}
        return classes.pop() if len(classes) == 1 else None


def _assignments(tree: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """What names are assigned, in the order of the source."""
    for node in ast.iter_child_nodes(tree):
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                yield name, value
            case ast.AugAssign(target=ast.Name(id=name)) | ast.For(target=ast.Name(id=name)):
                yield name, ast.Constant(None)
            case ast.NamedExpr(target=ast.Name(id=name), value=value):
                yield name, value
        yield from _assignments(node)


_BEING_READ: set[tuple[Any, Given]] = set()


def _returned(function: JITFunction[Any], given: Given) -> type | None:
    key = (function.fn, given)
    if key in _BEING_READ:  # it calls itself
        return None
    _BEING_READ.add(key)
    try:
        (tree,) = ast.parse(function.src).body
        assert isinstance(tree, ast.FunctionDef)
        stored = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        names = Names(function.fn, frozenset(function.arg_names) | stored)
        return Aggregates(tree, names, given).returned()
    finally:
        _BEING_READ.discard(key)
