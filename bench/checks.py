"""One value of a configuration at a time: of the right kind and in range, or an InputError that says what is."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from roofline_policies.errors import InputError

_MISSING = object()


def only(conf: Mapping[str, Any], where: str, allowed: Collection[str]) -> None:
    """Nothing, if every key of ``conf`` is allowed.

    Raises:
        InputError: the first key that is not.
    """
    for key in conf:
        if key not in allowed:
            raise InputError("unknown key", where=where, key=str(key), value=conf[key], allowed=allowed)


def section(value: object, where: str) -> Mapping[str, Any]:
    """``value``, a mapping with text keys.

    Raises:
        InputError: it is none.
    """
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise InputError("is not a section of keys and values", where=where, value=value, allowed="key: value pairs")
    return value


def number(
    conf: Mapping[str, Any],
    key: str,
    where: str,
    *,
    default: object = _MISSING,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
) -> float:
    """The finite number under ``key``: at least ``low``, more than ``above``, at most ``high``.

    Raises:
        InputError: absent without a default, no number, or out of range.
    """
    value = conf.get(key, default)
    bounds = [(">=", low), (">", above), ("<=", high)]
    ranges = " and ".join(f"{sign} {bound:g}" for sign, bound in bounds if bound is not None)
    allowed = f"a number {ranges}".strip()
    if value is _MISSING or value is None:
        raise InputError("is missing", where=where, key=key, allowed=allowed)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError("is not a finite number", where=where, key=key, value=value, allowed=allowed)
    if (
        (low is not None and value < low)
        or (above is not None and value <= above)
        or (high is not None and value > high)
    ):
        raise InputError("is out of range", where=where, key=key, value=value, allowed=allowed)
    return float(value)


def optional_number(conf: Mapping[str, Any], key: str, where: str, *, above: float) -> float | None:
    """The number above ``above`` under ``key``, or None where it is null or absent.

    Raises:
        InputError: no number, or out of range.
    """
    return None if conf.get(key) is None else number(conf, key, where, above=above)


def count(conf: Mapping[str, Any], key: str, where: str, *, default: object = _MISSING, low: int = 1) -> int:
    """The whole number under ``key``, at least ``low``.

    Raises:
        InputError: absent without a default, no whole number, or below ``low``.
    """
    value = number(conf, key, where, default=default, low=low)
    if value != int(value):
        raise InputError("is not a whole number", where=where, key=key, value=value, allowed=f"whole number >= {low}")
    return int(value)


def optional_count(conf: Mapping[str, Any], key: str, where: str) -> int | None:
    """The whole number under ``key``, at least 1, or None where it is null or absent.

    Raises:
        InputError: no whole number, or below 1.
    """
    return None if conf.get(key) is None else count(conf, key, where)


def text(conf: Mapping[str, Any], key: str, where: str) -> str:
    """The text under ``key``, not empty.

    Raises:
        InputError: absent, empty, or no text.
    """
    value = conf.get(key)
    if value is None:
        raise InputError("is missing", where=where, key=key, allowed="text")
    if not isinstance(value, str) or not value.strip():
        quoted = (
            f"text; what reads as something else is quoted: {key}='\"...\"'" if not isinstance(value, str) else "text"
        )
        raise InputError("is not text", where=where, key=key, value=value, allowed=quoted)
    return value


def texts(conf: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    """The list of texts under ``key``; numbers in it become text; absent or null is an empty list.

    Raises:
        InputError: no list, or something else in it.
    """
    value = conf.get(key)
    if value is None:
        return ()
    if not isinstance(value, list) or any(isinstance(v, bool) or not isinstance(v, str | int | float) for v in value):
        raise InputError(
            "is not a list of arguments", where=where, key=key, value=value, allowed="[--flag, value, ...]"
        )
    return tuple(str(v) for v in value)


def choice(conf: Mapping[str, Any], key: str, where: str, allowed: Collection[str]) -> str:
    """The value under ``key``, one of ``allowed``.

    Raises:
        InputError: absent, or none of them.
    """
    value = conf.get(key)
    if value not in allowed:
        raise InputError("is not a choice", where=where, key=key, value=value, allowed=allowed)
    return str(value)
