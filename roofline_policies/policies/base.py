"""The policy contract: a view goes in, proposals come out. And the policy that proposes nothing but the launch."""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Static:
    """Every knob has its launch value, as far as the bounds go. The baseline of every comparison.

    On a server that was launched with it, it proposes nothing. One that adopts it while it runs may have another cap on
    running requests by then, or have given a class up, and a knob that is costly to move stays where no policy asks: so
    it asks for the launch cap, gives nobody up, and leaves the room for running answers to the server.
    """

    def propose(self, view: SchedulerView) -> tuple[Proposal, ...]:
        """The cap at launch, which is the upper end of its range, where the cap is another; nobody given up, where
        somebody is; the server's own estimate of answers, where less is kept; else nothing."""
        found = []
        limits = view.bounds.ranges.get(Knob.MAX_RUNNING_REQUESTS)
        if limits is not None and view.knobs.max_running_requests < limits.high:
            found.append(Proposal("Static", Knob.MAX_RUNNING_REQUESTS, limits.high, "the launch setting"))
        if view.knobs.defended_from_us and view.bounds.movable(Knob.DEFENDED_FROM_US):
            found.append(Proposal("Static", Knob.DEFENDED_FROM_US, 0, "the launch setting"))
        if view.knobs.new_token_permille and view.bounds.movable(Knob.NEW_TOKEN_PERMILLE):
            found.append(Proposal("Static", Knob.NEW_TOKEN_PERMILLE, 0, "the launch setting"))
        return tuple(found)
