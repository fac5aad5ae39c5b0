"""Runs of SGLang's scheduler on a virtual clock, each in a process of its own, and what tests look at afterwards."""

from __future__ import annotations

import gc
import json
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from types import FunctionType
from typing import Any

from bench.virtual.price import Price, PricedSteps
from bench.virtual.processes import Crash, run_each
from roofline_policies.device.hardware import from_catalogue
from roofline_policies.model.catalogue import shipped_model
from roofline_policies.settings.loading import load
from roofline_policies.steps.fitted_steps import FittedSteps, StepLine
from roofline_policies.steps.host_time import HostTime

UNIT_S = 2.0**-10
"""Times that are multiples of it add up without rounding, so that closed forms hold to the last bit."""

STEPS = FittedSteps(
    "a model", "a machine", "made up", "today",
    prefill=StepLine(base_s=0.004, row_s=2e-5, causal_pair_s=2e-9),
    decode=StepLine(base_s=0.004, request_s=1e-5, context_s=3e-8),
)  # fmt: skip


@dataclass(frozen=True)
class Ask:
    """A request. shared_tokens: so many first tokens are those of every other request."""

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    cap_tokens: int | None = 1024
    shared_tokens: int = 0

    def prompt(self, index: int) -> array[int]:
        own = [1000 + index, *(10 + (index + n) % 500 for n in range(self.prompt_tokens))]
        return array("q", [*range(5000, 5000 + self.shared_tokens), *own][: self.prompt_tokens])


@dataclass(frozen=True)
class Pace:
    """From ``from_s`` on, a launch takes the host ``host_s + request_s * requests`` and every step ``step_s``."""

    from_s: float
    host_s: float
    step_s: float
    request_s: float = 0.0


@dataclass(frozen=True)
class Case:
    """A run. script: paces in the place of ``host`` and STEPS. sleep_s: real seconds that every step takes.

    pauses: share of the steps that take so many times as long as STEPS, which the policy is not told.
    prepare: called with the server before it runs.
    """

    asks: tuple[Ask, ...]
    server_args: tuple[str, ...] = ()
    kv_tokens: int = 65536
    synchronous: bool = False
    script: tuple[Pace, ...] = ()
    host: HostTime = HostTime(0.001)
    sleep_s: float = 0.0
    pauses: tuple[float, float] = (0.0, 1.0)
    policy: str | None = None
    overrides: tuple[str, ...] = ()
    most_s: float = 3600.0
    prepare: Callable[[Any], None] | None = None


@dataclass
class Request:
    token_s: list[float]
    started_s: float | None
    cached_tokens: int
    retractions: int
    done: bool
    error: str | None


@dataclass(frozen=True)
class Launch:
    """A forward pass. rows: (request, new tokens, tokens before them), in the order of the batch."""

    at_s: float
    mode: str
    rows: tuple[tuple[str, int, int], ...]


@dataclass
class Outcome:
    """What is left of a run. priced_s: of every step, as asked. raised: what ended the run early."""

    requests: list[Request] = field(default_factory=list)
    launches: list[Launch] = field(default_factory=list)
    priced_s: list[float] = field(default_factory=list)
    iterations: int = 0
    busy_s: float = 0.0
    retractions: int = 0
    deferrals: int = 0
    stalls: int = 0
    idle_checks: int = 0
    records: list[dict[str, Any]] = field(default_factory=list)
    samples: list[Any] = field(default_factory=list)
    status: dict[str, Any] | None = None
    end_s: float = 0.0
    kv_left: int = 0
    left_behind: list[str] = field(default_factory=list)
    raised: str | None = None

    def unlike(self, other: Outcome) -> list[str]:
        """What is not the same to the last bit. By name: the difference of two long runs is nothing to read."""
        return [key for key, value in vars(self).items() if repr(value) != repr(vars(other)[key])]

    @property
    def tokens(self) -> list[int]:
        """How many each request received."""
        return [len(request.token_s) for request in self.requests]


class Scripted:
    """Host and step times that follow the clock."""

    def __init__(self, script: Sequence[Pace], now_s: Callable[[], float]) -> None:
        self._script, self._now_s = script, now_s

    def _pace(self) -> Pace:
        return [pace for pace in self._script if pace.from_s <= self._now_s()][-1]

    def seconds(self, requests: int) -> float:
        pace = self._pace()
        return pace.host_s + pace.request_s * requests

    def step_s(self, **shapes: Any) -> float:
        return self._pace().step_s


class Priced:
    """Notes what every step was priced at, and takes its real time over it."""

    def __init__(self, times: Any, sleep_s: float, priced_s: list[float]) -> None:
        self._times, self._sleep_s, self._priced_s = times, sleep_s, priced_s

    def step_s(self, **shapes: Any) -> float:
        if self._sleep_s:
            time.sleep(self._sleep_s)
        self._priced_s.append(self._times.step_s(**shapes))
        return self._priced_s[-1]


