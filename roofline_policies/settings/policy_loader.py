"""From ``_target_`` nodes and ``package.module:attribute`` references to policy objects."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from functools import reduce
from operator import and_, ge, gt, le, lt, or_
from typing import Any, get_args, get_type_hints

from roofline_policies.errors import FieldError, InputError
from roofline_policies.fields import build, user_code
from roofline_policies.policies.base import Policy
from roofline_policies.policies.conditions import SIGNALS, Condition, Signal, is_number

OWN_PACKAGES = ("roofline_policies.policies", "bench.rivals")
"""Where targets may come from without being named at launch. The second is imported only where a target names it, and
is there only in a checkout."""

_COMPARE: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {ast.Gt: gt, ast.GtE: ge, ast.Lt: lt, ast.LtE: le}


def instantiate(node: object, *, where: str, key: str, packages: Sequence[str] = ()) -> Policy:
    """The policy that a configuration node describes, nested ``_target_`` nodes included.

    packages: packages besides this project's own that targets may come from. A configuration file must not be able to
    import whatever it likes, so the operator names them when the server is launched, not the file.

    Raises:
        InputError: no ``_target_``, a target outside the allowed packages or one that does not exist, bad parameters,
            or an object without ``propose``.
    """
    policy = _object(node, where, key, (*OWN_PACKAGES, *packages))
    return _as_policy(policy, where, key, node)


def resolve(reference: str, *, where: str) -> Policy:
    """The policy behind ``package.module:attribute``: an object with ``propose``, or a function that returns one.

    Raises:
        InputError: the reference cannot be imported, or leads to no policy.
    """
    module_name, _, attribute = reference.partition(":")
    with user_code(where, "", reference):
        found: Any = importlib.import_module(module_name)
        for name in attribute.split("."):
            found = getattr(found, name)
        if callable(found) and (isinstance(found, type) or not isinstance(found, Policy)):
            found = found()
    return _as_policy(found, where, "", reference)


def parse_condition(text: object, key: str = "condition") -> Condition:
    """The condition that the text of a configuration file describes: the one that Python's operators would give.

    key: of the text, for errors.

    Raises:
        FieldError: anything but comparisons of signals with numbers, chained or joined by and, or, not.
    """
    try:
        return _condition(ast.parse(" ".join(str(text).split()), mode="eval").body)
    except (FieldError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        allowed = (
            "comparisons of a signal with a number by > >= < <=, such as kv_use > 0.9 or 0.5 < kv_use < 0.9, joined by "
            f"and, or, not; signals: {', '.join(SIGNALS)}"
        )
        raise FieldError(key, text, allowed) from error


def _condition(node: ast.expr) -> Condition:
    match node:
        case ast.BoolOp(op=ast.And()):
            return reduce(and_, map(_condition, node.values))
        case ast.BoolOp(op=ast.Or()):
            return reduce(or_, map(_condition, node.values))
        case ast.UnaryOp(op=ast.Not()):
            return ~_condition(node.operand)
        case ast.Compare():
            sides = [_side(side) for side in (node.left, *node.comparators)]
            return reduce(and_, map(_comparison, sides, node.ops, sides[1:]))
    raise ValueError(node)


def _side(node: ast.expr) -> Signal | float:
    match node:
        case ast.Name() if node.id in SIGNALS:
            return SIGNALS[node.id]
        case ast.Constant(value=float() | int() as number) if is_number(number):
            return number
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=float() | int() as number)) if is_number(number):
            return -number
    raise ValueError(node)


def _comparison(left: Signal | float, operator: ast.cmpop, right: Signal | float) -> Condition:
    if type(operator) not in _COMPARE or isinstance(left, Signal) == isinstance(right, Signal):
        raise ValueError(operator)
    condition: Condition = _COMPARE[type(operator)](left, right)
    return condition


def _as_policy(found: object, where: str, key: str, value: object) -> Policy:
    if isinstance(found, Policy):
        return found
    raise InputError(
        f"gives a {type(found).__name__}, which is no policy",
        where=where, key=key, value=value, allowed="an object with propose(view)",
    )  # fmt: skip


def _object(node: object, where: str, key: str, packages: Sequence[str]) -> object:
    if not isinstance(node, Mapping) or not isinstance(node.get("_target_"), str):
        raise InputError("must be a mapping with a _target_", where=where, key=key, value=node)
    target = node["_target_"]
    cls = _import(target, where, f"{key}._target_", packages)
    values = {name: value for name, value in node.items() if name != "_target_"}
    nested = {
        name: _nested(value, where, f"{key}.{name}", packages) for name, value in values.items() if _has_target(value)
    }
    plain = {name: value for name, value in values.items() if name not in nested}
    if isinstance(cls, type) and is_dataclass(cls):
        fitted = _fitted(cls, plain, where, key)
        plain = {name: value for name, value in plain.items() if name not in fitted}
        return build(cls, plain, where=where, key=key, made={**nested, **fitted})
    with user_code(where, key):
        return cls(**plain, **nested)


def _fitted(cls: type, plain: Mapping[str, object], where: str, key: str) -> dict[str, object]:
    """Fields whose types a configuration file cannot hold: conditions, which are text there, and null for no object.

    By the fields' types, so policies of the user's own may have conditions as well.
    """
    with user_code(where, key):
        hints = get_type_hints(cls)
    made: dict[str, object] = {}
    for name, value in plain.items():
        if hints.get(name) is Condition:
            try:
                made[name] = parse_condition(value, name)
            except FieldError as error:
                raise InputError(
                    "is no condition", where=where, key=f"{key}.{name}", value=value, allowed=error.allowed
                ) from error
        elif value is None and type(None) in get_args(hints.get(name)):
            made[name] = None
    return made


def _nested(value: object, where: str, key: str, packages: Sequence[str]) -> object:
    if isinstance(value, list):
        return tuple(_object(item, where, f"{key}[{index}]", packages) for index, item in enumerate(value))
    return _object(value, where, key, packages)


def _has_target(value: object) -> bool:
    if isinstance(value, list):
        return any(_has_target(item) for item in value)
    return isinstance(value, Mapping) and "_target_" in value


def _import(target: str, where: str, key: str, packages: Sequence[str]) -> Any:
    if not any(target.startswith(f"{package}.") for package in packages):
        raise InputError(
            "is outside the allowed packages (the launch flag --policy-packages adds one)",
            where=where, key=key, value=target, allowed=packages,
        )  # fmt: skip
    module_name, _, name = target.rpartition(".")
    with user_code(where, key, target):
        module = importlib.import_module(module_name)
    found = getattr(module, name, None)
    if found is None:
        known = [n for n in getattr(module, "__all__", ()) if hasattr(getattr(module, n), "propose")]
        raise InputError("unknown policy", where=where, key=key, value=target, allowed=known or None)
    if not callable(found):
        raise InputError("cannot be called", where=where, key=key, value=target, allowed="a class or a function")
    return found
