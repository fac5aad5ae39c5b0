"""From ``_target_`` nodes and ``package.module:attribute`` references to policy objects."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any

from roofline_policies.errors import InputError
from roofline_policies.fields import build, user_code
from roofline_policies.policies.base import Policy

OWN_PACKAGES = ("roofline_policies.policies", "bench.rivals")
"""Where targets may come from without being named at launch. The second is imported only where a target names it, and
can be only from a checkout."""


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
        return build(cls, plain, where=where, key=key, made=nested)
    with user_code(where, key):
        return cls(**plain, **nested)


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
