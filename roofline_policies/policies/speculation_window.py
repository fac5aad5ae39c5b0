"""How many tokens are drafted per step: by predicted tokens per second, or by the ridge rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from roofline_policies.contract.decision import Knob, Range
from roofline_policies.contract.view import SchedulerView
from roofline_policies.device.roofline import Bound
from roofline_policies.errors import FieldError
from roofline_policies.policies.base import Proposal, Strength
from roofline_policies.steps.acceptance import Acceptance
from roofline_policies.steps.speculation import NOTHING, verify_shape
from roofline_policies.steps.times import StepTimes

KNOB = Knob.SPECULATION_WINDOW

MOST_WINDOWS = 8
"""Windows that one decision prices, each with one question to the predictor; the plain step may be one more."""

FIXED = "the server drafts nothing, or always as many"
NO_ACCEPTANCE = "nothing is known of acceptance yet"
NO_STEPS = "step times are not predicted"


@dataclass(frozen=True, slots=True)
class SpeculationWindow:
    """Sets speculation_window to the number of drafts that is predicted to yield most tokens per second::

        (1 + sum over i = 1..k of a_1 a_2 ... a_i) / (verify step of k + k * draft_share * plain decode step)

    with a_i the measured acceptance of the draft at position i, the last known one's for those beyond. 0 drafts cost
    exactly a plain decode step. A window whose step is predicted longer than the tightest target per gap of a running
    request is out; where none fits, the target is missed either way and rules nothing out.

    draft_share: time of one draft, as a share of a plain decode step: no draft model is priced.
    worth: gain in tokens per second below which the window stays as it is.

    What is known of acceptance comes from drafts: at 0 nothing new is learned of it, and a longer window than any yet
    is judged by the last position that was reached. At most ``MOST_WINDOWS`` windows are compared; of a longer range
    these are some spread over it and the neighbours of the current one.

    Raises:
        FieldError: a parameter outside its range.
    """

    draft_share: float = 0.15
    worth: float = 0.03

    def __post_init__(self) -> None:
        if not 0 <= self.draft_share <= 1:
            raise FieldError("draft_share", self.draft_share, "a share from 0 to 1")
        if not 0 <= self.worth < float("inf"):
            raise FieldError("worth", self.worth, "a relative gain, 0 or more")

    def idle_reason(self, view: SchedulerView) -> str | None:
        """Why nothing can be decided, None where it can."""
        return _idle_reason(view) or (NO_STEPS if view.steps is None else None)

    def propose(self, view: SchedulerView) -> tuple[Proposal, ...]:
        """A target for speculation_window, or nothing: where it stays, nothing runs, or ``idle_reason`` says why."""
        current, known, steps = view.knobs.speculation_window, view.acceptance, view.steps
        if self.idle_reason(view) is not None or current is None or known is None or steps is None:
            return ()
        if view.queue.running == 0:
            return ()
        step_s, chain, gap_s = self._seconds(view, steps), Acceptance(known), view.queue.gap_s
        prices = {window: step_s(window) for window in windows(view.bounds.ranges[KNOB], current)}
        speeds = {window: (1.0 + chain.mean_accepted(window)) / seconds for window, seconds in prices.items()}
        fitting = [window for window, seconds in prices.items() if gap_s is None or seconds <= gap_s]
        best = max(fitting or prices, key=speeds.__getitem__)  # the shortest of equals: they are in ascending order
        if best == current:
            return ()
        drafts = f"{best} drafts yield {1.0 + chain.mean_accepted(best):.2f} tokens in {prices[best] * 1e3:.1f} ms"
        if current not in prices:  # outside of what the configuration narrowed the range to
            return (Proposal("SpeculationWindow", KNOB, best, f"{drafts}, as predicted, most per second"),)
        if gap_s is not None and fitting and current not in fitting:
            reason = (
                f"a step of {current} drafts is predicted at {prices[current] * 1e3:.1f} ms, over the tightest "
                f"target per gap of {gap_s * 1e3:.1f} ms: {drafts}"
            )
            return (Proposal("SpeculationWindow", KNOB, best, reason, strength=Strength.GUARD),)
        gain = speeds[best] / speeds[current] - 1.0
        if gain <= self.worth:
            return ()
        reason = (
            f"at {known[0]:.0%} acceptance of the first draft {drafts}, as predicted: "
            f"{gain:.0%} more per second than {current} drafts"
        )
        return (Proposal("SpeculationWindow", KNOB, best, reason),)

    def _seconds(self, view: SchedulerView, steps: StepTimes) -> Callable[[int], float]:
        """Predicted time of a step by its number of drafts."""
        running = view.queue.running
        # The next step attends to the token that it computes as well; that one is in the shape already.
        context = max(0, view.queue.decode_context_tokens - running)
        plain_s = steps.step_s(prefill=NOTHING, decode=verify_shape(running, context, 0), graph=True)

        def seconds(window: int) -> float:
            if window == 0:
                return plain_s
            verify_s = steps.step_s(prefill=NOTHING, decode=verify_shape(running, context, window), graph=True)
            return verify_s + window * self.draft_share * plain_s

        return seconds


@dataclass(frozen=True, slots=True)
class RidgeSpeculationWindow:
    """The ridge rule for speculation_window: one more draft while decode is memory-bound, one less while compute-bound.

    A verify step has more rows than a plain one for the same weights and KV cache: memory-bound, they are nearly free.
    How many drafts are accepted does not enter, only that some are measured.
    """

    def idle_reason(self, view: SchedulerView) -> str | None:
        """Why nothing can be decided, None where it can."""
        return _idle_reason(view)

    def propose(self, view: SchedulerView) -> tuple[Proposal, ...]:
        """A target for speculation_window, or nothing."""
        current = view.knobs.speculation_window
        if self.idle_reason(view) is not None or current is None or view.queue.running == 0 or view.decode is None:
            return ()
        limits = view.bounds.ranges[KNOB]
        if view.decode.bound is Bound.MEMORY:
            window, then = (
                limits.clamp((current // limits.step + 1) * limits.step),
                "verifying one more draft is nearly free",
            )
        elif view.decode.bound is Bound.COMPUTE:
            window, then = limits.clamp(current - 1), "every draft that is verified costs compute"
        else:
            return ()
        if window == current:
            return ()
        reason = f"decode is {view.decode.bound.value}-bound at {view.decode.compute_fraction:.0%} of compute: {then}"
        return (Proposal("RidgeSpeculationWindow", KNOB, window, reason),)


def windows(limits: Range, current: int) -> list[int]:
    """The windows to compare, ascending: the whole range, or of one with more than ``MOST_WINDOWS`` a selection."""
    if limits.high - limits.low < MOST_WINDOWS:
        return sorted({limits.clamp(window) for window in range(limits.low, limits.high + 1)})
    quarters = [limits.low + (limits.high - limits.low) * part // 4 for part in range(5)]
    # A small step in the right direction is always among them, so repeated decisions reach what was left out here.
    near = [current - 1, current, (current // limits.step + 1) * limits.step]
    return sorted({limits.clamp(window) for window in (*quarters, *near)})


def _idle_reason(view: SchedulerView) -> str | None:
    if not view.bounds.movable(KNOB) or KNOB not in view.bounds.ranges or view.knobs.speculation_window is None:
        return view.bounds.immovable.get(KNOB, FIXED)
    return None if view.acceptance else NO_ACCEPTANCE
