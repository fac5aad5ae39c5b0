"""The loop: observe iterations, show policies a view, turn their proposals into decisions, survive their failures."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from roofline_policies.contract.decision import Bounds, Decision, Knob, KnobChange, Knobs
from roofline_policies.contract.view import ForwardMode, IterationRecord, PlannedGap, QueueState, SchedulerView
from roofline_policies.control.acceptance import AcceptanceTracker
from roofline_policies.control.lateness import MOST_TIGHTENING, Lateness
from roofline_policies.control.steps_in_flight import StepsInFlight, Told
from roofline_policies.control.transitions import Transitions, TransitionSettings
from roofline_policies.control.window import GapWindow, Phase
from roofline_policies.device.hardware import Ceilings
from roofline_policies.device.roofline import OVERHEAD_BELOW
from roofline_policies.errors import FieldError
from roofline_policies.model.batch import BatchShape
from roofline_policies.plain import described, plain, type_name
from roofline_policies.policies.base import Policy, Proposal
from roofline_policies.policies.compose import merged
from roofline_policies.slo.objectives import ItlKind, Slo
from roofline_policies.steps.acceptance import Acceptance
from roofline_policies.steps.speculation import GuessedDrafts
from roofline_policies.steps.times import StepTimes

EMPTY = BatchShape()

DECIDE_AT_LEAST_EVERY_S = 0.1
"""Longest time without a decision while requests only decode, seconds; with prompts waiting every pass decides.

Nothing is admitted meanwhile, so a decision could change nothing but how ready the policy is for the next prompt. A
judgement: lower costs the loop's time more often, higher shows people older decisions."""

STALLED_AFTER = 256
"""Iterations launched without one being reported, after which the counters are taken to be stalled and the policy
to have failed.

Records are taken with each decision, so a healthy server has some tens at most: DECIDE_AT_LEAST_EVERY_S of decode
steps. A judgement, above that; higher decides for longer by what is no longer measured."""


class State(StrEnum):
    """ACTIVE: the policy decides. FALLBACK: it failed, the launch settings hold until one is loaded anew."""

    ACTIVE = "active"
    FALLBACK = "fallback"


@dataclass(frozen=True, slots=True)
class ControllerSettings:
    """How the controller watches and when it turns a policy off.

    half_life_s: time in which the weight of an iteration in the operating points halves.
    gaps: number of recent token gaps that make up the ITL estimate.
    overhead_below: a point under this share of both roofs is called overhead.
    decide_every_s: least time between two decisions; 0: whenever something could be admitted.
    budget_s, overruns: a policy that takes longer than budget_s this many times in a row is turned off.
    dwell_s, hysteresis: see TransitionSettings.
    tighten: factor by which targets between tokens are tightened at most while more gaps are late than was promised;
        1: never.

    Raises:
        FieldError: a value outside its range.
    """

    half_life_s: float = 2.0
    gaps: float = 64.0
    overhead_below: float = OVERHEAD_BELOW
    decide_every_s: float = 0.0
    budget_s: float = 0.005
    overruns: int = 20
    dwell_s: float = 1.0
    hysteresis: float = 0.05
    tighten: float = MOST_TIGHTENING

    def __post_init__(self) -> None:
        for key in ("half_life_s", "budget_s"):
            if not 0 < getattr(self, key) < float("inf"):
                raise FieldError(key, getattr(self, key), "a number of seconds greater than 0")
        if not 0 <= self.decide_every_s < float("inf"):
            raise FieldError("decide_every_s", self.decide_every_s, "a number of seconds, 0 or more")
        if not 1 <= self.gaps < float("inf"):
            raise FieldError("gaps", self.gaps, "1 or more")
        if not 0 <= self.overhead_below <= 1:
            raise FieldError("overhead_below", self.overhead_below, "a share from 0 to 1")
        if self.overruns < 1:
            raise FieldError("overruns", self.overruns, "1 or more")
        if not 1 <= self.tighten <= MOST_TIGHTENING:
            raise FieldError("tighten", self.tighten, f"a factor from 1 to {MOST_TIGHTENING:g}")
        self.transitions()

    def transitions(self) -> TransitionSettings:
        return TransitionSettings(self.dwell_s, self.hysteresis)


