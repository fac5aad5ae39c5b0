"""Whether prefill runs in 8 bits: while prompts would be late otherwise, or by the ridge rule.

Tier 0 is the precision of the launch. Tier 1 runs the matrix products of prefill and mixed steps in 8 bits, under a
higher compute roof; decode steps stay as they are. It costs accuracy, so it is for when it is needed.
"""

from __future__ import annotations

from dataclasses import dataclass

from roofline_policies.contract.decision import Knob
from roofline_policies.contract.view import SchedulerView
from roofline_policies.device.roofline import Bound
from roofline_policies.errors import FieldError
from roofline_policies.policies.base import Proposal

KNOB = Knob.QUANT_TIER

ONE_PRECISION = "only one precision was loaded"


@dataclass(frozen=True, slots=True)
class QuantTier:
    """Sets quant_tier to 1 while prompts are predicted to be late, and to 0 while they are not.

    They are while a waiting request cannot be in time (``queue.relegated``), or while the prompt tokens that come next,
    at the rate at which prompts are computed, take longer than ``late_share`` of the server's TTFT target.

    late_share: part of ``slo.ttft_s`` that the next prompt tokens may take in the launch precision.

    The server counts the tokens that come next up to one chunk, so the second sign shows with chunks that are long for
    the target; a queue of many prompts shows in the first, where the server passes requests over. The rate is that of
    the tier in force: at a load between the two tiers' rates it goes to and fro, no faster than the dwell of costly
    knobs allows.

    Raises:
        FieldError: a parameter outside its range.
    """

    late_share: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.late_share <= 1:
            raise FieldError("late_share", self.late_share, "a share greater than 0 and at most 1")

    def idle_reason(self, view: SchedulerView) -> str | None:
        """Why nothing can be decided, None where it can."""
        return _idle_reason(view)

    def propose(self, view: SchedulerView) -> tuple[Proposal, ...]:
        """A target for quant_tier, or nothing: where it stays, or ``idle_reason`` says why."""
        if self.idle_reason(view) is not None:
            return ()
        late = self._late(view)
        if late is not None:
            return _towards("QuantTier", view, 1, f"{late}: prefill in 8 bits")
        return _towards("QuantTier", view, 0, "no prompt is predicted to be late: back to the launch precision")

    def _late(self, view: SchedulerView) -> str | None:
        """The sign that prompts will be late, in words."""
        if view.queue.relegated > 0:
            return f"{view.queue.relegated} waiting requests cannot be in time"
        tokens, rate, target_s = view.queue.next_prefill_tokens, view.prefill_tokens_per_s, view.slo.ttft_s
        if not rate or target_s is None or tokens / rate <= self.late_share * target_s:
            return None
        return (
            f"the next {tokens} prompt tokens are predicted to take {tokens / rate * 1e3:.0f} ms, "
            f"over {self.late_share:.0%} of the TTFT target of {target_s * 1e3:.0f} ms"
        )


@dataclass(frozen=True, slots=True)
class RidgeQuantTier:
    """The ridge rule for quant_tier: 1 while prefill is compute-bound and something waits, else 0."""

    def idle_reason(self, view: SchedulerView) -> str | None:
        """Why nothing can be decided, None where it can."""
        return _idle_reason(view)

    def propose(self, view: SchedulerView) -> tuple[Proposal, ...]:
        """A target for quant_tier, or nothing: where it stays, or ``idle_reason`` says why."""
        if self.idle_reason(view) is not None:
            return ()
        if view.prefill is None or view.prefill.bound is not Bound.COMPUTE:
            return _towards("RidgeQuantTier", view, 0, "prefill is not compute-bound: 8 bits would gain little")
        if view.queue.waiting == 0:
            return _towards("RidgeQuantTier", view, 0, "nothing waits: back to the launch precision")
        share = f"{view.prefill.compute_fraction:.0%} of the compute ceiling"
        reason = f"prefill is compute-bound at {share} and {view.queue.waiting} requests wait: prefill in 8 bits"
        return _towards("RidgeQuantTier", view, 1, reason)


def _towards(policy: str, view: SchedulerView, tier: int, reason: str) -> tuple[Proposal, ...]:
    return () if tier == view.knobs.quant_tier else (Proposal(policy, KNOB, tier, reason),)


def _idle_reason(view: SchedulerView) -> str | None:
    if not view.bounds.movable(KNOB) or KNOB not in view.bounds.ranges or view.knobs.quant_tier is None:
        return view.bounds.immovable.get(KNOB, ONE_PRECISION)
    return None
