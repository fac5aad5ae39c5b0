"""The scheduler's queues and capacities, as a policy may know them."""

from __future__ import annotations

from sglang.srt.disaggregation.utils import DisaggregationMode
from sglang.srt.managers.schedule_policy import CLIP_MAX_NEW_TOKENS

from roofline_policies.contract.view import MOST_TOLD, QueueState, told_apart
from roofline_policies.slo.capacity import Capacity
from roofline_policies.slo.demand import Demand
from roofline_policies.slo.running_targets import Need
from sglang_patches.needs.objects import Request, Scheduler
from sglang_patches.observe.peers import PEERS
from sglang_patches.requests.batches import last_batches, running_batches
from sglang_patches.requests.capacities import Capacities, kv_share
from sglang_patches.requests.progress import Progress

POOLS_EVERY_S = 0.05
"""How old the use of the pools that a policy sees may be, seconds. Asking the pools costs more than the rest of a
reading, and a few steps change it little. A judgement; lower costs that reading more often."""


LEAST_TARGET_S = 1e-4
"""What is left of a target between tokens at least, seconds: policies compare steps with targets and divide by
them, and no step is as short."""


class Queues:
    """Reads one scheduler. O(1): the waiting queue is read only up to one chunk."""

    def __init__(self, scheduler: Scheduler, capacities: Capacities) -> None:
        self._scheduler = scheduler
        self._read = capacities
        self._capacities: tuple[Capacity, ...] = ()
        self._unwritten = (0, 0)
        self._read_s = float("-inf")
        self._computes_prompts = scheduler.disaggregation_mode is not DisaggregationMode.DECODE

    def idle(self) -> bool:
        """Nothing runs, waits or is about to be reported; SGLang polls thousands of times a second then."""
        scheduler = self._scheduler
        if scheduler.waiting_queue or scheduler.last_batch is not None or scheduler.running_batch.reqs:
            return False
        return not (last_batches(scheduler) or any(batch.reqs for batch in running_batches(scheduler)))

    def counts(self) -> dict[str, int]:
        """How many requests run and how many wait."""
        running = sum(len(batch.reqs) for batch in running_batches(self._scheduler))
        return {"running": running, "waiting": len(self._scheduler.waiting_queue)}

    def prompts(self) -> bool:
        """A prompt waits, or is part-way through its chunks."""
        scheduler = self._scheduler
        return bool(scheduler.waiting_queue) or scheduler.chunked_req is not None

    def decoding(self) -> list[Request]:
        """Requests that have their first token and wait for the next."""
        scheduler = self._scheduler
        batches = (*running_batches(scheduler), *last_batches(scheduler))
        found = {id(request): request for batch in batches for request in batch.reqs}
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
        newcomer: tuple[int, int] | None = None,
        due_before: int = 0,
        in_flight_is_late: bool = False,
        decode_step_s: float = 0.0,
        demand: Demand | None = None,
    ) -> QueueState:
        """The queues at this moment.

        chunk_tokens: the most prompt tokens that one prefill step takes. newcomer: a prompt that may come in the very
        pass that is decided and would be first, as ``Waiting.newcomer``; None where it would not be. due_before:
        prompts that are due before the one part-way; in_flight_is_late: so is whoever comes. decode_step_s: what a
        decode step took lately: in a pipeline, between two tokens of a request each other batch has its step as well,
        so targets are nearer by those.
        """
        scheduler = self._scheduler
        chunked, running = scheduler.chunked_req, self._running()
        waiting = scheduler.waiting_queue
        if chunked is not None:
            prefix_tokens = chunked.extend_end
            next_tokens = max(0, chunked.seqlen - prefix_tokens)
        else:
            prefix_tokens, next_tokens = waiting[0].prefix_len if waiting else 0, 0
        prompts = [(next_tokens, prefix_tokens)] if next_tokens else []
        for place, request in enumerate(waiting if self._computes_prompts else ()):
            # Those that are due before the prompt part-way get room of its chunk, however much it could take itself.
            ahead_tokens = prompts[0][0] if place < due_before else 0
            if next_tokens - ahead_tokens >= chunk_tokens:
                break
            cached = request.prefix_len
            tokens = max(1, request.seqlen - cached)
            prompts.append((tokens, cached))
            next_tokens += tokens
        first_tokens = prompts[0][0] if prompts else 0
        if newcomer is not None and newcomer[1] > prefix_tokens:
            # More than one may come. A chunk that was sized for what waits would take far longer with their prefixes.
            many = [newcomer] * min(MOST_TOLD - 1, -(-chunk_tokens // newcomer[0]))
            place = int(chunked is not None)
            prompts[place:place] = many
            due_before += len(many) if in_flight_is_late else 0
            prefix_tokens = prompts[0][1]
        if now_s - self._read_s >= POOLS_EVERY_S:
            self._capacities, self._read_s = self._read.now(running, first_tokens), now_s
            self._unwritten = self._unwritten_tokens()
        others_s = decode_step_s * max(0, sum(1 for batch in running_batches(scheduler) if batch.reqs) - 1)
        return QueueState(
            running=running,
            waiting=len(waiting),
            next_prefill_tokens=next_tokens,
            chunk_in_flight=chunked is not None,
            next_prefix_tokens=prefix_tokens,
            next_prompts=told_apart(prompts),
            due_before=due_before,
            decode_context_tokens=progress.context_tokens if running else 0,
            gap_s=_sooner(need.gap_s, others_s, LEAST_TARGET_S),
            mean_s=_sooner(need.mean_s, others_s, LEAST_TARGET_S),
            due_s=_sooner(need.due_s, others_s),
            prompt_due_s=prompt_due_s,
            relegated=relegated,
            slack_s=progress.slack_s(now_s) if running else None,
            kv_use=kv_share(self._capacities),
            capacities=self._capacities,
            peers_decoding=PEERS.decoding,
            unwritten_tokens=self._unwritten[0],
            next_unwritten_tokens=self._unwritten[1],
            retractions=retractions,
            cache_hit_rate=cache_hit_rate,
            demand=demand,
        )

    def now(self, now_s: float, progress: Progress | None, *, retractions: int, hit_rate: float | None) -> QueueState:
        """The queues as people are shown them at this moment, read afresh. No decision depends on it.

        progress: None where the running requests are not followed: their context and slack are unknown then.
        """
        scheduler, running = self._scheduler, self._running()
        followed = progress if running else None
        capacities = self._read.now(running)
        return QueueState(
            running=running,
            waiting=len(scheduler.waiting_queue),
            chunk_in_flight=scheduler.chunked_req is not None,
            decode_context_tokens=0 if followed is None else followed.context_tokens,
            slack_s=None if followed is None else followed.slack_s(now_s),
            kv_use=kv_share(capacities),
            capacities=capacities,
            peers_decoding=PEERS.decoding,
            retractions=retractions,
            cache_hit_rate=hit_rate,
        )

    def _unwritten_tokens(self) -> tuple[int, int]:
        """Tokens that running requests may still generate, all together, and the next prompt's, as SGLang counts them.

        Source: SGLang 0.5.23, ``PrefillAdder._get_running_request_total_token_offset`` and ``add_one_req``.
        """
        waiting = self._scheduler.waiting_queue
        running = sum(_unwritten(request) for batch in running_batches(self._scheduler) for request in batch.reqs)
        return running, _unwritten(waiting[0]) if waiting else 0

    def _running(self) -> int:
        """Requests that decode from the next pass on."""
        scheduler = self._scheduler
        batches = running_batches(scheduler)
        running = sum(len(batch.reqs) for batch in batches)
        for last in last_batches(scheduler):
            if last.forward_mode.is_extend() and not any(last is batch for batch in batches):
                # Prompts just prefilled join the running batch at the next pass; they decode from now on.
                running += max(0, len(last.reqs) - (scheduler.chunked_req is not None))
        return running


def _unwritten(request: Request) -> int:
    left = request.sampling_params.max_new_tokens - len(request.output_ids)
    return min(max(left, 0), int(CLIP_MAX_NEW_TOKENS))


def _sooner(seconds: float | None, by_s: float, least_s: float = float("-inf")) -> float | None:
    return None if seconds is None else max(least_s, seconds - by_s) if by_s else seconds
