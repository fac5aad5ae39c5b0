"""Storm: a policy that moves every knob at random in every decision. For finding out what a server survives."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from roofline_policies.contract.decision import Knob, KnobValue
from roofline_policies.contract.view import SchedulerView
from roofline_policies.policies.base import Proposal

AT_AN_END = 0.3
"""Share of values that are one end of the knob's range: limits fail where they are reached."""


@dataclass(frozen=True, slots=True)
class Storm:
    """Proposes a value within its range for every knob that can be moved.

    seed: equal seeds give equal proposals for the decision of equal number. defer: share of decisions that keep
    prompts out. speak: share of knobs that a decision proposes a value for; the others are left to the launch setting.
    """

    seed: int = 0
    defer: float = 0.4
    speak: float = 0.9

    def propose(self, view: SchedulerView) -> tuple[Proposal, ...]:
        """One target for each knob that is spoken of."""
        draw = Random(f"{self.seed} {view.decisions}")
        return tuple(
            Proposal("Storm", knob, self._value(view, knob, draw), "at random")
            for knob in Knob
            if view.bounds.movable(knob) and draw.random() < self.speak
        )

    def _value(self, view: SchedulerView, knob: Knob, draw: Random) -> KnobValue:
        if knob is Knob.DEFER_PREFILL:
            return draw.random() < self.defer
        if knob not in view.bounds.ranges:
            return draw.random() < 0.5
        bounds = view.bounds.ranges[knob]
        if draw.random() < AT_AN_END:
            return draw.choice((bounds.low, bounds.high))
        return bounds.clamp(draw.randint(bounds.low, bounds.high))
