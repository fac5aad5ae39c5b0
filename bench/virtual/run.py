"""One arm on the virtual clock, in a process of its own: the clocks of SGLang's modules are replaced in it."""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol

from bench.live.prompts import PromptBuilder
from bench.report.records import ArmRun, RequestRecord, ServerSample
from bench.rivals.cost_profile import CostProfile
from bench.traffic import Request
from bench.virtual.arms import AVERAGE, POLICY, PROFILE, TABLE, VirtualArm
from bench.virtual.price import PricedSteps
from bench.virtual.settings import Experiment
from roofline_policies.steps.speculation import Speculation
from roofline_policies.steps.times import StepTimes
from sglang_patches.virtual.clock import VirtualClock
from sglang_patches.virtual.rules import by_average, by_policy, by_table
from sglang_patches.virtual.server import Sample, VirtualDevice, VirtualServer
from sglang_patches.virtual.speculative import MovingWindow, SpeculativeWorker, WindowRule, speculative_args
from sglang_patches.virtual.stand_ins import VOCABULARY
from sglang_patches.virtual.traffic import Delivery, Loop, TimeIsUp, VirtualRequest, VirtualTraffic

PROFILED_CONTEXT = 1024
"""Tokens that each request of a profile of costs attends to."""

WARMUP = "warmup-"
"""Begins the ids of requests that only warm the server up."""


class Journal(Protocol):
    """Who wants to know of every step: see bench.silicon.journal."""

    @property
    def clock(self) -> VirtualClock: ...

    def watched(self, steps: StepTimes) -> StepTimes: ...


def run_arm(
    experiment: Experiment,
    arm: VirtualArm,
    progress: Callable[[int, float], None],
    journal: Journal | None = None,
) -> tuple[ArmRun, int]:
    """Serve the experiment's traffic with the arm's settings: the run, and how many iterations it took.

    ``progress`` is told requests that have ended, and virtual seconds. journal: runs the clock and prices the steps.

    Raises:
        Exception: whatever SGLang raises; the caller reports it as the arm's crash.
    """
    device, clock = experiment.device, VirtualClock() if journal is None else journal.clock
    requests, loop = virtual_requests(experiment), _loop(experiment)
    last_s = max(request.arrival_s for request in requests) if loop is None else 0.0
    traffic = VirtualTraffic(clock, requests, most_s=last_s + experiment.drain_s, closed=progress, loop=loop)
    speculation = None
    drafting: list[str] = []
    if arm.most_steps is not None:
        assert experiment.draft is not None
        speculation = experiment.draft.speculation(device, arm.most_steps)
        drafting = speculative_args(arm.most_steps, head=speculation.head)
    with tempfile.TemporaryDirectory(prefix="roofline-virtual-") as folder:
        server = VirtualServer(
            Path(folder),
            [
                "--chunked-prefill-size",
                str(device.chunked_prefill_size),
                *drafting,
                *experiment.server_args,
                *arm.server_args,
            ],
            VirtualDevice(
                kv_tokens=device.kv_tokens,
                context_tokens=device.model.context_length,
                decode_graph_requests=device.decode_graph_requests,
                prefill_graph_tokens=device.prefill_graph_tokens,
                synchronous=device.synchronous,
            ),
            clock,
            traffic,
            sample_every_s=experiment.sample_every_s,
        )
        steps = device.steps(server.graph_sizes)
        if journal is not None:
            steps = journal.watched(steps)
        priced = PricedSteps(steps, experiment.price, experiment.seed, traffic.next_step_s)
        moving = None if speculation is None else _moving(arm, speculation, steps)
        worker = server.start(priced, experiment.host, speculation, device.backends, moving, steps)
        settings = arm.settings(experiment.slo)
        if settings is not None:
            # As on a live server: the target's steps are predicted, and what drafting takes beside them is learned.
            told = device.told(settings, server.graph_sizes)
            if arm.told_price and told is not None:
                told = PricedSteps(told, experiment.price.without_chance(), experiment.seed, traffic.next_step_s)
            server.attach(
                settings if settings.ceilings is not None else replace(settings, ceilings=device.ceilings),
                device.rank,
                told,
                device.backends,
                device.linear,
            )
        with suppress(TimeIsUp):  # what is open then is an error of its own
            server.run()
    end_s = traffic.now_s
    records = [
        _record(experiment, index, traffic.deliveries[str(index)], end_s) for index in range(len(experiment.requests))
    ]
    begin_s = 0.0 if loop is None else min(record.scheduled_s for record in records)
    samples = tuple(_sample(sample) for sample in server.samples if sample.t_s >= begin_s)
    drafts = worker.counted if isinstance(worker, SpeculativeWorker) else None
    run = ArmRun(arm.name, 0, tuple(records), samples, deferrals=worker.deferrals, drafts=drafts)
    return run, worker.iterations


