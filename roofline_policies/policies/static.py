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
    running requests by then, and a knob that is costly to move stays where no policy asks: so it asks for the launch
    cap.
    """

    def propose(self, view: SchedulerView) -> tuple[Proposal, ...]:
        """The cap at launch, which is the upper end of its range, where the cap is another; else nothing."""
        limits = view.bounds.ranges.get(Knob.MAX_RUNNING_REQUESTS)
        if limits is None or view.knobs.max_running_requests >= limits.high:
            return ()
        return (Proposal("Static", Knob.MAX_RUNNING_REQUESTS, limits.high, "the launch setting"),)
