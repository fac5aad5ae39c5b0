"""From axes to cells: which values meet, and which overrides that makes. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from bench.checks import section, texts
from roofline_policies.errors import InputError

OWN_KEYS = ("name", "arms", "baseline", "out_dir", "processes")
"""Keys of conf/bench/virtual.yaml that the sweep sets itself."""

Place = dict[str, str]
"""Where a cell lies: the name of its value on every axis, in the order of the axes."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_ALLOWED = "a list of hydra overrides, or a section with one such list for each value of another axis"


def places(value: object, shared: Sequence[str]) -> list[tuple[Place, list[str]]]:
    """Every cell of the product of the axes with its overrides: the shared ones, then those of each axis in order.

    value: axis name -> value name -> overrides. In the place of its list, a value may have a section with one list for
    each value of another axis: what ``near`` means for a load depends on the trace. The last axis changes fastest.

    Raises:
        InputError: an axis without values, a name, an override or a section that cannot be used.
    """
    axes = {axis: _values(axis, values) for axis, values in section(value, "axes").items()}
    overridable(shared, "sweep", "overrides")
    cells = []
    for chosen in product(*axes.values()):
        place = dict(zip(axes, chosen, strict=True))
        overrides = [one for axis, name in place.items() for one in _overrides(axes, axis, name, place)]
        cells.append((place, [*shared, *overrides]))
    return cells


def label(place: Place) -> str:
    """The cell's name, for a person; the one cell of no axes is called ``all``."""
    return ", ".join(place.values()) or "all"


def overridable(overrides: Sequence[str], where: str, key: str) -> None:
    """Nothing, if none of the overrides sets what belongs to the sweep.

    Raises:
        InputError: the first that does.
    """
    for override in overrides:
        name = override.partition("=")[0].strip().lstrip("+~").partition(".")[0]
        if name in OWN_KEYS:
            allowed = f"other keys of conf/bench/virtual.yaml; {name} is the sweep's own, for all cells"
            raise InputError("cannot differ between cells", where=where, key=key, value=override, allowed=allowed)


def _values(axis: str, values: object) -> Mapping[str, Any]:
    _named(axis, "axes")
    found = section(values, f"axes.{axis}")
    if not found:
        raise InputError("has no values", where="axes", key=axis, allowed="name: [hydra overrides]")
    for name in found:
        _named(name, f"axes.{axis}")
    return found


def _named(name: str, where: str) -> None:
    if not _NAME.fullmatch(name):
        raise InputError("is no name", where=where, key="name", value=name, allowed="letters, digits, . _ and -")


def _overrides(axes: Mapping[str, Mapping[str, Any]], axis: str, name: str, place: Place) -> tuple[str, ...]:
    """What a value of an axis overrides in this cell."""
    where, given = f"axes.{axis}", axes[axis][name]
    if isinstance(given, Mapping):
        others = [other for other, values in axes.items() if other != axis and set(values) <= set(given)]
        if len(others) != 1:
            problem = "has a list for every value of more than one axis" if others else "lacks a list for some value"
            raise InputError(problem, where=where, key=name, value=sorted(map(str, given)), allowed=_ALLOWED)
        where, name = f"{where}.{name}", place[others[0]]
        given = given[name]
    elif not isinstance(given, list):
        raise InputError("is not a list of overrides", where=where, key=name, value=given, allowed=_ALLOWED)
    read = texts({name: given}, name, where)
    overridable(read, where, name)
    return read
