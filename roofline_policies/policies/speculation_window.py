"""How many tokens are drafted per step: by predicted tokens per second, or by the ridge rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from roofline_policies.contract.decision import Bounds, Knob
from roofline_policies.contract.view import SchedulerView
from roofline_policies.device.roofline import Bound
from roofline_policies.errors import FieldError
from roofline_policies.model.batch import BatchShape
from roofline_policies.policies.base import Proposal, Strength
from roofline_policies.policies.room import least_chunk
from roofline_policies.policies.shapes import NO_ACCEPTANCE, context_before
from roofline_policies.steps.acceptance import Acceptance
from roofline_policies.steps.correction import CorrectedSteps
from roofline_policies.steps.speculation import NOTHING, verify_shape

KNOB = Knob.SPECULATION_WINDOW

MOST_WINDOWS = 8
"""Windows that one decision prices, each with one question to the predictor."""

PROBES_APART = 20.0
"""Times as long as a probe lasts from one to the next at least: what is expected of it may be wrong."""

PROBE_S = 0.1
"""Seconds for which a probe drafts: a server that only decodes decides ten times a second."""

FIXED = "the server drafts nothing, or always as many"
NO_STEPS = "step times are not predicted"


@dataclass(frozen=True, slots=True)
class SpeculationWindow:
    """Sets speculation_window to the number of drafts that is predicted to yield most tokens per second::

        (1 + sum over i = 1..k of a_1 a_2 ... a_i) / predicted seconds of a step that drafts and verifies k

    with a_i the acceptance of the draft at position i as it is now, the last known one's for those beyond. What
    drafting takes is learned from the steps (``LearnedKind``); before any ran it is a first guess.

    A window is out whose step may take longer than the tightest target per gap of a running request, with the margin;
    where prompts wait, one that leaves the least chunk no room in that gap. Where none fits, only the targets that some
    other window keeps rule any out.

    worth: gain in tokens per second up to which the window stays as it is.
    probe_share: share of its time that a server which drafts nothing spends, at most, on finding out whether it should.
        A probe lasts PROBE_S, or two steps; by how much slower it is expected to be says how often one comes.

    A window that never ran is tried once, for a decision or two, where it would be the best if its drafts took no more
    than the first guess; only then is it known what it takes. At most ``MOST_WINDOWS`` windows are compared.

    Raises:
        FieldError: a parameter outside its range.
    """

    worth: float = 0.01
    probe_share: float = 0.005

    def __post_init__(self) -> None:
        if not 0 <= self.worth < float("inf"):
            raise FieldError("worth", self.worth, "a relative gain, 0 or more")
        if not 0 <= self.probe_share < 1:
            raise FieldError("probe_share", self.probe_share, "a share from 0 to below 1")

    def idle_reason(self, view: SchedulerView) -> str | None:
        """Why nothing can be decided, None where it can. At 0 drafts it looks what is accepted."""
        if (reason := _idle_reason(view)) is not None:
            return reason
        if not view.acceptance and view.knobs.speculation_window:
            return NO_ACCEPTANCE
        return NO_STEPS if view.steps is None else None

    def propose(self, view: SchedulerView) -> tuple[Proposal, ...]:
        """A target for speculation_window, or nothing: where it stays, nothing runs, or ``idle_reason`` says why."""
        current, steps = view.knobs.speculation_window, view.steps
        if self.idle_reason(view) is not None or current is None or steps is None or view.queue.running == 0:
            return ()
        options = _options(view, steps, current)
        fitting = _fitting(view, steps, options)
        best = max(fitting, key=_speed)  # the shortest of equals: they are in ascending order
        now = next((option for option in options if option.window == current), None)
        untried = self._untried(view, options, fitting, best)
        if untried is not None:
            reason = f"what {untried.window} drafts take is not known yet: {untried.said}, by the first guess"
            return self._target(current, untried.window, reason)
        if best.window == 0 and current == 0 and (probe := self._probe(view, fitting)) is not None:
            reason = (
                f"nothing was drafted for {view.since_drafts_s or 0.0:.1f} s: {probe.window} drafts are tried to see "
                "what is accepted now"
            )
            return self._target(current, probe.window, reason)
        if now is None:  # outside of what the configuration narrowed the range to
            return self._target(current, best.window, f"{best.said}, as predicted, most per second")
        if now not in fitting:
            reason = (
                f"a step of {current} drafts takes up to {now.slow_s * 1e3:.1f} ms, too long for the tightest target "
                f"per gap of {(view.queue.gap_s or 0.0) * 1e3:.1f} ms: {best.said}"
            )
            return self._target(current, best.window, reason, Strength.GUARD)
        gain = _speed(best) / _speed(now) - 1.0
        if gain <= self.worth:
            return ()
        accepted = "" if not view.acceptance else f"at {view.acceptance[0]:.0%} acceptance of the first draft "
        reason = f"{accepted}{best.said}, as predicted: {gain:.0%} more per second than {current} drafts"
        return self._target(current, best.window, reason)

    @staticmethod
    def _untried(
        view: SchedulerView, options: Sequence[_Option], fitting: Sequence[_Option], best: _Option
    ) -> _Option | None:
        """The window to be tried next: one that never ran and would be the best by the first guess; None: no such."""
        times, run = view.predictor, view.windows_run
        if times is None or view.acceptance is None or not run:
            return None  # nothing is known yet of the window that runs either
        if all(option.window in run for option in fitting):
            return None
        guesses = {option.window: times.step_s(prefill=NOTHING, decode=option.shape, graph=True) for option in options}
        # What the guess misses grows with the drafts: longer windows than one that ran miss at least what it did.
        missed = min((option.seconds / guesses[option.window] for option in options if option.window in run), default=1)
        for option in fitting:
            if option.window in run:
                continue
            guessed_s = guesses[option.window] * (missed if option.window > run[0] else 1.0)
            if option.tokens / guessed_s >= _speed(best):
                return option
        return None

    def _probe(self, view: SchedulerView, fitting: Sequence[_Option]) -> _Option | None:
        """The best window that drafts, where it is time to look what is accepted; None otherwise."""
        drafting = [option for option in fitting if option.window]
        if not drafting or not self.probe_share:
            return None
        option = max(drafting, key=_speed)
        lasts_s = max(PROBE_S, 2.0 * option.seconds)
        # At 0 drafts the best one is no better, as far as is known: this is what a probe is expected to cost.
        loses = 1.0 - _speed(option) / max(_speed(one) for one in fitting)
        every_s = lasts_s * max(loses / self.probe_share, PROBES_APART)
        return option if view.since_drafts_s is None or view.since_drafts_s >= every_s else None

    @staticmethod
    def _target(
        current: int, window: int, reason: str, strength: Strength = Strength.OPTIMISER
    ) -> tuple[Proposal, ...]:
        if window == current:
            return ()
        return (Proposal("SpeculationWindow", KNOB, window, reason, strength=strength),)


class _Option(NamedTuple):
    """A window, the step that it makes, tokens per request that it yields, and seconds: expected, hardly exceeded."""

    window: int
    shape: BatchShape
    tokens: float
    seconds: float
    slow_s: float

    @property
    def said(self) -> str:
        """For people."""
        return f"{self.window} drafts yield {self.tokens:.2f} tokens in {self.seconds * 1e3:.1f} ms"


def _speed(option: _Option) -> float:
    return option.tokens / option.seconds


def _options(view: SchedulerView, steps: CorrectedSteps, current: int) -> list[_Option]:
    """The windows that are compared, ascending."""
    queue, chain = view.queue, Acceptance(view.acceptance) if view.acceptance else None
    context, found = context_before(view), []
    for window in windows(view.bounds, current):
        shape = verify_shape(queue.running, context, window)
        seconds = steps.step_s(prefill=NOTHING, decode=shape, graph=True)
        slow_s = seconds * steps.margin(prefill=False, decode=True, rows=shape.new_tokens)
        found.append(_Option(window, shape, 1.0 + (chain.mean_accepted(window) if chain else 0.0), seconds, slow_s))
    return found


def _fitting(view: SchedulerView, steps: CorrectedSteps, options: list[_Option]) -> list[_Option]:
    """Those that the targets leave; all, where none is kept anyway."""
    gap_s, queue = view.queue.gap_s, view.queue
    if gap_s is None:
        return options
    fitting = [option for option in options if option.slow_s <= gap_s]
    if queue.next_prefill_tokens and fitting:
        least_s = steps.slow_s(prefill=least_chunk(view))
        beside = [option for option in fitting if option.slow_s + least_s <= gap_s]
        fitting = beside or fitting
    return fitting or options


@dataclass(frozen=True, slots=True)
class RidgeSpeculationWindow:
    """The ridge rule for speculation_window: one more draft while decode is memory-bound, one less while compute-bound.

    A verify step has more rows than a plain one for the same weights and KV cache: memory-bound, they are nearly free.
    How many drafts are accepted does not enter, only that some are measured.
    """

    def idle_reason(self, view: SchedulerView) -> str | None:
        """Why nothing can be decided, None where it can."""
        return _idle_reason(view) or (None if view.acceptance else NO_ACCEPTANCE)

    def propose(self, view: SchedulerView) -> tuple[Proposal, ...]:
        """A target for speculation_window, or nothing."""
        current = view.knobs.speculation_window
        if self.idle_reason(view) is not None or current is None or view.queue.running == 0 or view.decode is None:
            return ()
        allowed = view.bounds.values(KNOB)
        if view.decode.bound is Bound.MEMORY:
            window = next((one for one in allowed if one > current), allowed[-1])
            then = "verifying one more draft is nearly free"
        elif view.decode.bound is Bound.COMPUTE:
            window = next((one for one in reversed(allowed) if one < current), allowed[0])
            then = "every draft that is verified costs compute"
        else:
            return ()
        if window == current:
            return ()
        reason = f"decode is {view.decode.bound.value}-bound at {view.decode.compute_fraction:.0%} of compute: {then}"
        return (Proposal("RidgeSpeculationWindow", KNOB, window, reason),)


def windows(bounds: Bounds, current: int) -> list[int]:
    """The windows to compare, ascending: all that there are, or of more than ``MOST_WINDOWS`` a selection."""
    allowed = bounds.values(KNOB)
    if len(allowed) <= MOST_WINDOWS:
        return list(allowed)
    quarters = [allowed[(len(allowed) - 1) * part // 4] for part in range(5)]
    # A small step in the right direction is always among them, so repeated decisions reach what was left out here.
    at = sum(one <= current for one in allowed)
    near = [allowed[min(max(place, 0), len(allowed) - 1)] for place in (at - 2, at - 1, at)]
    return sorted({*quarters, *near})


def _idle_reason(view: SchedulerView) -> str | None:
    if not view.bounds.movable(KNOB) or KNOB not in view.bounds.ranges or view.knobs.speculation_window is None:
        return view.bounds.immovable.get(KNOB, FIXED)
    return None
