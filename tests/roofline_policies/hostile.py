"""Objects that raise whatever is asked of them, for the place where a policy's answers enter."""


def _refuse(self, *args):
    raise RuntimeError("asked a hostile object")


_ASKED = ("__str__", "__repr__", "__format__", "__eq__", "__ne__", "__lt__", "__gt__", "__hash__", "__bool__")
_METHODS = dict.fromkeys(_ASKED, _refuse)

Hostile = type("Hostile", (), dict(_METHODS))
HostileStr = type("HostileStr", (str,), dict(_METHODS))
HostileInt = type("HostileInt", (int,), dict(_METHODS) | {"__int__": _refuse, "__index__": _refuse})
HostileFloat = type("HostileFloat", (float,), dict(_METHODS) | {"__float__": _refuse})


class Named(type):
    """A metaclass that gives its classes no name."""

    @property
    def __name__(cls):
        raise RuntimeError("no name")


class Nameless(metaclass=Named):
    def __str__(self):
        return HostileStr("a text that is hostile")


class Raising(Exception):
    """An exception whose message cannot be had."""

    def __str__(self):
        raise RuntimeError("asked a hostile exception")

    __repr__ = __str__


# Not for sampled_from, which hashes what it may draw.
HOSTILE = (
    Hostile(), HostileStr("text"), HostileStr("\udcff\x00"), HostileInt(512), HostileFloat(0.5), Nameless(),
    Raising("why"), ValueError("\ud800"), "\ud800", "\x00\x1b[31m\r\n", "x" * 10**6, object(), b"\xff",
)  # fmt: skip
