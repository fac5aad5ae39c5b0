"""Steps in flight: when the device is free, how old the running requests' tokens are then, what predictions miss."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

from roofline_policies.contract.view import ForwardMode
from roofline_policies.model.batch import BatchShape
from roofline_policies.steps.correction import ROW_SUMS, CorrectedSteps, Line, sums_of
from roofline_policies.steps.evidence import FADES_EVERY, Whole
from roofline_policies.steps.learned import LearnedKind, Shown
from roofline_policies.steps.times import StepTimes

MOST_IN_FLIGHT = 512
"""Steps that are followed at most. Results come in batches, but never this many steps late; where they stay away, the
oldest steps are forgotten."""


OF_PROMPTS, OF_BOTH, OF_ROWS, OF_DRAFTS, OF_MOVING_DRAFTS = 2, 4, 2, 3, 7
"""How many of ``sums_of`` a step depends on. Without drafts a request has one row: there is nothing to tell apart."""

TRIED = 3
"""Steps after which it is known what a number of drafts takes. A judgement: the first may have compiled something."""

DRAFTS = ROW_SUMS.index("drafts")

OF_THE_BATCH = tuple(place for place, name in enumerate(ROW_SUMS) if name not in ("drafts", "catching up"))
"""What costs nothing of its own where the number of drafts moves: in a small batch rows and KV tokens go with the
drafts, and what was put down to them there would be many times as much in a large one."""


PLANNED = 6
"""Sums of a BatchShape that a plan has, up to its logit rows. What is known of a batch only once it runs, such as what
its attention kernel does in vain, is left out of its prediction: else plans, which have to do without, would be priced
by a predictor that was corrected for other questions."""


class Told(NamedTuple):
    """What was expected of a step when it was launched: seconds, and the factor that it hardly ever exceeds."""

    predicted_s: float
    margin: float

    @property
    def slow_s(self) -> float:
        """Seconds that it hardly ever exceeds."""
        return self.predicted_s * self.margin


class _Step(NamedTuple):
    """expected_s: predicted_s with what was learned when it was launched."""

    mode: ForwardMode
    launched_s: float
    expected_s: float
    predicted_s: float
    sums: tuple[int, ...]
    rows: int
    tokens: bool


class StepsInFlight:
    """Follows steps from their launch to their end. O(1), ``token_age_s`` O(steps whose end was not told yet).

    drafts: whether decode steps run several rows per request. moving: whether their number moves. Without a predictor
    (times), ``steps`` is None and no age is known.

    Under the overlap schedule the next step is decided while one still runs, so what matters is not the clock but when
    that one ends.
    """

    def __init__(self, times: StepTimes | None, *, drafts: bool = False, moving: bool = False) -> None:
        self._times = times
        self._drafts = drafts
        self._moving = moving
        self._whole, self.kinds = self._untaught()
        self._until_fade = FADES_EVERY
        self._in_flight: deque[_Step] = deque(maxlen=MOST_IN_FLIGHT)
        self._done_s = float("-inf")
        self._token_s: float | None = None
        self._waited_for = False
        self._steps: CorrectedSteps | None = None

    def _untaught(self) -> tuple[Whole, dict[ForwardMode, LearnedKind]]:
        whole = Whole()
        of_decode = LearnedKind(OF_DRAFTS if self._drafts else OF_ROWS, whole)
        if self._moving:
            of_decode = LearnedKind(OF_MOVING_DRAFTS, whole, DRAFTS, OF_THE_BATCH)
        return whole, {
            ForwardMode.PREFILL: LearnedKind(OF_PROMPTS, whole),
            ForwardMode.DECODE: of_decode,
            ForwardMode.MIXED: LearnedKind(OF_BOTH, whole),
        }

    def kept(self) -> dict[str, Any]:
        """What was learned, ready for JSON, for ``restore`` of another one. O(1), of fixed size."""
        return {"errors": self._whole.kept(), **{mode.value: learned.kept() for mode, learned in self.kinds.items()}}

    def restore(self, kept: Mapping[str, Any]) -> None:
        """Go on from what another one learned, in place of what was learned here. All of it, or nothing.

        Raises:
            ValueError, KeyError, TypeError: it is not what ``kept`` of a server like this one gives.
        """
        whole, kinds = self._untaught()
        whole.restore(kept["errors"])
        for mode, learned in kinds.items():
            learned.restore(kept[mode.value])
        self._whole, self.kinds, self._steps = whole, kinds, None

    @property
    def steps(self) -> CorrectedSteps | None:
        """The predictor with what was learned so far."""
        if self._steps is None and self._times is not None:
            self._steps = self._corrected(self._times)
        return self._steps

    @property
    def windows_run(self) -> list[int]:
        """Numbers of drafts of which as many steps ran as tell what they take; empty where the number does not move."""
        return [window for window, steps in self.kinds[ForwardMode.DECODE].groups.items() if steps >= TRIED]

    @property
    def lines(self) -> dict[ForwardMode, Line]:
        """What was learned, for each kind of step that ran."""
        return {mode: learned.line for mode, learned in self.kinds.items() if learned.steps or learned.rejected}

    @property
    def shown(self) -> dict[ForwardMode, Shown]:
        """What people are shown of it."""
        return {mode: learned.shown for mode, learned in self.kinds.items() if learned.steps or learned.rejected}

    def launched(self, mode: ForwardMode, now_s: float, prefill: BatchShape, decode: BatchShape) -> Told | None:
        """Note that a step starts as soon as the device is free, and tell what is expected of it."""
        if self._times is None:
            return None
        graph = mode is ForwardMode.DECODE
        if not graph:
            prefill = BatchShape(*prefill[:PLANNED])
        if decode.requests:
            decode = BatchShape(*decode[:PLANNED])
        predicted_s = self._times.step_s(prefill=prefill, decode=decode, graph=graph)
        # A prefill that finds nobody running gives its prompts their first tokens: those are the ones that age.
        tokens = mode is not ForwardMode.PREFILL or not self._waited_for
        self._waited_for = True
        sums, rows, line = sums_of(prefill, decode), prefill.new_tokens + decode.new_tokens, self.kinds[mode].line
        expected_s = line.seconds(predicted_s, sums, rows)
        self._in_flight.append(_Step(mode, now_s, expected_s, predicted_s, sums, rows, tokens))
        return Told(expected_s, line.margin(rows))

    def finished(self, mode: ForwardMode, took_s: float, done_s: float, *, alone: bool = True) -> None:
        """Note that the oldest step in flight ended. alone: see IterationRecord; of others nothing is learned."""
        if self._times is None or not self._in_flight:
            return
        step = self._in_flight.popleft()
        if step.mode is not mode:  # a result was lost: what is left cannot be told apart
            self._in_flight.clear()
            return
        if alone:
            self.kinds[mode].observe(step.predicted_s, step.sums, step.rows, took_s)
            self._until_fade -= 1
            if not self._until_fade:
                self._until_fade = FADES_EVERY
                for learned in self.kinds.values():
                    learned.fade()
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
        end_s = self._done_s
        for step in self._in_flight:  # each begins when the one before has ended
            end_s = max(end_s, step.launched_s) + step.expected_s
        return max(end_s, now_s)

    def token_age_s(self, now_s: float) -> float:
        """How old the running requests' last tokens are when the next step can start; 0 where nobody waits."""
        if not self._waited_for:
            return 0.0
        free_s, token_s = self._done_s, self._token_s
        for step in self._in_flight:
            free_s = max(free_s, step.launched_s) + step.expected_s
            if step.tokens:
                token_s = free_s
        return 0.0 if token_s is None else max(0.0, max(free_s, now_s) - token_s)

    def _corrected(self, times: StepTimes) -> CorrectedSteps:
        known = self.kinds
        prefill, decode, mixed = known[ForwardMode.PREFILL], known[ForwardMode.DECODE], known[ForwardMode.MIXED]
        # A kind that has not run errs most likely as its nearest relative does; its margin says that it has not. What
        # the relative's fit says of single sums is left out: the sums of the two kinds are others, and it may have made
        # up in them for what it took off the prediction.
        of_prefill = prefill.line if prefill.steps or not mixed.steps else _like(mixed.start.line, prefill.line)
        of_mixed = mixed.line if mixed.steps or not prefill.steps else _like(prefill.start.line, mixed.line)
        return CorrectedSteps(times, of_prefill, decode.line, of_mixed, {})


def _like(relative: Line, own: Line) -> Line:
    return relative._replace(spread=own.spread, spreads=own.spreads)