def serve(case: Case, told: Callable[[int, float], None]) -> Outcome:
    """In a process of its own: its clocks are virtual from here on."""
    from sglang_patches.virtual.clock import VirtualClock
    from sglang_patches.virtual.server import VirtualDevice, VirtualServer
    from sglang_patches.virtual.traffic import VirtualRequest, VirtualTraffic

    clock, outcome = VirtualClock(), Outcome()
    requests = [
        VirtualRequest(
            str(n), ask.arrival_s, partial(ask.prompt, n), ask.prompt_tokens, ask.output_tokens, ask.cap_tokens
        )
        for n, ask in enumerate(case.asks)
    ]
    traffic = VirtualTraffic(clock, requests, most_s=case.most_s, closed=told)
    device = VirtualDevice(case.kv_tokens, context_tokens=8192, synchronous=case.synchronous)
    with tempfile.TemporaryDirectory() as temporary:
        folder, tempfile.tempdir = Path(temporary) / "own", temporary
        server = VirtualServer(folder, list(case.server_args), device, clock, traffic, sample_every_s=0.25)
        scripted = Scripted(case.script, lambda: traffic.now_s)
        share, factor = case.pauses
        price = Price(1.0, pause_share=share, pause_factor=factor)
        charged = PricedSteps(STEPS, price, 0, lambda: 0.0) if share else STEPS
        times, host = (scripted, scripted) if case.script else (charged, case.host)
        worker = server.start(Priced(times, case.sleep_s, outcome.priced_s), host)
        _watch(server, outcome)
        record = folder / "records.jsonl"
        if case.policy is not None:
            settings = load(case.policy, overrides=[*case.overrides, f"record={record}"])
            settings = replace(settings, ceilings=from_catalogue("h200"))
            server.attach(settings, shipped_model("llama_3_1_8b").rank(1), STEPS)
        if case.prepare is not None:
            case.prepare(server)
        try:
            server.run()
        except Exception as error:
            outcome.raised = f"{type(error).__name__}: {error}"
        if record.exists():
            outcome.records = [json.loads(line) for line in record.read_text().splitlines()]
        outcome.left_behind = [path.name for path in Path(temporary).iterdir() if path != folder]
    outcome.requests = [
        Request(one.token_s.tolist(), one.started_s, one.cached_tokens, one.retractions, one.done, one.error)
        for one in traffic.deliveries.values()
    ]
    outcome.iterations, outcome.busy_s, outcome.deferrals = worker.iterations, worker.busy_s, worker.deferrals
    outcome.retractions, outcome.stalls, outcome.end_s = server.retractions, server.stalls, traffic.now_s
    outcome.samples = [asdict(sample) for sample in server.samples]
    outcome.status = server.samples[-1].rank
    scheduler = server.scheduler
    outcome.kv_left = scheduler.token_to_kv_pool_allocator.available_size() + scheduler.tree_cache.evictable_size()
    return outcome


def _watch(server: Any, outcome: Outcome) -> None:
    """Note every launch, and every time that SGLang checks itself because nothing runs."""
    worker, checker = server.scheduler.model_worker, server.scheduler.invariant_checker
    forward, check = worker.forward_batch_generation, checker._check_all_pools

    def launched(batch: Any, *args: Any, **kwargs: Any) -> Any:
        if batch.forward_mode.is_extend():
            lengths = list(zip(batch.extend_lens, batch.prefix_lens, strict=True))
        else:
            lengths = [(1, length - 1) for length in batch.seq_lens_cpu.tolist()]
        rows = tuple((req.rid, *length) for req, length in zip(batch.reqs, lengths, strict=True))
        outcome.launches.append(Launch(server.traffic.now_s, batch.forward_mode.name, rows))
        return forward(batch, *args, **kwargs)

    def checked(*args: Any) -> Any:
        outcome.idle_checks += 1
        return check(*args)

    worker.forward_batch_generation = launched
    type(checker)._check_all_pools = lambda self, *args: checked(*args)


def clocks_left(case: Case, told: Callable[[int, float], None]) -> list[str]:
    """After a run: who in SGLang or in this project still holds a function of the real clock, or the module."""
    serve(case, told)
    real = {id(time): "time", id(time.sleep): "sleep"}
    for name in ("time", "monotonic", "perf_counter"):
        real |= {id(getattr(time, one)): one for one in (name, f"{name}_ns")}
    ours = ("sglang", "sglang_patches", "roofline_policies")
    found = set()
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] in ours and module is not None:
            found |= {f"{name}.{key} is {real[id(value)]}" for key, value in vars(module).items() if id(value) in real}
    for thing in gc.get_objects():
        kind = type(thing)
        owner = thing if kind is FunctionType or issubclass(kind, type) else kind
        if str(getattr(owner, "__module__", None)).split(".")[0] not in ours:
            continue
        held = gc.get_referents(thing)
        if kind is FunctionType:  # its globals are a module's, seen above
            held = [*(thing.__defaults__ or ()), *(thing.__kwdefaults__ or {}).values()]
            held += [value for cell in thing.__closure__ or () for value in gc.get_referents(cell)]
        held += [value for one in held if type(one) is dict for value in one.values()]
        found |= {f"{owner.__module__}.{owner.__qualname__} holds {real[id(one)]}" for one in held if id(one) in real}
    return sorted(found)


def leaks(server: Any) -> None:
    """Take a slot of KV and never give it back."""
    server.scheduler.token_to_kv_pool_allocator.alloc(1)


def admits_nothing(server: Any, most_stalls: int = 50, between: Sequence[tuple[float, float]] = ((0.0, 1e9),)) -> None:
    """Keep prompts waiting between these moments, and take so few passes for being stuck."""
    from sglang_patches.virtual import server as module

    module.MOST_STALLS = most_stalls
    defers = server.scheduler._should_defer_prefill

    def deferring(running_batch: Any) -> bool:
        if any(begin <= server.traffic.now_s < end for begin, end in between):
            return True
        return bool(defers(running_batch))

    server.scheduler._should_defer_prefill = deferring


def in_children(work: Callable[..., Any], *tasks: Any, processes: int = 2) -> list[Any]:
    """``work`` of each task, in the order of the tasks.

    Raises:
        AssertionError: one of them crashed.
    """
    outcomes = dict(run_each(work, [(task,) for task in tasks], processes, lambda *_: None))
    for outcome in outcomes.values():
        assert not isinstance(outcome, Crash), "\n".join([outcome.problem, *outcome.tail])
    return [outcomes[index] for index in range(len(tasks))]
