"""The policy contract: a view goes in, proposals come out."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple, Protocol, runtime_checkable

from roofline_policies.contract.decision import Knob, KnobValue
from roofline_policies.contract.view import SchedulerView


class Strength(IntEnum):
    """Guards outrank optimisers when their targets meet."""

    OPTIMISER = 0
    GUARD = 1


class Kind(IntEnum):
    """TARGET: move the knob to this value. CAP: let no one move it above this value."""

    TARGET = 0
    CAP = 1


class Proposal(NamedTuple):
    """What one policy wants of one knob, and why. Immutable; a named tuple because several are made in every step.

    reason: one line a person understands: what was seen and what follows. A cap of False on defer_prefill or
    mixed_chunk forbids it.
    """

    policy: str
    knob: Knob
    value: KnobValue
    reason: str
    kind: Kind = Kind.TARGET
    strength: Strength = Strength.OPTIMISER


@runtime_checkable
class Policy(Protocol):
    """Anything with ``propose``.

    A policy does not mutate the view, does no I/O, and has no clock: identical views give identical proposals. Saying
    nothing about a knob leaves it to the others.
    """

    def propose(self, view: SchedulerView) -> tuple[Proposal, ...]:
        """Proposals for this moment, at most one per knob and kind."""
        ...
