"""The scheduler of a Plant; what it models and what not is said there."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from random import Random
from typing import NamedTuple

from roofline_policies.contract.decision import Decision
from roofline_policies.contract.view import ForwardMode, IterationRecord, PlannedGap, QueueState, told_apart
from roofline_policies.control.chunk import chunk_of_pass
from roofline_policies.control.controller import DECIDE_AT_LEAST_EVERY_S, STALLED_AFTER, Controller, State
from roofline_policies.control.steps_in_flight import Told
from roofline_policies.model.batch import BatchShape
from roofline_policies.slo.admission import NO_TARGET_S, Admission, Rank, Ticket
from roofline_policies.slo.capacity import Capacity
from roofline_policies.slo.demand import Arrivals
from roofline_policies.slo.objectives import Objectives, Slo
from roofline_policies.slo.prefill_rate import PrefillRate
from roofline_policies.slo.running_targets import RunningTargets
from roofline_policies.steps.times import StepTimes
from roofline_policies.testing.device import work_of
from roofline_policies.testing.machine import Machine
from roofline_policies.testing.results import Answer, Moment, Request, Run, Step

EMPTY = BatchShape()

RECENT_ANSWERS = 64
"""Answers whose lengths tell how long the next ones are at least: the tenth of them that is shortest is left out."""

Tamper = Callable[[IterationRecord], IterationRecord | None]


@dataclass(eq=False, slots=True)
class _Job:
    """A request on its way.

    prompt_done: prompt tokens launched. launched: output tokens launched. token_s: those received.
    """

    request: Request
    received_s: float
    slo: Slo
    ticket: Ticket
    prompt_done: int = 0
    launched: int = 0
    token_s: list[float] = field(default_factory=list)
    started_s: float | None = None
    relegated: bool = False

    @property
    def context(self) -> int:
        """KV tokens that its next decode step attends to."""
        return self.request.prompt_tokens + self.launched

    @property
    def tokens(self) -> int:
        """KV tokens that it has at its end."""
        return self.request.prompt_tokens + self.request.output_tokens

    @property
    def finished(self) -> bool:
        return len(self.token_s) == self.request.output_tokens


class _Batch(NamedTuple):
    iteration: int
    mode: ForwardMode
    prefill: BatchShape
    decode: BatchShape
    joining: list[_Job]
    rows: list[_Job]
    launched_s: float
    done_s: float
    step_s: float
    followed: bool
    told: Told | None
    gap: PlannedGap | None


class Server:
    """The state of one run."""

    def __init__(
        self, machine: Machine, controller: Controller, times: StepTimes, predictor: StepTimes | None,
        objectives: Objectives, seed: int,
    ) -> None:  # fmt: skip
        self.machine, self.controller, self.times, self.predictor = machine, controller, times, predictor
        self.objectives, self.random = objectives, Random(seed)
        self.now_s = self.free_s = self.busy_until_s = 0.0
        self.decided_s = float("-inf")
        self.waiting: list[_Job] = []
        self.running: list[_Job] = []
        self.part_way: _Job | None = None
        self.iterations = self.unreported = 0
        self.held: dict[_Job, int] = {}
        self.in_flight: deque[_Batch] = deque()
        self.records: deque[tuple[int, IterationRecord]] = deque()
        self.processed = 0
        self.admission: Admission[_Job] = Admission(lambda job: job.ticket)
        self.ordered = False
        self.pace = PrefillRate()
        self.targets: RunningTargets[_Job] = RunningTargets(lambda job: job.finished)
        self.lengths: deque[int] = deque(maxlen=RECENT_ANSWERS)
        self.arrivals = Arrivals()
        self.steps: list[Step] = []
        self.moments: list[Moment] = []

    def serve(self, asked: list[Request], limit_s: float, tamper: Tamper) -> Run:
        """See Plant.run."""
        arrivals = deque(sorted(range(len(asked)), key=lambda index: asked[index].arrival_s))
        jobs: dict[int, _Job] = {}
        while self.now_s < limit_s:
            if not (self.waiting or self.running or self.part_way or self.in_flight):
                if not arrivals:
                    break
                self.now_s = max(self.now_s, asked[arrivals[0]].arrival_s)
                self.controller.pause()
                self.targets.clear()
            else:
                self.decide()
            while arrivals and asked[arrivals[0]].arrival_s <= self.now_s:
                index = arrivals.popleft()
                jobs[index] = self.take_in(asked[index])
            prompts = bool(self.waiting or self.part_way)
            batch = self.next_batch(prompts)
            if batch is None and not self.in_flight:
                raise RuntimeError(f"{len(self.waiting)} requests wait and none is let in: {self.controller.knobs}")
            if batch is None or len(self.in_flight) > self.machine.overlap:
                self.finish(self.in_flight.popleft(), tamper)
        answers = []
        for index, request in enumerate(asked):
            job = jobs.get(index)
            came = Answer(request) if job is None else Answer(request, tuple(job.token_s), job.started_s, job.relegated)
            answers.append(came)
        return Run(tuple(answers), tuple(self.steps), tuple(self.moments), self.controller.fallback_reason)

    @property
    def active(self) -> bool:
        """Whether the policy decides."""
        return self.controller.state is State.ACTIVE

    def decide(self) -> None:
        """A decision where one could matter, and the order of admission that follows from it."""
        prompts = bool(self.waiting or self.part_way)
        if self.active and not prompts and self.now_s - self.decided_s < DECIDE_AT_LEAST_EVERY_S:
            return
        while self.records and self.records[0][0] + self.machine.delay_steps <= self.processed:
            self.unreported = 0
            self.controller.observe(self.records.popleft()[1])
        self.decided_s = self.now_s
        if self.active and self.ordered and self.predictor is not None:
            self.judge(self.controller.knobs.relegate_for_s, self.controller.knobs.defended_s)
        queue = self.queue()
        decision: Decision = self.controller.decide(self.now_s, queue)
        self.moments.append(Moment(self.now_s, queue, decision.knobs, decision.changes))
        if decision.knobs.deadline_order != self.ordered:
            self.ordered = decision.knobs.deadline_order
            if self.ordered:
                self.admission.sort(self.waiting)
            else:
                self.waiting.sort(key=lambda job: job.ticket.arrival_s)

    def judge(self, relegate_for_s: int, defended_s: float) -> None:
        """Put those that cannot be in time behind the others, and those that were there for long enough first."""
        moved = dict.fromkeys(self.admission.aged(self.waiting, self.now_s, relegate_for_s), Rank.AGED)
        if relegate_for_s > 0:
            part_way, beside = self.part_way, 0
            left = 0.0 if part_way is None else 1.0 - part_way.prompt_done / part_way.request.prompt_tokens
            ahead_s = self.pace.ahead_s(0.0 if part_way is None else part_way.ticket.prefill_s * left)
            if part_way is not None:
                if self.admission.steps_back(self.now_s, part_way, ahead_s):
                    part_way.ticket.rank, part_way.relegated = Rank.RELEGATED, True
                most = self.machine.prefill_chunk_tokens
                beside = self.admission.beside(
                    self.now_s, part_way, self.waiting, most, room_s=self.controller.room_s, ahead_s=ahead_s
                )
            late = self.admission.hopeless(
                self.waiting, self.now_s, ahead_s, self.pace.pace, defended_s,
                beside=beside, soon_s=self.pace.ahead_s(0.0),
            )  # fmt: skip
            for job in late:
                moved[job] = Rank.RELEGATED
                job.relegated = True
        for job, rank in moved.items():
            self.admission.move(self.waiting, job, rank)

    def queue(self) -> QueueState:
        """The queues as sglang_patches.requests.queues tells them."""
        running, part_way, waiting = self.running, self.part_way, self.waiting
        prefix = part_way.prompt_done if part_way is not None else 0
        prompts = [] if part_way is None else [(part_way.request.prompt_tokens - prefix, prefix)]
        tokens = sum(asked for asked, _ in prompts)
        due_before = 0
        if self.ordered and part_way is not None:
            due_before = self.admission.due_before(self.now_s, part_way, waiting)
        for place, job in enumerate(waiting):
            if tokens - (prompts[0][0] if place < due_before else 0) >= self.machine.prefill_chunk_tokens:
                break
            prompts.append((job.request.prompt_tokens, 0))
            tokens += job.request.prompt_tokens
        least = sorted(self.lengths)[len(self.lengths) // 10] if self.lengths else 1
        defended_s = self.controller.knobs.defended_s
        need = self.targets.need(self.now_s, self.controller.token_s, least, defended_s=defended_s)
        mean = sum(self.lengths) / len(self.lengths) if self.lengths else None
        used = sum(job.context for job in running) + prefix
        return QueueState(
            running=len(running), waiting=len(waiting), next_prefill_tokens=tokens,
            chunk_in_flight=part_way is not None, next_prefix_tokens=prefix,
            next_prompts=told_apart(prompts),
            due_before=due_before,
            decode_context_tokens=sum(job.context for job in running),
            gap_s=need.gap_s, mean_s=need.mean_s, due_s=need.due_s,
            prompt_due_s=self.admission.due_s(self.now_s, part_way, waiting[0] if waiting else None),
            relegated=self.admission.relegated if self.ordered else 0, kv_use=used / self.machine.kv_tokens,
            capacities=self.capacities(),
            demand=self.arrivals.now(self.now_s, mean),
        )  # fmt: skip

    def capacities(self) -> tuple[Capacity, ...]:
        """What requests can run out of: room for a whole answer is taken when its prompt enters."""
        first = self.waiting[0].tokens if self.waiting else 0
        return self.machine.capacities([*self.held.values()], len(self.running), first)

    def fits(self, job: _Job) -> bool:
        """Whether every capacity that cannot be exceeded has room for a request."""
        return all(
            one.used + self.machine.takes(one.resource, job.tokens) <= one.size for one in self.capacities() if one.hard
        )

    def take_in(self, request: Request) -> _Job:
        """What is kept of a request that has arrived."""
        slo, tokens = self.objectives.of(request.priority), request.prompt_tokens
        latest_s = slo.ttft_s if slo.ttft_s is not None else slo.e2e_s
        alone_s = 0.0
        if self.predictor is not None:
            alone_s = self.predictor.step_s(prefill=BatchShape.of([(tokens, 0)]), decode=EMPTY, graph=False)
        due_s = self.now_s + (NO_TARGET_S if latest_s is None else latest_s)
        ticket = Ticket(self.now_s, due_s, alone_s, tokens=tokens, itl_s=inf if slo.itl_s is None else slo.itl_s)
        self.arrivals.add(self.now_s, slo, tokens)
        job = _Job(request, self.now_s, slo, ticket)
        if self.ordered:
            self.admission.insert(self.waiting, job)
        else:
            self.waiting.append(job)
        return job

    def next_batch(self, prompts: bool) -> _Batch | None:
        """The next step, launched; None where nothing can run."""
        knobs, rows = self.controller.knobs, list(self.running)
        deferred = knobs.defer_prefill and bool(rows)
        mixed, chunk = self.chunk(len(rows))
        taken = [] if deferred else self.admit(chunk - len(rows) * mixed)
        if not taken and not rows:
            return None
        of_prompts = ForwardMode.MIXED if mixed and rows else ForwardMode.PREFILL
        mode = of_prompts if taken else ForwardMode.DECODE
        decode = EMPTY if mode is ForwardMode.PREFILL else BatchShape.of(decode_contexts=[job.context for job in rows])
        prefill = BatchShape.of([(tokens, job.prompt_done) for job, tokens in taken])
        return self.launch(
            mode, prefill, decode, taken, [] if mode is ForwardMode.PREFILL else rows, deferred and prompts
        )

    def chunk(self, rows: int) -> tuple[bool, int]:
        """Whether decode rows ride along, and the chunk."""
        chunk = chunk_of_pass(self.controller.knobs, self.machine.launch, rows, least_prompt_tokens=1)
        assert chunk is not None  # a Machine always chunks
        return chunk

    def admit(self, budget: int) -> list[tuple[_Job, int]]:
        """Prompts for this step with how many of their tokens it computes."""
        taken: list[tuple[_Job, int]] = []
        room = self.controller.knobs.max_running_requests - len(self.running)
        part_way = self.part_way
        if part_way is not None:
            tokens = min(part_way.request.prompt_tokens - part_way.prompt_done, self.limit(part_way, budget))
            if tokens > 0:
                taken.append((part_way, tokens))
                budget -= tokens
                if part_way.prompt_done + tokens == part_way.request.prompt_tokens:
                    self.part_way = None
        while self.waiting and budget > 0 and len(taken) < room:
            job = self.waiting[0]
            request = job.request
            if not self.fits(job):
                break
            tokens = min(budget, request.prompt_tokens)
            if tokens < request.prompt_tokens:
                if self.part_way is not None:
                    break
                self.part_way = job
            del self.waiting[0]
            self.held[job] = job.tokens
            taken.append((job, tokens))
            budget -= tokens
        return taken

    def limit(self, part_way: _Job, budget: int) -> int:
        """Most tokens of the prompt part-way, so that prompts that are due before it and fit beside it can enter."""
        if not self.ordered:
            return budget
        return budget - self.admission.kept_tokens(
            self.now_s, part_way, self.waiting, lambda job: job.request.prompt_tokens, budget,
            capacities=self.capacities(),
        )  # fmt: skip

    def launch(
        self, mode: ForwardMode, prefill: BatchShape, decode: BatchShape, taken: list[tuple[_Job, int]],
        rows: list[_Job], deferred: bool,
    ) -> _Batch:  # fmt: skip
        self.iterations += 1
        machine, start_s = self.machine, max(self.now_s, self.free_s)
        drawn = min(3.0, max(-3.0, self.random.gauss(0.0, 1.0)))
        factor = machine.bias * max(0.1, 1.0 + machine.noise * drawn)
        if machine.pause_share and self.random.random() < machine.pause_share:
            factor *= machine.pause_factor
        graph = mode is ForwardMode.DECODE
        self.free_s = start_s + factor * self.times.step_s(prefill=prefill, decode=decode, graph=graph)
        told, gap, followed = None, None, self.active
        if followed:
            told, gap = self.controller.launched(mode, self.now_s, prefill, decode)
            self.unreported += 1
            if self.unreported > STALLED_AFTER:
                self.controller.fall_back(f"{self.unreported} iterations ran and none reported its work")
        if not graph:
            served_s = sum(job.ticket.prefill_s * tokens / job.request.prompt_tokens for job, tokens in taken)
            self.pace.launched(self.now_s, served_s, prompts_wait=bool(self.waiting or self.part_way))
            self.decided_s = float("-inf")
        joining = []
        for job, tokens in taken:
            job.prompt_done += tokens
            if job.started_s is None:
                job.started_s = self.now_s
            if job.prompt_done == job.request.prompt_tokens:
                joining.append(job)
        for job in (*rows, *joining):
            job.launched += 1
        ends_s = self.controller.in_flight.free_s(self.now_s)
        for job in joining:  # the next step is decided before these have their first token
            self.targets.join(job, job.slo, job.received_s, ends_s, 1)
        self.running = [job for job in (*self.running, *joining) if job.launched < job.request.output_tokens]
        batch = _Batch(
            self.iterations, mode, prefill, decode, joining, rows,
            self.now_s, self.free_s, self.free_s - start_s, followed, told, gap,
        )  # fmt: skip
        self.in_flight.append(batch)
        self.steps.append(Step(mode, self.now_s, start_s, self.free_s, prefill.new_tokens, len(rows), deferred))
        return batch

    def finish(self, batch: _Batch, tamper: Tamper) -> None:
        """The host sees a step's result."""
        self.now_s = max(self.now_s, batch.done_s)
        for job in (*batch.rows, *batch.joining):
            job.token_s.append(batch.done_s)
            if job.finished:
                del self.held[job]
                self.lengths.append(job.request.output_tokens)
        if batch.mode is not ForwardMode.PREFILL:
            self.targets.step()
        for job in batch.joining:
            if not job.finished:
                self.targets.join(job, job.slo, job.received_s, batch.done_s, len(job.token_s))
        self.processed += 1
        shape, told = batch.prefill + batch.decode, batch.told
        record = tamper(IterationRecord(
            batch.iteration, batch.mode, shape.requests, shape.new_tokens, shape.context_tokens, 0, False,
            work_of(shape), batch.step_s, "host clock", batch.done_s, batch.step_s, True,
            None if told is None else told.predicted_s, None if told is None else told.margin, batch.gap,
        ))  # fmt: skip
        if record is not None and batch.followed and self.active:
            self.records.append((self.processed, record))
