"""Static: the settings the server was launched with."""

from __future__ import annotations

from dataclasses import dataclass

from roofline_policies.contract.decision import Knob
from roofline_policies.contract.view import SchedulerView
from roofline_policies.policies.base import Proposal


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
        if view.knobs.new_token_permille < 1000 and view.bounds.movable(Knob.NEW_TOKEN_PERMILLE):
            found.append(Proposal("Static", Knob.NEW_TOKEN_PERMILLE, 1000, "the launch setting"))
        return tuple(found)
