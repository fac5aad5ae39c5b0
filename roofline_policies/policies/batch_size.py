"""BatchSize: how many requests decode together, by the ridge rule."""

from __future__ import annotations

from dataclasses import dataclass

from roofline_policies.decision import Knob
from roofline_policies.errors import FieldError
from roofline_policies.policies.base import Proposal, Strength
from roofline_policies.roofline import Bound
from roofline_policies.view import SchedulerView


@dataclass(frozen=True, slots=True)
class BatchSize:
    """Moves max_running_requests: up while decode leaves compute unused, down when it does not or when gaps are late.

    grow: factor of one step up, above 1. shrink: factor of one step down, between 0 and 1.
    headroom: share of the ITL target that the measured ITL must stay under before the batch may grow.
    busy: share of the current cap that must be in use before raising it can matter.

    Raises:
        FieldError: a parameter outside its range.
    """

    grow: float = 1.25
    shrink: float = 0.8
    headroom: float = 0.8
    busy: float = 0.9

    def __post_init__(self) -> None:
        if not self.grow > 1:
            raise FieldError("grow", self.grow, "a factor greater than 1")
        for key in ("shrink", "headroom", "busy"):
            if not 0 < getattr(self, key) <= 1:
                raise FieldError(key, getattr(self, key), "a share greater than 0 and at most 1")

    def propose(self, view: SchedulerView) -> tuple[Proposal, ...]:
        """A target for max_running_requests, or nothing."""
        cap = view.knobs.max_running_requests
        itl, target = view.itl_s, view.slo.itl_s
        if itl is not None and target is not None and itl > target:
            # Requests beyond the ones running are not the cause of late gaps: lower what runs, not an idle cap.
            lower = min(cap, view.queue.running) * self.shrink
            reason = f"ITL is at {itl * 1e3:.0f} ms, over the target of {target * 1e3:.0f} ms"
            return (self._towards(lower, reason, Strength.GUARD),)
        if view.decode is None:
            return ()
        if view.decode.bound is Bound.COMPUTE:
            share = f"{view.decode.compute_fraction:.0%} of the compute ceiling"
            return (self._towards(cap * self.shrink, f"decode is compute-bound at {share}"),)
        if view.queue.waiting == 0 or view.queue.running < self.busy * cap:
            return ()
        if itl is not None and target is not None and itl > self.headroom * target:
            return ()
        share = f"{view.decode.compute_fraction:.0%} of the compute ceiling"
        reason = f"decode is {view.decode.bound.value}-bound at {share} and {view.queue.waiting} requests wait"
        return (self._towards(max(cap * self.grow, cap + 1), reason),)

    def _towards(self, value: float, reason: str, strength: Strength = Strength.OPTIMISER) -> Proposal:
        return Proposal("BatchSize", Knob.MAX_RUNNING_REQUESTS, max(1, int(value)), reason, strength=strength)
