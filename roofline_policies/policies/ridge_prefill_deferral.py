"""RidgePrefillDeferral: the ridge rule's chunks, from operating points and the measured rate of prefill."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from roofline_policies.contract.decision import Knob
from roofline_policies.contract.view import SchedulerView
from roofline_policies.device.roofline import Bound
from roofline_policies.errors import FieldError
from roofline_policies.policies.base import Kind, Proposal, Strength
from roofline_policies.slo.objectives import ItlKind


@dataclass(frozen=True, slots=True)
class RidgePrefillDeferral:
    """Sizes prefill chunks to the ITL target and lets decode run between chunks of a compute-bound prefill.

    share: part of the ITL target that one chunk plus one decode step may fill; the rest is for what the mean rate of
        recent chunks does not tell, such as a chunk's position in its context.
    min_chunk_tokens: chunks are not cut below this, however tight the target.
    longest_stall_s: running requests do not wait longer than this for prefill, also where they have no target.

    Prefill is never starved: it is deferred only after a prefill step ran since the last decode step, so at worst
    the two alternate, and never while nothing is decoding.

    Raises:
        FieldError: a parameter outside its range.
    """

    share: float = 0.8
    min_chunk_tokens: int = 128
    longest_stall_s: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise FieldError("share", self.share, "a share greater than 0 and at most 1")
        if self.min_chunk_tokens < 1:
            raise FieldError("min_chunk_tokens", self.min_chunk_tokens, "1 token or more")
        if not 0 < self.longest_stall_s < float("inf"):
            raise FieldError("longest_stall_s", self.longest_stall_s, "a number of seconds greater than 0")

    def propose(self, view: SchedulerView) -> tuple[Proposal, ...]:
        """A cap on prefill_chunk_tokens and a target for defer_prefill, or nothing while no request decodes."""
        if view.queue.running == 0:
            return ()
        target = view.slo.itl_s
        if view.slo.itl_kind is ItlKind.MEAN_TPOT and target is not None and (view.itl_s or 0.0) <= target:
            # Nobody asked for short gaps, only for a short mean: pacing every chunk would cost throughput for nothing.
            return ()
        return (*self._chunk(view), *self._defer(view))

    def _chunk(self, view: SchedulerView) -> Iterator[Proposal]:
        # Also while nothing waits: a prompt is admitted in the pass in which it arrives, after that pass was decided.
        target, rate, step_s = view.slo.itl_s, view.prefill_tokens_per_s, view.decode_step_s
        if target is None or rate is None or step_s is None:
            return
        spare_s = self.share * target - step_s
        if spare_s <= 0:
            # Decode alone is past the target: small chunks would cost throughput and meet nothing.
            return
        tokens = max(self.min_chunk_tokens, int(spare_s * rate))
        if view.knobs.prefill_chunk_tokens is None or tokens >= self._launch_chunk(view):
            return
        reason = (
            f"{tokens} prompt tokens at {rate:.0f} tokens/s beside a decode step of {step_s * 1e3:.0f} ms "
            f"fill {self.share:.0%} of the ITL target of {target * 1e3:.0f} ms"
        )
        yield Proposal(
            "RidgePrefillDeferral", Knob.PREFILL_CHUNK_TOKENS, tokens, reason, kind=Kind.CAP, strength=Strength.GUARD
        )

    def _defer(self, view: SchedulerView) -> Iterator[Proposal]:
        if view.prefills_since_decode == 0 or not (view.queue.waiting or view.queue.chunk_in_flight):
            return
        target = view.slo.itl_s
        next_s, waited_s = self._next_chunk_s(view), view.since_decode_s
        if target is not None and next_s is not None:
            # From one decode launch to the next is what a request waits between two tokens.
            if waited_s + next_s > target:
                reason = (
                    f"running requests have waited {waited_s * 1e3:.0f} ms and the next chunk takes "
                    f"{next_s * 1e3:.0f} ms, past the ITL target of {target * 1e3:.0f} ms"
                )
                yield Proposal("RidgePrefillDeferral", Knob.DEFER_PREFILL, True, reason, strength=Strength.GUARD)
        elif waited_s > self.longest_stall_s:
            reason = (
                f"running requests have waited {waited_s:.1f} s for prefill, longer than {self.longest_stall_s:.1f} s"
            )
            yield Proposal("RidgePrefillDeferral", Knob.DEFER_PREFILL, True, reason, strength=Strength.GUARD)
        elif target is None and view.prefill is not None and view.prefill.bound is Bound.COMPUTE:
            reason = f"prefill is compute-bound at {view.prefill.compute_fraction:.0%}: one decode step between chunks"
            yield Proposal("RidgePrefillDeferral", Knob.DEFER_PREFILL, True, reason)

    def _next_chunk_s(self, view: SchedulerView) -> float | None:
        if view.prefill_tokens_per_s is None:
            return None
        tokens = view.queue.next_prefill_tokens
        return min(view.knobs.prefill_chunk_tokens or tokens, tokens) / view.prefill_tokens_per_s

    @staticmethod
    def _launch_chunk(view: SchedulerView) -> int:
        bounds = view.bounds.ranges.get(Knob.PREFILL_CHUNK_TOKENS)
        return bounds.high if bounds else 0
