"""Runs of SGLang's scheduler that speculate on a virtual clock, each in a process of its own."""

from __future__ import annotations

import json
import tempfile
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from roofline_policies.device.hardware import from_catalogue
from roofline_policies.model.catalogue import shipped_model
from roofline_policies.settings.loading import load
from roofline_policies.steps.acceptance import Acceptance
from roofline_policies.steps.fitted_steps import FittedSteps, StepLine
from roofline_policies.steps.host_time import HostTime
from roofline_policies.steps.speculation import Speculation

TICK_S = 2.0**-12
"""Times that are multiples of it add up without rounding, so that closed forms hold to the last bit."""


def steps(base: int, row: int) -> FittedSteps:
    """Step times in ticks."""
    line = StepLine(base_s=base * TICK_S, row_s=row * TICK_S)
    return FittedSteps("a model", "a machine", "made up", "today", prefill=line, decode=line)


TARGET, DRAFT = steps(64, 2), steps(8, 1)
PROCESS = Acceptance((0.8, 0.6), seed=3)


@dataclass(frozen=True)
class Case:
    """A run. asks: (arrival, prompt tokens, output tokens) of each request.

    shared: first tokens that all prompts share. cap: what the scheduler knows of the outputs' lengths; None: all of it.
    windows: numbers of drafts that are moved among, ``steps`` being the most; empty: it stays. rule: by what: "turns"
        (one after the other), "average" (SGLang's), or "foresight".
    """

    asks: tuple[tuple[float, int, int], ...]
    steps: int = 3
    head: bool = False
    acceptance: Acceptance = PROCESS
    server_args: tuple[str, ...] = ()
    kv_tokens: int = 65536
    shared: int = 0
    cap: int | None = 1024
    host: HostTime = HostTime(TICK_S)
    policy: str | None = None
    windows: tuple[int, ...] = ()
    rule: str = "turns"


class Turns:
    """Every number of drafts in turn, as a rule of SGLang's protocol. told: the runs of each result."""

    def __init__(self, windows: tuple[int, ...]) -> None:
        self.candidate_steps = list(windows)
        self.asked = 0
        self.told: list[list[int]] = []

    def set_cuda_graph_bs(self, cuda_graph_bs: list[int] | None) -> None:
        pass

    def cuda_graph_bs_for_step(self, step: int) -> list[int] | None:
        return None

    def get_steps_for_batch(self, batch_size: int) -> int:
        self.asked += 1
        return self.candidate_steps[(self.asked - 1) % len(self.candidate_steps)]

    def on_verify_complete(self, num_correct_drafts_per_req: list[int], batch_size: int) -> int | None:
        self.told.append(num_correct_drafts_per_req)
        return None


@dataclass
class Outcome:
    """What is left of a run.

    token_s, errors: of every request. modes: of every forward pass. rows_left: of the pool that maps requests to slots.
    overlap: whether SGLang kept the overlap schedule.
    """

    token_s: list[list[float]] = field(default_factory=list)
    errors: list[str | None] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    drafted: list[int] = field(default_factory=list)
    told: list[list[int]] = field(default_factory=list)
    modes: list[str] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)
    iterations: int = 0
    busy_s: float = 0.0
    retractions: int = 0
    cached_tokens: int = 0
    kv_left: int = 0
    rows_left: int = 0
    most_running: int = 0
    idle_checks: int = 0
    overlap: bool = False

    def runs(self) -> list[list[int]]:
        """Of every request: how many tokens came at a time."""
        return [[len(list(at_once)) for _, at_once in groupby(token_s)] for token_s in self.token_s]


def serve(case: Case, told: Callable[[int, float], None]) -> Outcome:
    """In a process of its own: its clocks are virtual from here on."""
    from sglang_patches.virtual.clock import VirtualClock
    from sglang_patches.virtual.rules import by_average
    from sglang_patches.virtual.server import VirtualDevice, VirtualServer
    from sglang_patches.virtual.speculative import MovingWindow, speculative_args
    from sglang_patches.virtual.traffic import VirtualRequest, VirtualTraffic

    def prompt(index: int, tokens: int) -> array[int]:
        own = [1000 + index, *(10 + (index + n) % 500 for n in range(tokens))]
        return array("q", [*range(5000, 5000 + case.shared), *own][:tokens])

    clock, outcome = VirtualClock(), Outcome()
    requests = [
        VirtualRequest(str(n), arrival_s, partial(prompt, n, tokens), tokens, output, case.cap)
        for n, (arrival_s, tokens, output) in enumerate(case.asks)
    ]
    traffic = VirtualTraffic(clock, requests, most_s=3600.0, closed=told)
    arguments = [*speculative_args(case.steps, head=case.head), *case.server_args]
    with tempfile.TemporaryDirectory() as folder:
        server = VirtualServer(Path(folder), arguments, VirtualDevice(case.kv_tokens, 8192), clock, traffic)
        scheduler = server.scheduler
        moving = None
        if case.windows:
            rule: Any = Turns(case.windows) if case.rule == "turns" else None
            if case.rule == "average":
                rule = by_average(case.steps, case.windows)
            moving = MovingWindow(case.windows, case.steps, rule)
        worker = server.start(
            TARGET, case.host, Speculation(DRAFT, case.steps, case.acceptance, case.head), moving=moving
        )
        _watch(server, outcome)
        record = Path(folder) / "records.jsonl"
        if case.policy is not None:
            settings = load(case.policy, overrides=[f"record={record}"])
            server.attach(
                replace(settings, ceilings=from_catalogue("h200")), shipped_model("llama_3_1_8b").rank(1), None
            )
        server.run()
        if record.exists():
            outcome.records = [json.loads(line) for line in record.read_text().splitlines()]
    deliveries = traffic.deliveries.values()
    outcome.token_s = [one.token_s.tolist() for one in deliveries]
    outcome.errors = [one.error for one in deliveries]
    outcome.cached_tokens = sum(one.cached_tokens for one in deliveries)
    outcome.accepted, outcome.drafted = worker.accepted.tolist(), worker.drafted.tolist()
    if moving is not None and isinstance(moving.rule, Turns):
        outcome.told = moving.rule.told
    outcome.iterations, outcome.busy_s, outcome.retractions = worker.iterations, worker.busy_s, server.retractions
    outcome.kv_left = scheduler.token_to_kv_pool_allocator.available_size() + scheduler.tree_cache.evictable_size()
    outcome.rows_left = scheduler.req_to_token_pool.available_size()
    outcome.most_running, outcome.overlap = scheduler.max_running_requests, scheduler.enable_overlap
    return outcome


def _watch(server: Any, outcome: Outcome) -> None:
    """Note every forward pass, and every time that SGLang checks itself for leaks because nothing runs."""
    worker, checker = server.scheduler.model_worker, server.scheduler.invariant_checker
    forward, check = worker.forward_batch_generation, checker._check_all_pools

    def launched(batch: Any, *args: Any, **kwargs: Any) -> Any:
        outcome.modes.append(batch.forward_mode.name)
        return forward(batch, *args, **kwargs)

    def checked(*args: Any) -> Any:
        outcome.idle_checks += 1
        return check(*args)

    worker.forward_batch_generation = launched
    type(checker)._check_all_pools = lambda self, *args: checked(*args)
