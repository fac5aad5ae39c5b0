"""Errors a person reads: what is wrong, where, which value, what is allowed."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from functools import partial
from typing import Any, NoReturn

EXIT_BAD_INPUT = 2
"""Exit code of every command that stops on an InputError."""

_ABSENT = object()


class RooflineError(Exception):
    """Base of every error this project raises on purpose."""


class InputError(RooflineError):
    """Something the user wrote cannot be used.

    The message is one line: ``where: key = value: problem; allowed: ...``. Commands print it to stderr and exit with
    EXIT_BAD_INPUT before anything is half done.
    """

    def __init__(
        self,
        problem: str,
        *,
        where: str,
        key: str = "",
        value: object = _ABSENT,
        allowed: str | Iterable[object] | None = None,
    ) -> None:
        self.problem = problem
        self.where = where
        self.key = key
        self.value = None if value is _ABSENT else value
        self.allowed = allowed
        self._told: dict[str, Any] = {"where": where, "key": key} | ({} if value is _ABSENT else {"value": value})
        parts = [where]
        if key:
            parts.append(_named(key) if value is _ABSENT else f"{_named(key)} = {value!r}")
        elif value is not _ABSENT:
            parts.append(repr(value))
        message = ": ".join([*parts, problem])
        if allowed is not None:
            message += "; allowed: " + (allowed if isinstance(allowed, str) else ", ".join(map(str, allowed)))
        super().__init__(message)

    def __reduce__(self) -> tuple[Any, ...]:  # it crosses processes, with the keywords that made it
        return partial(type(self), **self._told, allowed=self.allowed), (self.problem,)


def _named(key: str) -> str:
    """The key, quoted where it would break the line: a request may bring a field of any name."""
    return key if key.isprintable() else repr(key)


class PolicyError(RooflineError):
    """A policy broke its contract while the server was running; the controller falls back to the launch settings."""


class IncompatibleServer(RooflineError):
    """The installed SGLang does not have a hook or an attribute in the shape this project was written against."""


class FieldError(RooflineError, ValueError):
    """A field of a public dataclass has a value outside its range; configuration turns it into an InputError."""

    def __init__(self, key: str, value: object, allowed: str) -> None:
        self.key = key
        self.value = value
        self.allowed = allowed
        super().__init__(f"{_named(key)} = {value!r}; allowed: {allowed}")


class Uncountable(RooflineError):
    """A Triton kernel contains something whose bytes or FLOPs cannot be counted; ``counted`` refuses it.

    The message is one line: ``file:line: kernel: construct: why``, and behind it the line as its author wrote it, where
    the construct does not show it.

    text: that line.
    """

    def __init__(self, kernel: str, construct: str, why: str, *, file: str = "", line: int = 0, text: str = "") -> None:
        self.kernel = kernel
        self.construct = construct
        self.why = why
        self.file = file
        self.line = line
        self.text = text
        where = f"{file}:{line}: " if file else ""
        shown = f": {text}" if text and text not in construct else ""
        super().__init__(f"{where}{kernel}: {construct}: {why}{shown}")


def stop(error: Exception) -> NoReturn:
    """End the process with the message of what a user got wrong, on stderr, and EXIT_BAD_INPUT."""
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(EXIT_BAD_INPUT)
