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
    """Moves max_running_requests: up while decode leaves compute unused, down when it does not or its steps are late.

    grow: factor of one step up, above 1. shrink: factor of one step down, between 0 and 1.
    headroom: share of the ITL target that the decode step, grown by ``grow``, must stay under for the batch to grow.
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
        cap, running = view.knobs.max_running_requests, view.queue.running
        step_s, target_s = view.decode_step_s, view.slo.itl_s
        if view.decode is None or running == 0 or not view.bounds.movable(Knob.MAX_RUNNING_REQUESTS):
            return ()
        if step_s is not None and target_s is not None and step_s > target_s:
            # Late gaps have two causes, the decode step and the prefills between steps. The batch is only the first:
            # lowering it for the second would cost throughput and leave the gaps as they are. And it is the batch that
            # took so long, not an idle cap above it, nor the few requests that are left of it.
            batch = view.decode_requests or running
            reason = (
                f"a decode step of {batch:.0f} requests takes {step_s * 1e3:.0f} ms, "
                f"over the ITL target of {target_s * 1e3:.0f} ms"
            )
            return (self._towards(min(cap, batch) * self.shrink, reason, Strength.GUARD),)
        share = f"{view.decode.compute_fraction:.0%} of the compute ceiling"
        if view.decode.bound is Bound.COMPUTE:
            return (self._towards(cap * self.shrink, f"decode is compute-bound at {share}"),)
        if view.queue.waiting == 0 or running < self.busy * cap:
            return ()
        if step_s is not None and target_s is not None and step_s * self.grow > self.headroom * target_s:
            return ()
        if cap == view.bounds.ranges[Knob.MAX_RUNNING_REQUESTS].high:
            return ()
        reason = f"decode is {view.decode.bound.value}-bound at {share} and {view.queue.waiting} requests wait"
        return (self._towards(max(cap * self.grow, cap + 1), reason),)

    def _towards(self, value: float, reason: str, strength: Strength = Strength.OPTIMISER) -> Proposal:
        return Proposal("BatchSize", Knob.MAX_RUNNING_REQUESTS, max(1, int(value)), reason, strength=strength)
