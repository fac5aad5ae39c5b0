"""Actuate: the agreed knobs applied to one scheduler."""

from __future__ import annotations

from sglang.srt.disaggregation.utils import DisaggregationMode

from roofline_policies.contract.decision import Knobs
from roofline_policies.control.chunk import chunk_of_pass
from sglang_patches.drafts.window import window_of
from sglang_patches.loop.layout import launch_knobs
from sglang_patches.needs.objects import Batch, Scheduler
from sglang_patches.requests.batches import running_batches


class Actuator:
    """Holds the agreed knobs and applies them to one scheduler. Only ever narrows what the server would do itself,
    but for the room that is kept for the rest of running answers: with less of it more enter."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._launch = launch_knobs(scheduler)
        self._window = window_of(scheduler)
        self.knobs = self._launch
        self._least_prompt_tokens = max(scheduler.page_size, scheduler.truncation_align_size or 1)
        self._stages = scheduler.server_args.pp_size  # no resolution changes it
        self._only_decodes = scheduler.disaggregation_mode is DisaggregationMode.DECODE

    def apply(self, knobs: Knobs) -> None:
        """Adopt a setting from the next scheduling pass on."""
        scheduler = self._scheduler
        if knobs.max_running_requests > self.knobs.max_running_requests:
            # A full batch stays closed until a request leaves it, unless it is told that there is room again.
            for batch in running_batches(scheduler):
                batch.batch_is_full = False
        self.knobs = knobs
        if self._only_decodes:
            # Nothing asks there how many may enter: what was prefilled elsewhere joins up to this attribute.
            scheduler.max_running_requests = knobs.max_running_requests
        if self._window is not None and knobs.speculation_window is not None:
            self._window.steps = knobs.speculation_window
        self.apply_chunk(scheduler.running_batch)

    def apply_chunk(self, running_batch: Batch) -> None:
        """Set the prefill chunk and whether decode rows share it; called every pass, because both follow the batch. And
        the room that is kept for running requests, because SGLang's own estimate of it moves."""
        if self.knobs.new_token_permille:
            ratio = self._scheduler.new_token_ratio_tracker
            ratio.current = min(ratio.current, self.knobs.new_token_permille / 1000)
        chunk = chunk_of_pass(self.knobs, self._launch, running_batch.batch_size(), self._least_prompt_tokens)
        if chunk is not None:
            self._scheduler.is_mixed_chunk, self._scheduler.chunked_prefill_size = chunk

    def allocatable(self, allowed: int, running: int) -> int:
        """How many requests may enter beside ``running``: what SGLang allows, less what the cap on running forbids.

        The stages of a pipeline work on as many batches at a time, and each has its share of the cap, as in SGLang.
        """
        return min(allowed, max(1, self.knobs.max_running_requests // self._stages) - running)

    def defers(self, running_batch: Batch) -> bool:
        """Whether no prompt enters in this pass. Never with an empty running batch: the server would spin idle."""
        return self.knobs.defer_prefill and not running_batch.is_empty() and not running_batch.is_prefill_only