@dataclass(frozen=True, slots=True)
class LoggedChange:
    """A knob change with when it happened: seconds since the controller started, and the iteration it preceded."""

    t_s: float
    iteration: int
    change: KnobChange


class ChangeLog:
    """The last changes of each knob, and how many there were. A knob that moves often does not push out the others."""

    KEPT = 32

    def __init__(self) -> None:
        self.totals = dict.fromkeys(Knob, 0)
        self._recent: dict[Knob, deque[LoggedChange]] = {knob: deque(maxlen=self.KEPT) for knob in Knob}

    def add(self, t_s: float, iteration: int, changes: Iterable[KnobChange]) -> None:
        """Count the changes of one decision; times as in LoggedChange."""
        for change in changes:
            self.totals[change.knob] += 1
            self._recent[change.knob].append(LoggedChange(t_s, iteration, change))

    def last(self, knob: Knob) -> LoggedChange | None:
        """The last change of a knob, None before the first."""
        return self._recent[knob][-1] if self._recent[knob] else None

    def recent(self) -> list[LoggedChange]:
        """Oldest first."""
        return sorted((entry for log in self._recent.values() for entry in log), key=lambda entry: entry.t_s)


class Controller:
    """Closes the loop for one scheduler. Every method is O(1) in the history; none raises because of a policy.

    Call ``observe`` with every finished iteration, ``launched`` with every iteration that starts, ``decide`` before a
    scheduling pass that can admit something; times are monotonic seconds of the caller's clock.

    predictor: of step times, None where there is none. rows_per_request: see SchedulerView; where the knob
        speculation_window moves, of the launch.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        ceilings: Ceilings,
        bounds: Bounds,
        launch: Knobs,
        slo: Slo,
        settings: ControllerSettings,
        started_s: float,
        predictor: StepTimes | None = None,
        rows_per_request: int = 1,
    ) -> None:
        self.policy = policy
        self.ceilings = ceilings
        self.bounds = bounds
        self.slo = slo
        self.settings = settings
        self.state = State.ACTIVE
        self.fallback_reason: str | None = None
        self.launch = launch
        self.knobs = launch
        self.changes = ChangeLog()
        self.started_s = started_s
        self.predictor = predictor
        self.iterations = 0
        self.queue = QueueState()
        self.prefill = Phase(ceilings, settings.half_life_s, settings.overhead_below)
        self.decode = Phase(ceilings, settings.half_life_s, settings.overhead_below)
        self.mixed = Phase(ceilings, settings.half_life_s, settings.overhead_below)
        self.phases = {
            ForwardMode.PREFILL: self.prefill,
            ForwardMode.DECODE: self.decode,
            ForwardMode.MIXED: self.mixed,
        }
        self.last_record: IterationRecord | None = None
        self.last_change: tuple[QueueState, Decision] | None = None
        self.rows_per_request = rows_per_request
        moving = launch.speculation_window is not None and bounds.movable(Knob.SPECULATION_WINDOW)
        if predictor is not None and moving:
            predictor = self.predictor = GuessedDrafts(predictor)
        self.in_flight = StepsInFlight(predictor, drafts=rows_per_request > 1, moving=moving)
        self.acceptance = AcceptanceTracker()
        self.decisions = 0
        self.lateness = Lateness(settings.tighten)
        self._gaps = GapWindow(settings.gaps)
        self._transitions = Transitions(settings.transitions(), bounds, launch)
        self._last_token_s: float | None = None
        self._decode_launched_s: float | None = None
        self._prefilled_s: float | None = None
        self._drafted_s: float | None = None
        self._decided_s = float("-inf")
        self._prefills_since_decode = 0
        self._overruns = 0

    def observe(self, record: IterationRecord) -> None:
        """Count a finished iteration. A record that cannot be true turns the controller to the launch settings."""
        if not (math.isfinite(record.step_s) and record.step_s > 0 and math.isfinite(record.done_s)):
            self.fall_back(f"iteration {record.iteration} reports {record.step_s} seconds")
            return
        self.iterations += 1
        self.last_record = record
        self.in_flight.finished(record.mode, record.step_s, record.done_s, alone=record.alone)
        self.phases[record.mode].add(record)
        self.lateness.ended(record)
        if record.mode is ForwardMode.PREFILL:
            return
        if self._last_token_s is not None:
            self._gaps.add(record.done_s - self._last_token_s)
        self._last_token_s = record.done_s

    def observe_drafts(self, now_s: float, window: int, accepted: Sequence[int], classes: Sequence[int | None]) -> None:
        """Count the drafts of a verify step whose result was processed.

        window: drafts per request of that step, 1 or more; chains, no trees. accepted: of each request how many were
        correct, 0 to ``window``, the target's own token not among them. classes: priority of each request, None where
        it sent none. Requests that are known to have ended before the step count for nothing and are left out.
        """
        self.acceptance.observe(now_s, window, accepted, classes)
        self._drafted_s = now_s

    def launched(
        self, mode: ForwardMode, now_s: float, prefill: BatchShape = EMPTY, decode: BatchShape = EMPTY
    ) -> tuple[Told | None, PlannedGap | None]:
        """Note that an iteration starts; what decode has waited for is known before its result is.

        prefill, decode: what it runs, as the predictor is asked for it. Returns what is expected of it, None where
        steps are not predicted, and of the gap between tokens that it ends, None where it ends none.
        """
        told = self.in_flight.launched(mode, now_s, prefill, decode)
        if mode is not ForwardMode.DECODE:
            self._prefilled_s = self.in_flight.free_s(now_s)  # a long prompt's step is not a time without one
        if mode is ForwardMode.PREFILL:
            self._prefills_since_decode += 1
        else:
            self._prefills_since_decode = 0
            self._decode_launched_s = now_s
        return told, self.lateness.launched(mode, None if told is None else told.slow_s, self.queue)

    def pause(self) -> None:
        """Note that nobody waits for a next token: the next gap would measure the pause, not the server."""
        self._last_token_s = self._decode_launched_s = None
        self._prefills_since_decode = 0
        self.in_flight.nobody_waits()
        self.lateness.pause()

    @property
    def token_s(self) -> float:
        """Recent mean seconds between a running request's tokens, 0 before the first gap."""
        return self._gaps.mean_s or 0.0

    @property
    def room_s(self) -> float:
        """Seconds that the tightest gap of a running request leaves beside a decode step of late; infinite without a
        target per gap."""
        gap_s = self.queue.gap_s
        return math.inf if gap_s is None else gap_s - (self.decode.step_s or 0.0)

    def place_under(self, ceilings: Ceilings) -> None:
        """Measure what comes from now on against these ceilings, as when the device's clock has changed."""
        self.ceilings = ceilings
        for phase in self.phases.values():
            phase.place_under(ceilings)

    def decide(self, now_s: float, queue: QueueState) -> Decision:
        """The setting for the next iteration.

        The launch settings once the policy has failed; the first decision after that moves every knob back at once.
        """
        self.queue = queue
        if queue.running == 0:
            self.pause()
        if not (queue.waiting or queue.chunk_in_flight):
            self._prefilled_s = now_s
        if self.state is State.ACTIVE and now_s - self._decided_s < self.settings.decide_every_s:
            return Decision(self.knobs)
        self._decided_s = now_s
        if self.state is State.ACTIVE:
            proposals = self._consult(now_s, queue)
            if proposals is not None:
                decision = self._transitions.decide(now_s, self.knobs, proposals)
                return self._adopt(now_s, decision)
        return self._adopt(now_s, self._back_to_launch())

    def view(self, now_s: float, queue: QueueState) -> SchedulerView:
        """What the policies see at this moment."""
        mean_judged = self.slo.itl_kind is ItlKind.MEAN_TPOT
        rate, last_rate = self.prefill.tokens_per_s, self.prefill.last_tokens_per_s
        if rate is not None and last_rate is not None and queue.chunk_in_flight:
            # A chunk late in a prompt attends to more: the next one takes after the last one, not after the mean.
            rate = min(rate, last_rate)
        window, acceptance = self.knobs.speculation_window, self.acceptance.of_mix() or None
        rows = self.rows_per_request if window is None else window + 1
        tokens: float | None = 1.0
        if rows > 1:
            tokens = None if acceptance is None else 1.0 + Acceptance(acceptance).mean_accepted(rows - 1)
        return SchedulerView(
            now_s=now_s,
            queue=self.lateness.tightened(queue),
            knobs=self.knobs,
            bounds=self.bounds,
            slo=self.slo,
            prefill=self.prefill.point(now_s),
            decode=self.decode.point(now_s),
            decode_step_s=self.decode.step_s,
            decode_requests=self.decode.requests,
            prefill_tokens_per_s=rate if rate is not None else self.mixed.tokens_per_s,
            itl_s=self._gaps.mean_s if mean_judged else self._gaps.tail_s,
            since_decode_s=0.0 if self._decode_launched_s is None else now_s - self._decode_launched_s,
            prefills_since_decode=self._prefills_since_decode,
            since_prefill_s=0.0 if self._prefilled_s is None else max(0.0, now_s - self._prefilled_s),
            token_age_s=self.in_flight.token_age_s(now_s),
            free_in_s=self.in_flight.free_s(now_s) - now_s,
            steps=self.in_flight.steps,
            predictor=self.predictor,
            decisions=self.decisions,
            acceptance=acceptance,
            rows_per_request=rows,
            tokens_per_request=tokens,
            windows_run=tuple(sorted(self.in_flight.windows_run)),
            since_drafts_s=None if self._drafted_s is None else max(0.0, now_s - self._drafted_s),
        )

    def adopt(
        self, now_s: float, policy: Policy, slo: Slo, settings: ControllerSettings, bounds: Bounds
    ) -> tuple[KnobChange, ...]:
        """Go on with another policy from the next decision on, also after the last one failed.

        Knobs keep their value, or move into the new bounds; those that had to are returned. Operating points, token
        gaps, the learned correction, totals and dwells go on: they are the server's, not the policy's.
        """
        if self.state is State.FALLBACK:  # nothing was observed since
            self.pause()
            self.in_flight.forget()
        self.policy, self.slo, self.settings, self.bounds = policy, slo, settings, bounds
        self.state, self.fallback_reason = State.ACTIVE, None
        self._overruns, self._decided_s = 0, float("-inf")
        for phase in self.phases.values():
            phase.watch(settings.half_life_s, settings.overhead_below)
        self._gaps.watch(settings.gaps)
        self.lateness.adopt(settings.tighten)
        return self._adopt(now_s, self._transitions.adopt(settings.transitions(), bounds, now_s, self.knobs)).changes

    def _consult(self, now_s: float, queue: QueueState) -> tuple[Proposal, ...] | None:
        view = self.view(now_s, queue)
        self.decisions += 1
        before = time.perf_counter()
        try:
            proposals = merged(self.policy, view)
        except KeyboardInterrupt:  # the operator's, not the policy's
            raise
        except BaseException as error:  # the contract of this class: a policy's failure is never the server's
            self.fall_back(f"{type_name(self.policy)} raised {described(error)}")
            return None
        spent_s = time.perf_counter() - before
        self._overruns = self._overruns + 1 if spent_s > self.settings.budget_s else 0
        if self._overruns >= self.settings.overruns:
            self.fall_back(
                f"the policy took {spent_s * 1e3:.1f} ms, over its budget of {self.settings.budget_s * 1e3:.1f} ms, "
                f"{self._overruns} times in a row"
            )
            return None
        return proposals

    def fall_back(self, reason: str) -> None:
        """Turn to the launch settings. reason: any object; its text is made plain."""
        self.state, self.fallback_reason = State.FALLBACK, plain(reason)

    def _back_to_launch(self) -> Decision:
        reason = f"fallback: {self.fallback_reason}"
        changes = tuple(
            KnobChange(knob, old, new, reason, "controller")
            for knob in Knob
            for old, new in ((self.knobs.get(knob), self.launch.get(knob)),)
            if old is not None and new is not None and old != new
        )
        return Decision(self.launch, changes)

    def _adopt(self, now_s: float, decision: Decision) -> Decision:
        self.knobs = decision.knobs
        if decision.changes:
            self.last_change = (self.queue, decision)
            self.changes.add(now_s - self.started_s, self.iterations, decision.changes)
        return decision
