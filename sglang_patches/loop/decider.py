"""What the deciding rank does: observe its scheduler, decide, and tell people; failures are contained."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import wraps
from typing import Any

from roofline_policies.contract.decision import Bounds
from roofline_policies.contract.view import ForwardMode, QueueState
from roofline_policies.control.controller import DECIDE_AT_LEAST_EVERY_S, STALLED_AFTER, Controller, State
from roofline_policies.control.status import LoopTimer, explain, status
from roofline_policies.control.transitions import COSTLY_KNOBS
from roofline_policies.errors import InputError
from roofline_policies.plain import plain
from roofline_policies.settings.loading import Settings
from roofline_policies.slo.admission import Rank
from sglang_patches.loop.applier import Applier
from sglang_patches.loop.drafted import Drafted
from sglang_patches.loop.guard import contained, timed
from sglang_patches.loop.layout import launch_knobs, launch_ranges, not_counted
from sglang_patches.loop.loaded import Loaded
from sglang_patches.loop.reports import Reports
from sglang_patches.needs.objects import Batch, Request, Scheduler, StepResult
from sglang_patches.observe.observer import Observer
from sglang_patches.observe.recorder import Recorder, of_rank
from sglang_patches.requests.capacities import Capacities
from sglang_patches.requests.output_watch import OutputWatch
from sglang_patches.requests.prefill_rate import PrefillWatch
from sglang_patches.requests.progress import Progress
from sglang_patches.requests.queues import Queues
from sglang_patches.server.agree import KnobsUpdate, alone, scheduler_index
from sglang_patches.server.company import Company
from sglang_patches.server.facts import Served, roofline_times

logger = logging.getLogger(__name__)


class Decider:
    """Observes one scheduler and decides for all ranks that share its waiting queue (see agree).

    served: what runs there and how it is timed. company: the ranks that must follow, None where there are no others or
    nothing tells of them. applier: the part that every rank has, of this one.

    Raises:
        InputError: the settings ask for something this server cannot do.
    """

    def __init__(
        self, scheduler: Scheduler, settings: Settings, served: Served, company: Company | None = None
    ) -> None:
        if settings.ceilings is None:
            raise InputError("has no ceilings", where=settings.source, key="hardware")
        self.scheduler = scheduler
        self.settings = settings
        self.spent_s = 0.0
        self.timer = LoopTimer()
        self.loaded = Loaded()
        self._queues = Queues(scheduler, Capacities(scheduler, max(served.graph_sizes, default=None)))
        self._alone = alone()
        self._company = company
        self._unreported = 0
        self._decided_s = float("-inf")
        self._drafted = Drafted(scheduler)
        self._outputs = OutputWatch()
        times = served.predictor if served.predictor is not None else roofline_times(served, settings)
        self.applier = Applier(scheduler, settings.objectives, times, self.fall_back)
        self._service = PrefillWatch(self.applier.waiting.ticket)
        slo_of = self.applier.promises.slo_of
        self._progress = Progress(settings.objectives.server, slo_of, drafts=self._drafted.totals is not None)
        self.observer = Observer(
            served.model,
            interval=served.interval,
            graph_sizes=served.graph_sizes,
            drafts=self._drafted.of_step,
            inline=served.inline_work(scheduler.device),
            tree_cache=scheduler.tree_cache,
            attention=served.attention,
            linear=served.linear,
            not_counted=not_counted(scheduler),
        )
        self._known, self._settle = served.known, served.settle
        self._ranges = launch_ranges(scheduler)  # now: the actuator moves what they are read from
        bounds, unmet = settings.bounds_near(*self._ranges)
        for error in unmet:
            logger.warning(f"Roofline: {error}. The knob moves within the launch range.")
        for knob, reason in bounds.immovable.items():
            logger.warning(f"Roofline: {knob.value} cannot be moved: {reason}. Policies that ask for it idle.")
        self.controller = Controller(
            settings.policy,
            ceilings=settings.ceilings,
            bounds=bounds,
            launch=launch_knobs(scheduler),
            slo=settings.objectives.server,
            settings=settings.controller,
            started_s=time.monotonic(),
            predictor=times,
            rows_per_request=self._drafted.rows,
        )
        self._learned = served.learned
        if self._learned is not None:
            self._learned.restore(self.controller.in_flight)
        # Knobs narrow what the server was launched with, so this is the most prompt tokens of any step.
        self._most_tokens = launch_knobs(scheduler).prefill_chunk_tokens or scheduler.max_prefill_tokens
        series = scheduler.metrics_reporter.enable_metrics
        self._reports = Reports(
            self.controller, settings, time.monotonic(), device_uuid=served.device_uuid, series=series,
            drafts=self._drafted.totals,
        )  # fmt: skip
        self._recorder = _recorder(settings)
        self._wrap_forward()
        work = "counted by the attention kernels" if served.counters is not None else served.model.provenance.value
        told = f"Roofline: policy {settings.name} from {settings.source} decides; ceilings: {settings.ceilings.origin}"
        attention = "" if served.attention is None else f"; attention: {served.attention.name}"
        logger.info(plain(f"{told}; work: {work}{attention}"))

    def _wrap_forward(self) -> None:
        """Time every forward pass where the scheduler calls its worker, draft and verify steps included."""
        generates, target = self.scheduler.model_worker, self.scheduler.tp_worker
        generates.forward_batch_generation = self._with_time(generates.forward_batch_generation)
        target.forward_batch_embedding = self._with_time(target.forward_batch_embedding)

    def _with_time(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(forward)
        def forward_with_time(*args: Any, **kwargs: Any) -> Any:
            self.forward_starts()
            result = forward(*args, **kwargs)
            self.forward_ends()
            return result

        return forward_with_time

    def fall_back(self, reason: str, error: BaseException | None = None) -> None:
        """Turn to the launch settings until a policy is loaded anew; the next decision tells every rank."""
        if self.controller.state is State.ACTIVE:
            self.controller.fall_back(reason)
            logger.error(f"Roofline: {reason}. The launch settings hold from now on.", exc_info=error)

    def bounds_of(self, settings: Settings) -> Bounds:
        """How far settings let the knobs move here.

        Raises:
            InputError: they ask for what the server was not launched with.
        """
        return settings.bounds_for(*self._ranges)

    def reload(self, settings: Settings) -> None:
        """Decide by other settings from the next pass on, also after the policy failed.

        What was observed, learned and counted is kept; see Controller.adopt. settings: with the ceilings in use.

        Raises:
            InputError: bounds that the server was not launched with; nothing has changed then.
        """
        controller, bounds = self.controller, self.bounds_of(settings)
        revived_from = controller.fallback_reason
        if revived_from is not None:  # what ran since was not followed
            self.observer.forget()
            self._progress.clear()
            self._unreported = 0
        slo = settings.objectives.server
        for change in controller.adopt(time.monotonic(), settings.policy, slo, settings.controller, bounds):
            logger.info(f"Roofline. {change.knob.value}: {change.old} -> {change.new} ({change.reason})")
        self._progress.adopt(slo, self._queues.decoding())
        # The scheduler's own ceilings: they cover the model's precision, those of the launch may not.
        self.settings = replace(settings, ceilings=self.settings.ceilings)
        self._decided_s = float("-inf")
        self._reports.adopt(settings)
        self.loaded.again(settings, revived_from)

    @property
    def _active(self) -> Controller | None:
        """The controller while its policy decides, None after it failed."""
        return self.controller if self.controller.state is State.ACTIVE else None

    @timed
    @contained
    def launching(self, batch: Batch) -> None:
        controller = self._active
        launch = self.observer.launch(batch) if controller is not None else None
        if controller is None or launch is None:
            return
        now_s = time.monotonic()
        told, launch.gap = controller.launched(launch.mode, now_s, launch.prefill, launch.decode)
        if told is not None:
            launch.predicted_s, launch.margin = told
        if launch.mode is not ForwardMode.DECODE:
            self._service.launched(batch, now_s, self._queues.prompts())
            self._decided_s = float("-inf")  # other requests run from now on: decide anew in the next pass

    @timed
    @contained
    def forward_starts(self) -> None:
        if self._active is not None:
            self.observer.forward_starts()

    @timed
    @contained
    def forward_ends(self) -> None:
        if self._active is not None:
            self.observer.forward_ends()

    @timed
    @contained
    def launched(self, batch: Batch) -> None:
        controller = self._active
        if controller is None:
            return
        launch = self.observer.launched(batch)
        if launch is None:
            return  # it computes nothing, as where an attention rank only keeps others company
        prefill, decode = launch.prefill, launch.decode
        ends_s = 0.0 if decode.requests and not prefill.requests else controller.in_flight.free_s(time.monotonic())
        self._progress.launched(batch, prefill.context_tokens + decode.context_tokens, ends_s)
        self._unreported += 1
        if self._unreported > STALLED_AFTER:
            self.fall_back(f"{self._unreported} iterations ran and none reported its work")

    @timed
    @contained
    def finished(self, batch: Batch, result: StepResult) -> None:
        if self._settle is not None and (settled := self._settle()) is not None:
            self._settle = None
            model, self._known = settled
            self.observer.follow(model)
        controller, now_s = self._active, time.monotonic()
        if controller is not None:
            launch = self.observer.finish(batch, result, now_s)
            self._progress.finished(batch, self._drafted.finished(controller, launch, batch, result, now_s))
            self._outputs.finished(batch)

    @timed
    @contained
    def decide(self) -> KnobsUpdate | None:
        """The update to broadcast, None while nothing changes or when none is due."""
        controller, actuator, now_s = self.controller, self.applier.actuator, time.monotonic()
        if self._company is not None and not self._follow(self._company, now_s):
            return None
        answer_s = self._answer_s(controller)
        if self._alone:
            self.applier.waiting.clock_s, self.applier.waiting.answer_s = now_s, answer_s
        if self.scheduler._engine_paused or self._queues.idle():
            self._pause(now_s, controller)
            # Other ranks must not take the last busy moment for the present when the next request comes.
            if controller.knobs == actuator.knobs and (self._alone or not self._stale(now_s)):
                return None
            self._decided_s = now_s
            return KnobsUpdate(controller.knobs, now_s, answer_s=answer_s)
        if controller.state is State.ACTIVE and not self._due(now_s):
            self._account()
            return None
        self._take_records()
        self._decided_s = now_s
        was = controller.state
        moved = self._judge(now_s) if was is State.ACTIVE else {}
        if self._alone:  # before a chunk is planned for those who enter
            self.applier.waiting.move(moved)
            moved = {}
        decision = controller.decide(now_s, self._queue(now_s, controller) if was is State.ACTIVE else controller.queue)
        if controller.state is not was:
            logger.error(f"Roofline: {controller.fallback_reason}. The launch settings hold from now on.")
        if any(change.knob in COSTLY_KNOBS for change in decision.changes):
            logger.info(f"Roofline. {explain(controller.queue, decision)}")
        self._account()
        self._report(now_s)
        if decision.knobs == actuator.knobs and not moved and (self._alone or not decision.knobs.deadline_order):
            return None
        return KnobsUpdate(decision.knobs, now_s, moved, answer_s)

    def _follow(self, company: Company, now_s: float) -> bool:
        """Whether all ranks follow; until then nothing is decided, and why is said as it changes."""
        before = company.problem
        if company.complete(now_s):
            self._company = None
            return True
        if company.problem != before:
            logger.warning(f"Roofline: {company.problem}. The launch settings hold until then.")
        self._take_records()
        return False

    def _answer_s(self, controller: Controller) -> float:
        """Seconds that an answer is expected to take from its first token to its last, as tokens come now."""
        return (self._outputs.typical() - 1) * controller.token_s / self._drafted.tokens

    def _judge(self, now_s: float) -> Mapping[str, Rank]:
        """Waiting requests that should wait elsewhere."""
        service, knobs = self._service, self.controller.knobs
        return self.applier.waiting.judged(
            now_s, service.ahead_s(self.scheduler.chunked_req), service.pace, knobs.relegate_for_s, knobs.defended_s,
            soon_s=service.ahead_s(None), chunk_tokens=self._most_tokens, room_s=self.controller.room_s,
        )  # fmt: skip

    @contained
    def joined(self, batch: Batch) -> None:
        """Note that requests with a first token join the running batch, which another server computed."""
        if self._active is not None:
            self._progress.joined(batch.reqs, time.monotonic())

    @contained
    def retracted(self, request: Request) -> None:
        """Note that a running request went back to the waiting queue."""
        self._progress.retracted(request)

    @contained
    def status(self) -> dict[str, Any]:
        """This rank's state for the status page."""
        self._take_records()
        now_s, followed = time.monotonic(), None if self._active is None else self._progress
        hit_rate = self.observer.cache_hit_rate
        queue = self._queues.now(now_s, followed, retractions=self.applier.retractions, hit_rate=hit_rate)
        page = status(self.controller, now_s, queue)
        names = {"name": plain(self.settings.name), "source": plain(self.settings.source)}
        page["policy"] |= names | asdict(self.loaded)
        page["not_counted"] = list(self.observer.not_counted)
        page["waits_for"] = None if self._company is None else self._company.problem
        page["precision"] = self.observer.precision.value
        page["model"] = dict(self._known)
        page["drafts"] = self._drafted.shown(self.controller, now_s, queue)
        page["asked_slo"] = self.applier.promises.shown()
        page["policy_time_s"] = self.timer.to_dict()
        page["device_now"] = self._reports.device_now()
        return page

    def _pause(self, now_s: float, controller: Controller) -> None:
        """Nothing runs: no time passes for the observer, and no request waits for a token."""
        self._take_records()
        self.observer.interrupt()
        controller.pause()
        if self._queues.idle():
            self._progress.clear()
        if self._recorder is not None:
            self._recorder.flush()
        self._forget_cost()
        self._report(now_s)

    def _due(self, now_s: float) -> bool:
        """Whether a decision could matter now. While requests only decode and no prompt waits, nothing is admitted:
        then deciding now and then is enough to be ready for the next prompt."""
        return self._queues.prompts() or self._stale(now_s)

    def _stale(self, now_s: float) -> bool:
        return now_s - self._decided_s >= DECIDE_AT_LEAST_EVERY_S

    def _take_records(self) -> None:
        controller = self._active
        if controller is not None:
            for record in self.observer.records():
                self._unreported = 0
                controller.observe(record)
                if self._recorder is not None:
                    self._recorder.add(record, **self._queues.counts())

    def _account(self) -> None:
        spent_s = self.spent_s + self.applier.spent_s
        self.timer.add(spent_s)
        self._reports.iteration(spent_s)
        self._forget_cost()

    def _forget_cost(self) -> None:
        self.spent_s = self.applier.spent_s = 0.0

    def _queue(self, now_s: float, controller: Controller) -> QueueState:
        outputs, waiting, decode_s = self._outputs, self.applier.waiting, controller.decode.step_s or 0.0
        tokens = self._drafted.tokens
        need = self._progress.need(
            now_s, controller.token_s / tokens, outputs.least(), expected=outputs.expected, fastest_s=decode_s / tokens,
            defended_s=controller.knobs.defended_s,
        )  # fmt: skip
        return self._queues.state(
            now_s,
            progress=self._progress,
            need=need,
            prompt_due_s=waiting.due_s(now_s),
            relegated=waiting.relegated,
            retractions=self.applier.retractions,
            cache_hit_rate=self.observer.cache_hit_rate,
            chunk_tokens=self._most_tokens,
            newcomer=waiting.newcomer if waiting.newcomer_first else None,
            due_before=waiting.due_before(),
            in_flight_is_late=waiting.in_flight_is_late,
            decode_step_s=decode_s,
            demand=waiting.arrivals.now(now_s, outputs.mean()),
        )

    def _report(self, now_s: float) -> None:
        busy = not self._queues.idle()
        if self._reports.due(now_s, busy=busy) and self._recorder is not None:
            self._recorder.flush()
        if self._learned is not None:
            self._learned.keep(self.controller.in_flight, now_s, busy=busy)


def _recorder(settings: Settings) -> Recorder | None:
    return None if settings.record is None else Recorder(of_rank(settings.record, scheduler_index()))
