"""Anything at all as plain text: one line that JSON, a log and a terminal can carry, whatever made it."""

from __future__ import annotations

MOST_CHARACTERS = 1000
"""Longer text is cut: a status page keeps hundreds of reasons, and a line of a log is read by people."""

MOST_OF_A_MESSAGE = 10_000
"""The same of an error that answers a request, which may list all that is allowed."""


def plain(value: object, most: int = MOST_CHARACTERS) -> str:
    """``value`` as at most ``most`` characters of printable text; an exception is its message.

    What cannot be printed is written as an escape: control characters, lone surrogates, characters that turn the
    direction of text. White space is a blank. Raises no Exception, whatever the object does when it is asked.
    """
    text = value if type(value) is str else _text(value)
    if len(text) > most:
        text = text[: most - 1] + "\u2026"
    if text.isprintable():
        return text
    text = "".join(map(_printable, text))
    return text if len(text) <= most else text[: most - 1] + "\u2026"


def type_name(value: object) -> str:
    """The name of a value's class, plain, whatever its metaclass says."""
    return plain(type.__dict__["__name__"].__get__(type(value)))


def described(error: BaseException) -> str:
    """The class and the message of an exception, plain."""
    return f"{type_name(error)}: {plain(error)}"


def shown(value: object) -> str:
    """The ``repr`` of a value, plain."""
    try:
        return plain(repr(value))
    except Exception:  # whatever somebody's class does
        return f"<{type_name(value)} that cannot be shown>"


def _text(value: object) -> str:
    """``value`` as text of type str itself: a subclass may do anything when it is compared, printed or hashed."""
    try:
        return str.__str__(value if issubclass(type(value), str) else str(value))
    except Exception:  # whatever somebody's class does
        return f"<{type_name(value)} that cannot be shown>"


def _printable(character: str) -> str:
    if character.isprintable():
        return character
    return " " if character.isspace() else character.encode("unicode_escape").decode("ascii")
