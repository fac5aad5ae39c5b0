"""From merged proposals to a decision: bounds, hysteresis and dwell, in this one place.

Some knobs cost something to change (a drain, a graph switch): they move at most once per dwell and only by a
noticeable step, and keep their value when no policy asks. The others cost nothing: they are chosen afresh every step,
and go back to the launch setting when no policy asks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from roofline_policies.contract.decision import Bounds, Decision, Knob, KnobChange, Knobs, KnobValue
from roofline_policies.errors import FieldError
from roofline_policies.policies.base import Kind, Proposal

COSTLY_KNOBS = frozenset({
    Knob.MAX_RUNNING_REQUESTS, Knob.DEFENDED_FROM_US, Knob.NEW_TOKEN_PERMILLE, Knob.SPECULATION_WINDOW, Knob.QUANT_TIER,
})  # fmt: skip
"""A drain, requests that are given up, requests that are computed again, a switch of captured graphs, other kernels.
The order of admission and the chunk cost nothing."""

DWELL_AT_LEAST_S = {Knob.DEFENDED_FROM_US: 5.0}
"""Seconds between two changes of a knob at least, where they are more than the settings ask for. Who is given up is
lost for the rest of its answer, which takes seconds; a choice that does not last for several answers saves nobody. A
judgement: higher follows traffic that shifts later."""


DWELL_AT_MOST_S = {Knob.SPECULATION_WINDOW: 0.05}
"""Seconds between two changes of a knob at most. What another number of drafts needs was captured at the start: a
switch swaps attributes between two steps, and no request waits for it. A judgement: about as long as the few steps
after which its result is seen."""


@dataclass(frozen=True, slots=True)
class TransitionSettings:
    """dwell_s: least seconds between two changes of a costly knob. hysteresis: least relative change worth making.

    Raises:
        FieldError: a value outside its range.
    """

    dwell_s: float = 1.0
    hysteresis: float = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.dwell_s < float("inf"):
            raise FieldError("dwell_s", self.dwell_s, "a number of seconds, 0 or more")
        if not 0 <= self.hysteresis < 1:
            raise FieldError("hysteresis", self.hysteresis, "a share from 0 to below 1")


class Transitions:
    """Applies proposals to the current knobs. Holds the time of each costly knob's last change and nothing else."""

    def __init__(self, settings: TransitionSettings, bounds: Bounds, launch: Knobs) -> None:
        self._settings = settings
        self._bounds = bounds
        self._launch = launch
        self._movable = _movable(bounds, launch)
        self._last_change_s: dict[Knob, float] = {}

    def adopt(self, settings: TransitionSettings, bounds: Bounds, now_s: float, current: Knobs) -> Decision:
        """Go on under other settings and bounds; what is out of the new bounds moves into them at once.

        Dwells go on: other settings are no reason to drain twice. A costly knob that moves here starts a new one.
        """
        self._settings, self._bounds = settings, bounds
        self._movable = _movable(bounds, self._launch)
        changes = []
        for knob, _ in self._movable:
            old: KnobValue = getattr(current, knob)
            new = bounds.clamp(knob, old)
            if new != old:
                changes.append(
                    KnobChange(knob, old, new, "out of the bounds of the policy that was loaded", "controller")
                )
                if knob in COSTLY_KNOBS:
                    self._last_change_s[knob] = now_s
        return Decision(current.moved(changes), tuple(changes))

    def decide(self, now_s: float, current: Knobs, proposals: Iterable[Proposal]) -> Decision:
        """The next setting. ``proposals`` hold at most one target and one cap per knob (see policies.compose.merge)."""
        targets: dict[Knob, Proposal] = {}
        caps: dict[Knob, Proposal] = {}
        for proposal in proposals:
            (targets if proposal.kind is Kind.TARGET else caps)[proposal.knob] = proposal
        changes = []
        for knob, at_launch in self._movable:
            target, cap, old = targets.get(knob), caps.get(knob), getattr(current, knob)
            if cap is None and old == (at_launch if target is None else self._bounds.clamp(knob, target.value)):
                continue  # it stands where it should: the common case
            change = self._change(now_s, knob, old, target, cap)
            if change is not None:
                changes.append(change)
        return Decision(current.moved(changes), tuple(changes)) if changes else Decision(current)

    def _change(
        self, now_s: float, knob: Knob, old: KnobValue, target: Proposal | None, cap: Proposal | None
    ) -> KnobChange | None:
        costly = knob in COSTLY_KNOBS
        value: KnobValue = old if costly else getattr(self._launch, knob)
        if target is None and cap is None and value == old:
            return None
        reason, policy = "no policy asks for anything else: back to the launch setting", "controller"
        if target is not None:
            value, reason, policy = target.value, target.reason, target.policy
        if cap is not None and value > cap.value:
            value, reason, policy = cap.value, cap.reason, cap.policy
        value = self._bounds.clamp(knob, value)
        if value == old or (costly and not self._worth_it(now_s, knob, old, value)):
            return None
        if costly:
            self._last_change_s[knob] = now_s
        return KnobChange(knob, old, value, reason, policy)

    def _worth_it(self, now_s: float, knob: Knob, old: KnobValue, new: KnobValue) -> bool:
        dwell_s = max(self._settings.dwell_s, DWELL_AT_LEAST_S.get(knob, 0.0))
        dwell_s = min(dwell_s, DWELL_AT_MOST_S.get(knob, dwell_s))
        if now_s - self._last_change_s.get(knob, float("-inf")) < dwell_s:
            return False
        # Reaching a bound is always worth it: otherwise a small last step could never be taken.
        limits = self._bounds.ranges.get(knob)
        at_bound = limits is not None and new in (
            self._bounds.clamp(knob, limits.low),
            self._bounds.clamp(knob, limits.high),
        )
        return at_bound or abs(new - old) >= self._settings.hysteresis * old


def _movable(bounds: Bounds, launch: Knobs) -> list[tuple[Knob, KnobValue]]:
    """The knobs that can be moved, each with its value at launch."""
    values = ((knob, launch.get(knob)) for knob in Knob if bounds.movable(knob))
    return [(knob, value) for knob, value in values if value is not None]
