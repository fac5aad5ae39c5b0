"""SGLang's waiting queue in the order that the policy asks for, the same on every rank."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from math import inf
from operator import itemgetter

from sglang.srt.disaggregation.utils import DisaggregationMode
from sglang.srt.mem_cache.common import match_kv_cache

from roofline_policies.model.batch import BatchShape
from roofline_policies.slo.admission import NO_TARGET_S, Admission, Rank, Ticket
from roofline_policies.slo.demand import Arrivals
from roofline_policies.slo.objectives import Slo
from roofline_policies.steps.times import StepTimes
from sglang_patches.needs.objects import Request, Scheduler
from sglang_patches.requests.capacities import Capacities
from sglang_patches.requests.promises import Promises

_TICKET = "_roofline_ticket"

EMPTY = BatchShape()

RECENT = 32
"""Prompts among which the one with the most cached tokens stands for one that may come. Traffic of one kind is alike
for longer than that, and a prompt whose prefix is longer than all of them is one in 33 by chance."""


class Waiting:
    """Follows one scheduler's waiting queue. A request costs O(log n) when it comes, and O(1) amortised afterwards.

    Ranks that share a queue agree on its order because it follows from ``clock_s``, which one of them tells the others.
    ``answer_s``, which comes with it, is how long an answer is expected to take from its first token to its last.
    times: predicts what a prompt costs; where it is None no prompt is known to be late, so none is passed over.
    """

    def __init__(self, scheduler: Scheduler, promises: Promises, times: StepTimes | None) -> None:
        self._scheduler = scheduler
        self._promises = promises
        self._times = times
        self._admission: Admission[Request] = Admission(self.ticket)
        self._capacities = Capacities(scheduler)
        self._told = scheduler.disaggregation_mode is not DisaggregationMode.PREFILL
        self._ordered = False
        self.arrivals = Arrivals()
        self._came: deque[tuple[int, int]] = deque(maxlen=RECENT)
        self.clock_s = 0.0
        self.answer_s = 0.0

    @property
    def newcomer(self) -> tuple[int, int]:
        """A prompt that may come in the very pass that is decided: of the last ones that with the most cached tokens,
        as it came. Tokens to be computed and those cached; nothing before the first."""
        return max(self._came, key=itemgetter(1), default=(0, 0))

    @property
    def newcomer_first(self) -> bool:
        """Whether a prompt that comes now goes before all that wait: nobody does, or others pass those that do."""
        queue = self._scheduler.waiting_queue
        return not queue or (self._ordered and self.ticket(queue[0]).rank is Rank.RELEGATED)

    @property
    def in_flight_is_late(self) -> bool:
        """Whether there is a prompt in flight that is late, so that whoever is not goes before it."""
        in_flight = self._scheduler.chunked_req
        if in_flight is None or not self._ordered:
            return False
        ticket = self.ticket(in_flight)
        return ticket.due_s < self.clock_s or ticket.rank is Rank.RELEGATED

    @property
    def relegated(self) -> int:
        """Waiting requests that others pass, as of the last look."""
        return self._admission.relegated if self._ordered else 0

    def due_s(self, now_s: float) -> float | None:
        """Seconds until the first token of the next prompt is due, or of the one in flight; see QueueState."""
        queue = self._scheduler.waiting_queue
        return self._admission.due_s(now_s, self._scheduler.chunked_req, queue[0] if queue else None)

    def due_before(self) -> int:
        """How many that wait are due before the prompt in flight, and get room of its chunk; 0 without one."""
        in_flight = self._scheduler.chunked_req
        if in_flight is None or not self._ordered:
            return 0
        return self._admission.due_before(self.clock_s, in_flight, self._scheduler.waiting_queue)

    def came(self, request: Request, *, retracted: bool) -> None:
        """Note that a request is the last of the queue now, and put it where it belongs."""
        queue = self._scheduler.waiting_queue
        if not queue or queue[-1] is not request:
            return  # refused, or passed on to another queue
        if getattr(request, _TICKET, None) is None:
            self._look_up(request)
            tokens, cached = max(1, request.seqlen - int(request.prefix_len)), int(request.prefix_len)
            self._came.append((tokens, cached))
            self.arrivals.add(self.clock_s, self._promises.slo_of(request), tokens, cached)
        ticket = self.ticket(request)
        if retracted:
            ticket.rank = Rank.AGED  # its client is reading already, so it goes before prompts without a token
        if self._ordered:
            del queue[-1]
            self._admission.insert(queue, request)

    def settle(self) -> None:
        """Put requests where they belong that joined the queue without ``came`` being told, as on a server that only
        prefills: there they come out of a queue of their own. In the same pass on all ranks, so that all give them the
        same time."""
        if self._told:
            return
        queue = self._scheduler.waiting_queue
        new = [request for request in queue if getattr(request, _TICKET, None) is None]
        for request in new:
            self._look_up(request)
            self.ticket(request)
        if new and self._ordered:
            self._admission.sort(queue)

    def ticket(self, request: Request) -> Ticket:
        """The ticket that a request's place in the queue follows from; made when it is first asked for."""
        ticket: Ticket | None = getattr(request, _TICKET, None)
        if ticket is None:
            cached = int(request.prefix_len)
            tokens = max(1, request.seqlen - cached)
            class_due_s = self._due_s(self._promises.class_slo_of(request))
            slo = self._promises.slo_of(request)
            due_s = min(class_due_s, self._due_s(slo))
            prefill_s = 0.0
            if self._times is not None:
                shape = BatchShape.of(prefill=[(tokens, cached)])
                prefill_s = self._times.step_s(prefill=shape, decode=EMPTY, graph=False)
            ticket = Ticket(
                self.clock_s,
                due_s,
                prefill_s,
                tokens=tokens,
                class_due_s=class_due_s if due_s < class_due_s else None,
                itl_s=inf if slo.itl_s is None else slo.itl_s,
            )
            setattr(request, _TICKET, ticket)
        return ticket

    def _due_s(self, slo: Slo) -> float:
        """When the first token of a prompt that comes now is due at the latest, on the ranks' clock."""
        # A request that has to end in time needs its first token as long before as the rest is expected to take.
        ends_s = inf if slo.e2e_s is None else slo.e2e_s - self.answer_s
        latest_s = min(inf if slo.ttft_s is None else slo.ttft_s, ends_s)
        return self.clock_s + (NO_TARGET_S if latest_s == inf else latest_s)

    def _look_up(self, request: Request) -> None:
        """Find out how many tokens of a prompt the prefix cache has, as it comes: nothing of it runs or is locked there
        yet. SGLang looks again when the prompt is next."""
        tree = self._scheduler.tree_cache
        if tree.supports_prefix_sharing() and request.positional_embed_overrides is None:
            match_kv_cache(request, tree)

    def order(self, by_deadline: bool) -> None:
        """Adopt an order; costs something only when it changes."""
        if by_deadline == self._ordered:
            return
        self._ordered = by_deadline
        queue = self._scheduler.waiting_queue
        if by_deadline:
            self._admission.sort(queue)
        else:
            queue.sort(key=lambda request: self.ticket(request).arrival_s)

    def judged(
        self, now_s: float, ahead_s: float, pace: float, relegate_for_s: float, defended_s: float = 0.0, *,
        soon_s: float = 0.0, chunk_tokens: int = 0, room_s: float = inf,
    ) -> dict[str, Rank]:  # fmt: skip
        """Requests whose place in the queue should change, by id, with their new rank. Changes nothing.

        ahead_s: until the next prompt can start behind the one in flight. soon_s: until one can that goes beside it,
        whole in a chunk of ``chunk_tokens`` that takes ``room_s``, both at most. defended_s: the tightest target
        between tokens that is kept.
        """
        if not self._ordered or self._times is None:
            return {}
        queue = self._scheduler.waiting_queue
        moved = {request.rid: Rank.AGED for request in self._admission.aged(queue, now_s, relegate_for_s)}
        if relegate_for_s > 0:
            in_flight, beside = self._scheduler.chunked_req, 0
            if in_flight is not None:
                beside = self._admission.beside(now_s, in_flight, queue, chunk_tokens, room_s=room_s, ahead_s=ahead_s)
                if self._admission.steps_back(now_s, in_flight, ahead_s):
                    moved[in_flight.rid] = Rank.RELEGATED
            late = self._admission.hopeless(queue, now_s, ahead_s, pace, defended_s, beside=beside, soon_s=soon_s)
            for request in late:
                moved[request.rid] = Rank.RELEGATED
        return moved

    def move(self, moved: Mapping[str, Rank]) -> None:
        """Give waiting requests their new places, and the one in flight its rank; requests that have left the queue are
        skipped."""
        if not moved or not self._ordered:
            return
        queue, in_flight = self._scheduler.waiting_queue, self._scheduler.chunked_req
        if in_flight is not None and in_flight.rid in moved:
            self.ticket(in_flight).rank = moved[in_flight.rid]
        for request in [request for request in queue if request.rid in moved]:
            self._admission.move(queue, request, moved[request.rid])

    def chunk_limit(self, request: Request, budget: int, page: int) -> int | None:
        """Most tokens of a chunk for the prompt in flight, so that prompts due before it can enter; None: all of it."""
        if not self._ordered:
            return None

        def whole_pages(other: Request) -> int:
            return -(-max(1, other.seqlen - other.prefix_len) // page) * page

        queue = self._scheduler.waiting_queue
        # The pools are as full on all ranks: SGLang itself decides by them on each who enters.
        capacities = self._capacities.now(0) if queue else ()
        kept = self._admission.kept_tokens(
            self.clock_s, request, queue, whole_pages, budget, page, capacities=capacities
        )
        return (budget - kept) // page * page if kept else None
