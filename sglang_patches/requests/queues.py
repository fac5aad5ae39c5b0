"""The scheduler's queues and KV use, as a policy may know them."""

from __future__ import annotations

from roofline_policies.contract.view import QueueState
from roofline_policies.slo.running_targets import Need
from sglang_patches.needs.objects import Request, Scheduler
from sglang_patches.requests.progress import Progress

KV_USE_EVERY_S = 0.05
"""How old the KV use that a policy sees may be, seconds. Asking the pools costs more than the rest of a reading, and a
few steps change it little. A judgement; lower costs that reading more often."""


class Queues:
    """Reads one scheduler. O(1): the waiting queue is read only up to one chunk."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._kv_use = 0.0
        self._kv_read_s = float("-inf")

    def idle(self) -> bool:
        """Nothing runs, waits or is about to be reported; SGLang polls thousands of times a second then."""
        scheduler = self._scheduler
        return not (scheduler.waiting_queue or scheduler.last_batch is not None or scheduler.running_batch.reqs)

    def counts(self) -> dict[str, int]:
        """How many requests run and how many wait."""
        return {"running": len(self._scheduler.running_batch.reqs), "waiting": len(self._scheduler.waiting_queue)}

    def prompts(self) -> bool:
        """A prompt waits, or is part-way through its chunks."""
        scheduler = self._scheduler
        return bool(scheduler.waiting_queue) or scheduler.chunked_req is not None

    def decoding(self) -> list[Request]:
        """Requests that have their first token and wait for the next."""
        scheduler = self._scheduler
        last = () if scheduler.last_batch is None else scheduler.last_batch.reqs
        found = {id(request): request for request in (*scheduler.running_batch.reqs, *last)}
        return [
            request
            for request in found.values()
            if request is not scheduler.chunked_req
            and request.output_ids
            and not (request.finished() or request.is_retracted)
        ]

    def state(
        self,
        now_s: float,
        *,
        progress: Progress,
        need: Need,
        prompt_due_s: float | None,
        relegated: int,
        retractions: int,
        cache_hit_rate: float | None,
        chunk_tokens: int,
    ) -> QueueState:
        """The queues at this moment. ``chunk_tokens``: the most prompt tokens that one prefill step takes."""
        scheduler = self._scheduler
        chunked, running = scheduler.chunked_req, self._running()
        waiting = scheduler.waiting_queue
        if chunked is not None:
            prefix_tokens = chunked.extend_end
            next_tokens = max(0, chunked.seqlen - prefix_tokens)
        else:
            prefix_tokens, next_tokens = waiting[0].prefix_len if waiting else 0, 0
        first_tokens, later_prefix_tokens, later = next_tokens, 0, 0
        for request in waiting:
            if next_tokens >= chunk_tokens:
                break
            cached = request.prefix_len
            tokens = max(1, request.seqlen - cached)
            if first_tokens:
                later_prefix_tokens += cached
                later += 1
            else:
                first_tokens = tokens
            next_tokens += tokens
        if now_s - self._kv_read_s >= KV_USE_EVERY_S:
            self._kv_use, self._kv_read_s = self._kv_share(), now_s
        return QueueState(
            running=running,
            waiting=len(waiting),
            next_prefill_tokens=next_tokens,
            chunk_in_flight=chunked is not None,
            next_prefix_tokens=prefix_tokens,
            first_prompt_tokens=first_tokens,
            later_prefix_tokens=later_prefix_tokens // later if later else 0,
            decode_context_tokens=progress.context_tokens if running else 0,
            gap_s=need.gap_s,
            mean_s=need.mean_s,
            due_s=need.due_s,
            prompt_due_s=prompt_due_s,
            relegated=relegated,
            slack_s=progress.slack_s(now_s) if running else None,
            kv_use=self._kv_use,
            retractions=retractions,
            cache_hit_rate=cache_hit_rate,
        )

    def now(self, now_s: float, progress: Progress | None, *, retractions: int, hit_rate: float | None) -> QueueState:
        """The queues as people are shown them at this moment, read afresh. No decision depends on it.

        progress: None where the running requests are not followed: their context and slack are unknown then.
        """
        scheduler, running = self._scheduler, self._running()
        followed = progress if running else None
        return QueueState(
            running=running,
            waiting=len(scheduler.waiting_queue),
            chunk_in_flight=scheduler.chunked_req is not None,
            decode_context_tokens=0 if followed is None else followed.context_tokens,
            slack_s=None if followed is None else followed.slack_s(now_s),
            kv_use=self._kv_share(),
            retractions=retractions,
            cache_hit_rate=hit_rate,
        )

    def _running(self) -> int:
        """Requests that decode from the next pass on."""
        scheduler = self._scheduler
        last, running = scheduler.last_batch, len(scheduler.running_batch.reqs)
        if last is not None and last.forward_mode.is_extend():
            # Prompts just prefilled join the running batch at the next pass; they decode from now on.
            running += max(0, len(last.reqs) - (scheduler.chunked_req is not None))
        return running

    def _kv_share(self) -> float:
        _, share = self._scheduler.pool_stats_observer.get_pool_stats().get_kv_token_stats()
        return float(share)
