"""Actuate: what the server can do, from how it was launched, and the knobs applied to its scheduler."""

from __future__ import annotations

from math import lcm

from sglang.srt.disaggregation.utils import DisaggregationMode

from roofline_policies.contract.decision import Knob, Knobs, Range
from roofline_policies.control.chunk import chunk_of_pass
from sglang_patches.needs.objects import Batch, Scheduler

CHUNK_STEP_TOKENS = 64
"""Tokens; chunks are multiples of this where pages allow it. Matrix products run in tiles of 64 or 128 rows on common
devices, and a chunk that fills its last tile wastes no work. Larger would leave policies fewer chunks to choose
from."""

MOST_RELEGATED_S = 3600
"""Longest that any policy may have a request passed over, seconds: an hour, when clients have left long before. A
safety limit; the shipped policies stay far below it (30 s by default)."""


def launch_knobs(scheduler: Scheduler) -> Knobs:
    """The setting the server was launched with."""
    return Knobs(
        scheduler.max_running_requests, scheduler.chunked_prefill_size, mixed_chunk=bool(scheduler.is_mixed_chunk)
    )


def launch_ranges(scheduler: Scheduler) -> tuple[dict[Knob, Range], dict[Knob, str]]:
    """What can be moved, with its range, and what cannot, with the reason.

    The launch setting is the upper end of each range: buffers, captured graphs and the KV pool were sized for it.
    """
    ranges: dict[Knob, Range] = {}
    immovable: dict[Knob, str] = {}
    if scheduler.server_args.schedule_policy != "fcfs" or scheduler.enable_priority_scheduling:
        immovable[Knob.DEADLINE_ORDER] = immovable[Knob.RELEGATE_FOR_S] = (
            "the server orders its queue itself (--schedule-policy, --enable-priority-scheduling)"
        )
    elif scheduler.disaggregation_mode is not DisaggregationMode.NULL:
        immovable[Knob.DEADLINE_ORDER] = immovable[Knob.RELEGATE_FOR_S] = "prefill and decode run on separate servers"
    else:
        ranges[Knob.RELEGATE_FOR_S] = Range(0, MOST_RELEGATED_S)
    immovable[Knob.SPECULATION_WINDOW] = _reason_not_to_draft(scheduler)
    immovable[Knob.QUANT_TIER] = "the weights were loaded in one precision"
    if scheduler.max_running_requests >= 1:
        ranges[Knob.MAX_RUNNING_REQUESTS] = Range(1, scheduler.max_running_requests)
    if scheduler.chunked_prefill_size is None:
        immovable[Knob.PREFILL_CHUNK_TOKENS] = "chunked prefill is off (--chunked-prefill-size)"
    else:
        # A chunk below a page, or below the alignment of deterministic inference, would never make progress.
        low = max(scheduler.page_size, scheduler.truncation_align_size or 1)
        step = lcm(low, CHUNK_STEP_TOKENS)
        high = max(low, scheduler.chunked_prefill_size)
        step = step if step <= high else low
        ranges[Knob.PREFILL_CHUNK_TOKENS] = Range(step, high, step)
    if scheduler.disaggregation_mode is not DisaggregationMode.NULL:
        immovable[Knob.DEFER_PREFILL] = "prefill and decode run on separate servers"
    reason = _reason_not_to_mix(scheduler)
    if reason is not None:
        immovable[Knob.MIXED_CHUNK] = reason
    return ranges, immovable


def _reason_not_to_draft(scheduler: Scheduler) -> str:
    """Why the number of drafts per step cannot be moved."""
    if scheduler.spec_algorithm.is_none():
        return "nothing drafts (--speculative-algorithm)"
    return "the number of drafts was fixed at launch (--speculative-num-steps)"


def _reason_not_to_mix(scheduler: Scheduler) -> str | None:
    """Why decode rows cannot be taken along in prefill steps, None where they can.

    Nothing is sized for mixed steps at launch: the scheduler reads ``is_mixed_chunk`` in every pass, and mixed steps
    run through what prefill steps were captured with. What is left are the launches that SGLang itself refuses or
    turns off ``--enable-mixed-chunk`` for, as far as they can be had with a policy.

    Source: SGLang 0.5.23, ``Scheduler._get_new_batch_prefill_raw``, ``SpeculativeAlgorithm.supports_mixed_chunk``,
    ``arg_groups/hisparse_hook.py`` and ``arg_groups/cp_tp_group_sharing_hook.py``.
    """
    arguments = scheduler.server_args
    if scheduler.chunked_prefill_size is None:
        return "chunked prefill is off (--chunked-prefill-size)"
    if scheduler.disaggregation_mode is not DisaggregationMode.NULL:
        return "prefill and decode run on separate servers"
    if not (scheduler.spec_algorithm.is_none() or scheduler.spec_algorithm.supports_mixed_chunk()):
        return "its drafts need decode steps of their own (--speculative-algorithm)"
    if arguments.enable_two_batch_overlap:
        return "batches are split in two (--enable-two-batch-overlap)"
    if arguments.enable_hisparse:
        return "the KV cache is sparse (--enable-hisparse)"
    if arguments.attn_cp_size > 1:
        return "prompts are split over ranks (--attn-cp-size)"
    return None


class Actuator:
    """Holds the agreed knobs and applies them to one scheduler. Only ever narrows what the server would do itself."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._launch = launch_knobs(scheduler)
        self.knobs = self._launch
        self._least_prompt_tokens = max(scheduler.page_size, scheduler.truncation_align_size or 1)

    def apply(self, knobs: Knobs) -> None:
        """Adopt a setting from the next scheduling pass on."""
        scheduler = self._scheduler
        if knobs.max_running_requests > self.knobs.max_running_requests:
            # A full batch stays closed until a request leaves it, unless it is told that there is room again.
            scheduler.running_batch.batch_is_full = False
        self.knobs = knobs
        self.apply_chunk(scheduler.running_batch)

    def apply_chunk(self, running_batch: Batch) -> None:
        """Set the prefill chunk and whether decode rows share it; called every pass, because both follow the batch."""
        chunk = chunk_of_pass(self.knobs, self._launch, running_batch.batch_size(), self._least_prompt_tokens)
        if chunk is not None:
            self._scheduler.is_mixed_chunk, self._scheduler.chunked_prefill_size = chunk

    def allocatable(self, allowed: int, running: int) -> int:
        """How many requests may enter beside ``running``: what SGLang allows, less what the cap on running forbids."""
        return min(allowed, self.knobs.max_running_requests - running)

    def defers(self, running_batch: Batch) -> bool:
        """Whether no prompt enters in this pass. Never with an empty running batch: the server would spin idle."""
        return self.knobs.defer_prefill and not running_batch.is_empty() and not running_batch.is_prefill_only
