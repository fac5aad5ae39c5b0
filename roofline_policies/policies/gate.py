"""The gate: where what a policy returns enters. Behind it are nothing but plain values.

What no policy can mean raises a PolicyError, and the server turns to its launch settings: no proposals, an unknown
knob, a value that is no number. A reason that is no text becomes text: it is there to be read and decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import islice
from operator import index
from typing import Any

from roofline_policies.contract.decision import Knob, KnobValue
from roofline_policies.errors import PolicyError
from roofline_policies.plain import plain, shown, type_name
from roofline_policies.policies.base import Kind, Proposal, Strength

MOST_PROPOSALS = 1000
"""More proposals of one policy are taken for a generator without an end."""

_PLAIN_NUMBERS = (int, bool, float)


def accepted(proposals: Iterable[Proposal]) -> tuple[Proposal, ...]:
    """What a policy returned, as proposals of plain text, numbers and members of our own enumerations.

    Raises:
        PolicyError: something that cannot be meant.
        Exception: whatever the policy's own objects raise; none of their code runs after this.
    """
    if isinstance(proposals, Proposal):
        raise PolicyError("returned a Proposal and not a tuple of them")
    if not hasattr(type(proposals), "__iter__"):
        raise PolicyError(f"returned {shown(proposals)} and not a tuple of Proposals")
    found = tuple(islice(proposals, MOST_PROPOSALS + 1))
    if len(found) > MOST_PROPOSALS:
        raise PolicyError(f"returned more than {MOST_PROPOSALS} proposals")
    return tuple(map(_accepted, found))


def _accepted(proposal: Any) -> Proposal:
    """One proposal; the same object where it is plain already, as nearly always."""
    if not issubclass(type(proposal), Proposal):
        raise PolicyError(f"proposed {shown(proposal)}, which is no Proposal")
    if tuple.__len__(proposal) != len(Proposal._fields):
        raise PolicyError(f"proposed a {type_name(proposal)} of {tuple.__len__(proposal)} fields")
    policy, knob, value, reason, kind, strength = tuple.__iter__(proposal)  # a subclass may answer otherwise
    if (
        type(proposal) is Proposal and type(knob) is Knob and type(kind) is Kind and type(strength) is Strength
        and type(policy) is type(reason) is str and type(value) in _PLAIN_NUMBERS and abs(value) < math.inf
        and plain(policy) is policy and plain(reason) is reason
    ):  # fmt: skip
        return proposal
    name = plain(policy)
    return Proposal(
        name, _knob(name, knob), _number(name, knob, value), plain(reason), _member(name, Kind, kind),
        _member(name, Strength, strength),
    )  # fmt: skip


def _knob(policy: str, knob: object) -> Knob:
    try:
        return Knob(str.__str__(knob))
    except (TypeError, ValueError):
        raise PolicyError(
            f"{policy} proposed for {shown(knob)}, which is no knob; there are {', '.join(Knob)}"
        ) from None


def _number(policy: str, knob: object, value: Any) -> KnobValue:
    """A bool, int or float of exactly that type. Numbers of other libraries become one; text never does."""
    kind = type(value)
    number: Any = math.nan
    if kind is bool:
        number = value
    elif issubclass(kind, int):
        number = int.__int__(value)
    elif issubclass(kind, float):
        number = float.__float__(value)
    elif hasattr(kind, "__index__"):
        number = int.__int__(index(value))
    elif hasattr(kind, "__float__"):
        number = float.__float__(float(value))
    if type(number) is float and not math.isfinite(number):
        raise PolicyError(f"{policy} proposed {plain(knob)} = {shown(value)}, which is no finite number")
    plain_number: KnobValue = number
    return plain_number


def _member(policy: str, members: type[Kind] | type[Strength], value: Any) -> Any:
    try:
        return members(int.__int__(index(value)))
    except (TypeError, ValueError):
        allowed = ", ".join(member.name for member in members)
        raise PolicyError(f"{policy} proposed with {shown(value)}; allowed: {allowed}") from None
