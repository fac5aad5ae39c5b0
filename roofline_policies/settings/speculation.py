"""What the configuration asks of speculative decoding: the numbers of drafts that a server is made ready for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from roofline_policies.errors import FieldError, InputError
from roofline_policies.fields import build

DERIVED = "auto"
"""In place of windows: those that follow from the launch."""

WINDOW_STAYS = "the number of drafts stays as it was launched (speculation.windows is null)"
"""Why the knob speculation_window cannot be moved where the configuration says so."""


@dataclass(frozen=True, slots=True)
class SpeculationRequest:
    """What the configuration asks of speculative decoding.

    windows: numbers of drafts per request and step that the server is made ready for, and that the knob moves among, 0
        being none; DERIVED: those of ``windows_of`` the launch; None: the number stays as it was launched.

    Raises:
        FieldError: anything else.
    """

    windows: tuple[int, ...] | str | None = DERIVED

    def __post_init__(self) -> None:
        windows = self.windows
        if windows is None or windows == DERIVED:
            return
        allowed = f"{DERIVED}, null, or whole numbers, 0 or more, ascending, the last above 0, such as [0, 1, 3]"
        if not isinstance(windows, tuple) or any(type(one) is not int or one < 0 for one in windows):
            raise FieldError("windows", windows if not isinstance(windows, tuple) else list(windows), allowed)
        if list(windows) != sorted(set(windows)) or windows[-1:] in ((), (0,)):
            raise FieldError("windows", list(windows), allowed)

    def of_launch(self, launched: int) -> tuple[int, ...]:
        """The windows to make a server ready for that was launched with so many drafts per step."""
        if self.windows is None:
            return (launched,)
        return windows_of(launched) if isinstance(self.windows, str) else self.windows

    def among(self, launched: tuple[int, ...], *, where: str) -> tuple[int, ...]:
        """Those of a server that is ready for ``launched`` that the knob may move among.

        Raises:
            InputError: one that the server was not launched with.
        """
        if self.windows is None or isinstance(self.windows, str):
            return launched
        if not set(self.windows) <= set(launched):
            raise InputError(
                "the server was launched with no such setting", where=where, key="speculation.windows",
                value=list(self.windows), allowed=f"some of {list(launched)}",
            )  # fmt: skip
        return self.windows


def windows_of(launched: int) -> tuple[int, ...]:
    """Windows for a server that was launched with so many drafts per step: none, the odd numbers to 7, every doubling
    after them (15, 31, ...), and what it was launched with.

    Each costs memory and time at the start where graphs are captured. Source: the candidates up to 7 are SGLang's own
    of its adaptive speculation; what a further draft brings shrinks with its position, so the steps grow.
    """
    below = [0, 1, 3, 5, 7]
    while 2 * below[-1] + 1 < launched:
        below.append(2 * below[-1] + 1)
    return (*(one for one in below if one < launched), launched)


def asked(values: object, where: str) -> SpeculationRequest:
    """From the configuration group.

    Raises:
        InputError: anything in it that cannot be used.
    """
    if not isinstance(values, Mapping):
        raise InputError("must be a mapping", where=where, key="speculation", value=values)
    windows = values.get("windows", DERIVED)
    others = {name: value for name, value in values.items() if name != "windows"}
    made = tuple(windows) if isinstance(windows, list) else windows
    return build(SpeculationRequest, others, where=where, key="speculation", made={"windows": made})
