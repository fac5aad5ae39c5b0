"""From a mapping in a configuration file to a dataclass, every key and type checked, errors naming the key."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, field, fields, make_dataclass
from enum import Enum
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from omegaconf import MISSING as UNSET
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from roofline_policies.errors import FieldError, InputError

T = TypeVar("T")

_UNITS = {
    "_s": "seconds, as a plain number (0.05, not '50ms')",
    "_tokens": "tokens, as a whole number",
    "_bytes": "bytes, as a whole number",
}


def build(cls: type[T], values: object, *, where: str, key: str, made: Mapping[str, object] | None = None) -> T:
    """An instance of the dataclass ``cls`` from plain values.

    where, key: the file and the dotted key of the mapping, for errors.
    made: fields whose values are already objects; they are passed on unchecked.

    Raises:
        InputError: not a mapping, an unknown or missing key, a value of the wrong type or outside its range.
    """
    if not isinstance(values, Mapping):
        raise InputError(
            "must be a mapping",
            where=where,
            key=key,
            value=values,
            allowed=[f.name for f in fields(cls)],  # type: ignore[arg-type]
        )
    made = made or {}
    names = [f.name for f in fields(cls) if f.init]  # type: ignore[arg-type]
    for name in (*values, *made):
        if name not in names:
            raise InputError("unknown key", where=where, key=_join(key, str(name)), allowed=names or "no keys")
    with user_code(where, key):
        hints = get_type_hints(cls)
    plain: dict[str, object] = {}
    for item in fields(cls):  # type: ignore[arg-type]
        if not item.init or item.name in made:
            continue
        if item.name in values:
            plain[item.name] = _convert(hints[item.name], values[item.name], where, _join(key, item.name))
        elif item.default is MISSING and item.default_factory is MISSING:
            raise InputError("missing key", where=where, key=_join(key, item.name))
    with user_code(where, key):
        return cls(**plain, **made)


@contextmanager
def user_code(where: str, key: str, value: object = None) -> Iterator[None]:
    """Runs code that a user may have written; whatever it raises is an InputError: nothing has been started yet."""
    try:
        yield
    except InputError:
        raise
    except FieldError as error:
        raise InputError(
            "out of range", where=where, key=_join(key, error.key), value=error.value, allowed=error.allowed
        ) from error
    except Exception as error:
        problem = f"{type(error).__name__}: {' '.join(str(error).split())}"
        if value is None:
            raise InputError(problem, where=where, key=key) from error
        raise InputError(problem, where=where, key=key, value=value) from error


def _convert(hint: Any, value: object, where: str, key: str) -> object:
    """``value`` as the type of one field; OmegaConf's typed nodes do the checking."""
    choices = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    for choice in choices:
        if isinstance(choice, type) and issubclass(choice, Enum):
            if value in [member.value for member in choice]:
                return choice(value)
            raise InputError("unknown value", where=where, key=key, value=value, allowed=[m.value for m in choice])
    if (isinstance(value, bool) and bool not in choices) or (isinstance(value, str) and str not in choices):
        raise InputError("wrong type", where=where, key=key, value=value, allowed=_describe(hint, key))
    schema = make_dataclass("Schema", [("value", hint, field(default=UNSET))])
    try:
        typed = OmegaConf.structured(schema)
        typed.value = value
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        raise InputError("wrong type", where=where, key=key, value=value, allowed=_describe(hint, key)) from error
    result: object = typed.value
    return result


def _describe(hint: Any, key: str) -> str:
    for suffix, meaning in _UNITS.items():
        if key.endswith(suffix):
            return meaning
    names = [getattr(t, "__name__", str(t)) for t in (get_args(hint) or (hint,))]
    return " or ".join("null" if name == "NoneType" else name for name in names)


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
