"""Steps in flight: when the device is free, how old the running requests' tokens are then, what predictions miss."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from roofline_policies.contract.view import ForwardMode
from roofline_policies.model.batch import BatchShape
from roofline_policies.steps.correction import CorrectedSteps, Line, StepCorrection
from roofline_policies.steps.times import StepTimes

MOST_IN_FLIGHT = 512
"""Steps that are followed at most. Results come in batches, but never this many steps late; where they stay away, the
oldest steps are forgotten."""


class _Step(NamedTuple):
    mode: ForwardMode
    launched_s: float
    predicted_s: float
    tokens: bool


class StepsInFlight:
    """Follows steps from their launch to their end. O(1), ``token_age_s`` O(steps whose end was not told yet).

    Without a predictor, ``steps`` is None and no age is known.

    Under the overlap schedule the next step is decided while one still runs, so what matters is not the clock but when
    that one ends.
    """

    def __init__(self, times: StepTimes | None) -> None:
        self._times = times
        self._corrections = {mode: StepCorrection() for mode in ForwardMode}
        self._in_flight: deque[_Step] = deque(maxlen=MOST_IN_FLIGHT)
        self._done_s = float("-inf")
        self._token_s: float | None = None
        self._waited_for = False
        self._steps: CorrectedSteps | None = None

    @property
    def steps(self) -> CorrectedSteps | None:
        """The predictor with what was learned so far."""
        if self._steps is None and self._times is not None:
            self._steps = self._corrected(self._times)
        return self._steps

    @property
    def lines(self) -> dict[ForwardMode, Line]:
        """What was learned, for each kind of step that ran."""
        return {mode: learned.line for mode, learned in self._corrections.items() if learned.steps}

    def launched(self, mode: ForwardMode, now_s: float, prefill: BatchShape, decode: BatchShape) -> None:
        """Note that a step starts as soon as the device is free."""
        if self._times is None:
            return
        graph = mode is ForwardMode.DECODE
        predicted_s = self._times.step_s(prefill=prefill, decode=decode, graph=graph)
        # A prefill that finds nobody running gives its prompts their first tokens: those are the ones that age.
        tokens = mode is not ForwardMode.PREFILL or not self._waited_for
        self._waited_for = True
        self._in_flight.append(_Step(mode, now_s, predicted_s, tokens))

    def finished(self, mode: ForwardMode, took_s: float, done_s: float, *, alone: bool = True) -> None:
        """Note that the oldest step in flight ended. alone: see IterationRecord; of others nothing is learned."""
        if self._times is None or not self._in_flight:
            return
        step = self._in_flight.popleft()
        if step.mode is not mode:  # a result was lost: what is left cannot be told apart
            self._in_flight.clear()
            return
        if alone:
            self._corrections[mode].observe(step.predicted_s, took_s)
            self._steps = None
        self._done_s = done_s
        if step.tokens:
            self._token_s = done_s

    def forget(self) -> None:
        """Forget what is in flight, because steps ran that were not reported. What was learned is kept."""
        self._in_flight.clear()
        self.nobody_waits()

    def nobody_waits(self) -> None:
        """Note that no request waits for a next token."""
        self._token_s = None
        self._waited_for = False

    def free_s(self, now_s: float) -> float:
        """When the device has ended all steps in flight; now, where none is."""
        return max(self._done_s, now_s, *(end_s for _, end_s in self._ends()))  # each ends after the one before

    def token_age_s(self, now_s: float) -> float:
        """How old the running requests' last tokens are when the next step can start; 0 where nobody waits."""
        if not self._waited_for:
            return 0.0
        free_s, token_s = self._done_s, self._token_s
        for step, free_s in self._ends():
            if step.tokens:
                token_s = free_s
        return 0.0 if token_s is None else max(0.0, max(free_s, now_s) - token_s)

    def _ends(self) -> Iterator[tuple[_Step, float]]:
        """The steps in flight, oldest first, each with its expected end."""
        end_s = self._done_s
        for step in self._in_flight:
            end_s = max(end_s, step.launched_s) + self._corrections[step.mode].line.seconds(step.predicted_s)
            yield step, end_s

    def _corrected(self, times: StepTimes) -> CorrectedSteps:
        known = self._corrections
        prefill, decode, mixed = known[ForwardMode.PREFILL], known[ForwardMode.DECODE], known[ForwardMode.MIXED]
        # A kind of step that has not run errs most likely as its nearest relative does.
        of_prefill = prefill.line if prefill.steps or not mixed.steps else mixed.line
        of_mixed = mixed.line if mixed.steps or not prefill.steps else prefill.line
        return CorrectedSteps(times, of_prefill, decode.line, of_mixed, {})
