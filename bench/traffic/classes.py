"""Which class of service a request belongs to: drawn from a seed, by shares that may shift while the traffic runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from bench.checks import number, only, section
from bench.traffic.request import Request
from roofline_policies.errors import InputError

STREAM = 0x5E12, 0x1CE5
"""Names the stream of classes: with a seed before it, no other stream of a traffic is drawn from the same."""

_ALLOWED = "null, or a list of {priority: whole number, share: number > 0}, each priority once"
_SHIFTS_ALLOWED = "null, or a list of {at_s: seconds of the run, classes: [...]}, in order of time"


@dataclass(frozen=True, slots=True)
class ClassShare:
    """A class of requests. share: more than 0, in any unit; those of one list count against each other."""

    priority: int
    share: float


@dataclass(frozen=True, slots=True)
class Shift:
    """From ``at_s`` seconds of the run on, the classes are these."""

    at_s: float
    classes: tuple[ClassShare, ...]


def read_classes(value: object, where: str) -> tuple[ClassShare, ...]:
    """The classes under the key ``classes``; none for null.

    Raises:
        InputError: no list of classes, a share out of range, or a priority that is there twice.
    """
    if value is None:
        return ()
    if not isinstance(value, list) or not value:
        raise InputError("is not a list of classes", where=where, key="classes", value=value, allowed=_ALLOWED)
    classes: list[ClassShare] = []
    for place, one in enumerate(value):
        here = f"{where}.classes[{place}]"
        fields = section(one, here)
        only(fields, here, ("priority", "share"))
        priority = fields.get("priority")
        if isinstance(priority, bool) or not isinstance(priority, int):
            raise InputError("is no priority", where=here, key="priority", value=priority, allowed="a whole number")
        if any(priority == other.priority for other in classes):
            raise InputError("is there twice", where=here, key="priority", value=priority, allowed=_ALLOWED)
        classes.append(ClassShare(priority, number(fields, "share", here, above=0.0)))
    return tuple(classes)


def read_shifts(value: object, where: str) -> tuple[Shift, ...]:
    """The shifts under the key ``shifts``, in order of time; none for null.

    Raises:
        InputError: no list of shifts, one without classes, or one that is not after the one before.
    """
    if value is None:
        return ()
    if not isinstance(value, list) or not value:
        raise InputError("is not a list of shifts", where=where, key="shifts", value=value, allowed=_SHIFTS_ALLOWED)
    shifts: list[Shift] = []
    for place, one in enumerate(value):
        here = f"{where}.shifts[{place}]"
        fields = section(one, here)
        only(fields, here, ("at_s", "classes"))
        at_s = number(fields, "at_s", here, low=0.0)
        if shifts and at_s <= shifts[-1].at_s:
            allowed = f"a number > {shifts[-1].at_s:g}, when the shift before begins"
            raise InputError("is not in order of time", where=here, key="at_s", value=at_s, allowed=allowed)
        if fields.get("classes") is None:
            raise InputError("is missing", where=here, key="classes", allowed=_ALLOWED)
        shifts.append(Shift(at_s, read_classes(fields["classes"], here)))
    return tuple(shifts)


def assign(
    requests: Sequence[Request], classes: Sequence[ClassShare], shifts: Sequence[Shift], seed: int
) -> list[Request]:
    """The requests with a priority each, but for those that have one, and those that no class applies to.

    A request is drawn by its place in the traffic and the seed alone: lengths, rates and the shares of others do not
    change its draw, and its shares only move the borders that the draw is held against.
    """
    if not classes and not shifts:
        return list(requests)
    draws = np.random.default_rng((seed, *STREAM)).random(len(requests))
    assigned = []
    for request, draw in zip(requests, draws, strict=True):
        if request.priority is None:
            held = next((shift.classes for shift in reversed(shifts) if shift.at_s <= request.arrival_s), classes)
            assigned.append(replace(request, priority=picked(held, float(draw))))
        else:
            assigned.append(request)
    return assigned


def picked(classes: Sequence[ClassShare], draw: float) -> int | None:
    """The priority at ``draw`` (0 up to 1) of the classes laid side by side in their shares; None of none."""
    left = draw * sum(one.share for one in classes)
    for one in classes:
        if left < one.share:
            return one.priority
        left -= one.share
    return classes[-1].priority if classes else None