def _moving(arm: VirtualArm, speculation: Speculation, times: StepTimes) -> MovingWindow | None:
    """How the arm moves its number of drafts; None where it stays."""
    start, windows = arm.speculation_steps, arm.windows
    if not windows or start is None:
        return None
    rule = rule_of(arm.rule, start, windows, speculation, times)
    return MovingWindow(windows if rule is None else tuple(rule.candidate_steps), start, rule)


def rule_of(
    name: str, start: int, windows: Sequence[int], speculation: Speculation, times: StepTimes
) -> WindowRule | None:
    """One of RULES, as SGLang's protocol has it; None for foresight, which no rule has.

    times: of the target.
    """
    if name == POLICY:
        return by_policy(start, windows)
    if name == AVERAGE:
        return by_average(start, windows)
    if name == TABLE:
        return by_table(start)
    if name == PROFILE:
        return CostProfile(
            windows,
            lambda batch, window: speculation.decode(times, batch, batch * PROFILED_CONTEXT, window).total_s,
        )
    return None


def virtual_requests(experiment: Experiment) -> list[VirtualRequest]:
    """The traffic as the scheduler will see it, what warms it up first; prompts are made when they arrive."""
    prompts = PromptBuilder(experiment.seed, VOCABULARY)
    cap = experiment.output_cap_tokens
    warmup = () if experiment.closed is None else experiment.closed.warmup
    asked = {f"{WARMUP}{place}": (place - len(warmup), one) for place, one in enumerate(warmup)}
    asked |= {str(place): (place, one) for place, one in enumerate(experiment.requests)}

    def tokens(request: Request, index: int) -> array[int]:
        return array("q", prompts.tokens(request, index))

    return [
        VirtualRequest(
            rid=rid,
            arrival_s=request.arrival_s + experiment.path.ingress_s,
            prompt=partial(tokens, request, index % VOCABULARY),
            prompt_tokens=request.prompt_tokens,
            output_tokens=request.output_tokens,
            # A client whose answers are longer than the cap would have asked for more.
            cap_tokens=None if cap is None else max(cap, request.output_tokens),
            priority=request.priority,
            slo=request.slo,
        )
        for rid, (index, request) in asked.items()
    ]


def _loop(experiment: Experiment) -> Loop | None:
    closed, path = experiment.closed, experiment.path
    return None if closed is None else Loop(closed.concurrency, len(closed.warmup), path.ingress_s + path.egress_s)


def _record(experiment: Experiment, index: int, delivery: Delivery, end_s: float) -> RequestRecord:
    request, egress_s = experiment.requests[index], experiment.path.egress_s
    times = tuple(moment + egress_s for moment in delivery.token_s)
    error = delivery.error if delivery.done else f"open after {experiment.drain_s:g} s of draining"
    # In a closed loop the traffic asks for a request when its slot is free.
    sent_s = None if delivery.arrived_s is None else delivery.arrived_s - experiment.path.ingress_s
    scheduled_s = request.arrival_s if experiment.closed is None else end_s if sent_s is None else sent_s
    return RequestRecord(
        index=index,
        phase=request.phase,
        scheduled_s=scheduled_s,
        sent_s=sent_s if experiment.closed is not None else request.arrival_s,
        token_s=times,
        end_s=times[-1] if delivery.done and times else end_s,
        prompt_tokens=request.prompt_tokens,
        cached_tokens=delivery.cached_tokens,
        output_tokens_asked=request.output_tokens,
        error=error,
        started_s=delivery.started_s,
        priority=request.priority,
        finish=delivery.finish,
        ignore_eos=experiment.output_cap_tokens is None,  # else stop tokens end the answers, as _message has it
    )


def _sample(sample: Sample) -> ServerSample:
    load = {"running": float(sample.running), "waiting": float(sample.waiting), "kv_use": sample.kv_use}
    # What the loop costs is part of the stated host time; its clock stands still here and would say nothing.
    rank = {key: value for key, value in (sample.rank or {}).items() if key != "policy_time_s"}
    return ServerSample(sample.t_s, load, sample.retractions, (rank,) if rank else ())
