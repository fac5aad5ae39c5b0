"""SloGuard: requests whose objective is in danger first."""

from __future__ import annotations

from dataclasses import dataclass

from roofline_policies.contract.decision import Knob
from roofline_policies.contract.view import SchedulerView
from roofline_policies.errors import FieldError
from roofline_policies.model.batch import BatchShape
from roofline_policies.policies.base import Kind, Proposal, Strength
from roofline_policies.policies.shapes import prompt_shape, running_shape

EMPTY = BatchShape()


@dataclass(frozen=True, slots=True)
class SloGuard:
    """Admits prompts by when they are due, passes over those that cannot be in time, protects the running requests.

    relegate_for_s: a prompt that cannot be in time lets others pass for so many seconds after its arrival, then it goes
        first; 0: nobody is passed over.
    itl_p99_s: no prefill step makes a running request wait longer than this for its next token, whatever its own target
        is; None leaves that to the targets, which PrefillDeferral sizes its chunks by.

    Raises:
        FieldError: a parameter outside its range.
    """

    relegate_for_s: int = 30
    itl_p99_s: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.relegate_for_s <= 3600:
            raise FieldError("relegate_for_s", self.relegate_for_s, "0 to 3600 seconds")
        if self.itl_p99_s is not None and not 0 < self.itl_p99_s < float("inf"):
            raise FieldError("itl_p99_s", self.itl_p99_s, "a number of seconds greater than 0, or null")

    def propose(self, view: SchedulerView) -> tuple[Proposal, ...]:
        """Targets for deadline_order and relegate_for_s, and a cap on prefill_chunk_tokens."""
        if not view.bounds.movable(Knob.DEADLINE_ORDER):
            return self._cap(view)
        queue = view.queue
        reason = "prompts are due at different times" if queue.waiting > 1 else "the order of one prompt is any order"
        proposals = [self._guard(Knob.DEADLINE_ORDER, True, reason)]
        reason = "no prompt waits"
        if queue.waiting:
            reason = f"{queue.relegated} of {queue.waiting} waiting prompts cannot be in time"
        proposals.append(self._guard(Knob.RELEGATE_FOR_S, self.relegate_for_s, reason))
        return (*proposals, *self._cap(view))

    def _cap(self, view: SchedulerView) -> tuple[Proposal, ...]:
        """The largest chunk that keeps ``itl_p99_s``, by halving: a guard need not be the most that fits."""
        limits, steps, queue = view.bounds.ranges.get(Knob.PREFILL_CHUNK_TOKENS), view.steps, view.queue
        if self.itl_p99_s is None or limits is None or steps is None or queue.running == 0:
            return ()
        decode = running_shape(view)
        left_s = self.itl_p99_s - view.token_age_s
        mixed = view.knobs.mixed_chunk
        if not mixed:
            left_s -= steps.step_s(decode=decode, graph=True) * steps.margin(
                prefill=False, decode=True, rows=decode.new_tokens
            )
        chunk, beside = limits.high, decode if mixed else EMPTY
        while chunk > limits.low:
            margin = steps.margin(prefill=True, decode=mixed, rows=chunk + beside.new_tokens)
            takes_s = steps.step_s(prefill=prompt_shape(view, chunk), decode=beside) * margin
            if takes_s <= left_s:
                break
            chunk //= 2
        chunk = limits.clamp(chunk)
        if chunk == limits.high:
            return ()
        reason = f"a running request waits {self.itl_p99_s * 1e3:.0f} ms at most for its next token"
        cap = Proposal("SloGuard", Knob.PREFILL_CHUNK_TOKENS, chunk, reason, Kind.CAP, Strength.GUARD)
        return (cap,)

    @staticmethod
    def _guard(knob: Knob, value: int | bool, reason: str) -> Proposal:
        return Proposal("SloGuard", knob, value, reason, strength=Strength.GUARD)
