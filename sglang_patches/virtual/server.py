"""Runs SGLang's real scheduler through a traffic without sockets, weights or a sized KV pool.

One process runs one traffic: the clocks of every SGLang module in it are replaced and stay so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sglang.srt.arg_groups.cuda_graph_hook import generate_decode_cuda_graph_batch_sizes
from sglang.srt.managers.scheduler import Scheduler
from sglang.srt.runtime_context import SpawnRanks, publish
from sglang.srt.server_args import PortArgs, ServerArgs, prepare_server_args

from roofline_policies.model.attention_kernels import Backends
from roofline_policies.model.rank_model import RankModel
from roofline_policies.settings.loading import Settings
from roofline_policies.steps.host_time import HostTime
from roofline_policies.steps.speculation import Speculation
from roofline_policies.steps.times import StepTimes
from roofline_policies.work import Precision
from sglang_patches.hooks import SCHEDULER_HOOKS, join
from sglang_patches.loop.decider import Decider
from sglang_patches.needs.hook import apply
from sglang_patches.needs.objects import Batch, Request, VirtualScheduler
from sglang_patches.requests.capacities import Capacities, kv_share
from sglang_patches.server.facts import Served
from sglang_patches.virtual.clock import EPOCH_S, VirtualClock, VirtualTime, replace_clocks
from sglang_patches.virtual.events import VirtualDeviceModule, VirtualInterval
from sglang_patches.virtual.speculative import (
    AbsentDraft,
    MovingWindow,
    SpeculativeWorker,
    check_launched,
    replace_drafting,
)
from sglang_patches.virtual.stand_ins import EOS_TOKEN, connect, write_model
from sglang_patches.virtual.traffic import VirtualTraffic
from sglang_patches.virtual.worker import VirtualWorker

CLOCKED_PACKAGES = ("sglang.", "sglang_patches.", "roofline_policies.")
"""Packages whose modules get the virtual clock."""

STALL_S = 1e-3
"""Virtual seconds that a pass takes in which requests are open and nothing runs. SGLang would spin; time must go on."""

MOST_STALLS = 100_000
"""Such passes in a row after which the scheduler is taken to be stuck: 100 virtual seconds. A judgement, above any time
that a policy may defer prompts."""


class Stuck(RuntimeError):
    """The scheduler has requests and runs none of them."""


@dataclass(frozen=True, slots=True)
class VirtualDevice:
    """What the scheduler is to believe of the device behind it.

    kv_tokens: token slots. context_tokens: of the modelled model. decode_graph_requests: largest decode batch with a
    captured graph, 0 for none. prefill_graph_tokens: most tokens of a prefill step with one.
    synchronous: the host waits for every forward pass, as on a CPU.
    """

    kv_tokens: int
    context_tokens: int
    decode_graph_requests: int = 0
    prefill_graph_tokens: int = 0
    synchronous: bool = False


@dataclass(frozen=True, slots=True)
class Sample:
    """The server at one moment.

    t_s: seconds since the start of traffic. rank: an entry of ``ranks`` in GET /roofline, None without policy.
    """

    t_s: float
    running: int
    waiting: int
    kv_use: float
    retractions: int
    rank: dict[str, Any] | None


class VirtualServer:
    """One scheduler, built once and run once.

    server_args: as on the command line of sglang.launch_server, without a model; they outrank what is set here.

    Raises:
        SystemExit, ValueError: SGLang's own refusals of an argument.
    """

    def __init__(
        self,
        folder: Path,
        server_args: Sequence[str],
        device: VirtualDevice,
        clock: VirtualClock,
        traffic: VirtualTraffic,
        *,
        sample_every_s: float = 1.0,
    ) -> None:
        self.device = device
        self.clock = clock
        self.traffic = traffic
        self.samples: list[Sample] = []
        self.stalls = 0
        self.retractions = 0
        self._stalled = 0
        self._stalled_after = 0
        self._worker: VirtualWorker | None = None
        self._sample_every_s = sample_every_s
        self._next_sample_s = EPOCH_S
        self._decider: Decider | None = None
        apply(SCHEDULER_HOOKS)
        connect(traffic)
        replace_drafting()
        self._time = VirtualTime(clock)
        replace_clocks(self._time, CLOCKED_PACKAGES)
        self.server_args: ServerArgs = prepare_server_args([
            "--model-path", str(write_model(folder, device.context_tokens)), "--load-format", "dummy",
            "--device", "cpu", "--attention-backend", "torch_native", "--skip-tokenizer-init", "--log-level", "error",
            "--cuda-graph-backend-decode", "disabled", "--cuda-graph-backend-prefill", "disabled", "--page-size", "1",
            "--mem-fraction-static", "0.5", "--max-total-tokens", str(device.kv_tokens), "--random-seed", "0",
            *server_args,
        ])  # fmt: skip
        publish(self.server_args, role="scheduler", ranks=SpawnRanks(world_rank=0, gpu_id=0))
        ports = PortArgs.init_new(self.server_args)
        for address in vars(ports).values():
            if isinstance(address, str) and address.startswith("ipc://"):
                Path(address.removeprefix("ipc://")).unlink()  # SGLang makes a file for each socket; there are none
        self.scheduler: VirtualScheduler = Scheduler(self.server_args, ports)
        self._capacities = Capacities(self.scheduler)
        replace_clocks(self._time, CLOCKED_PACKAGES)  # of modules that were loaded on the way

    @property
    def _synchronous(self) -> bool:
        return self.device.synchronous or not self.scheduler.enable_overlap

    @property
    def graph_sizes(self) -> list[int]:
        """Decode batch sizes that SGLang would capture on the modelled device, ascending."""
        most = self.device.decode_graph_requests
        return sorted(generate_decode_cuda_graph_batch_sizes(self.server_args, most)) if most else []

    def attach(
        self,
        settings: Settings,
        model: RankModel,
        predictor: StepTimes | None,
        attention: Backends | None = None,
        linear: tuple[Precision | None, Precision | None] = (None, None),
    ) -> None:
        """Run under a policy. ``model``: what one rank of the modelled server holds; the rest as in ``Served``."""
        interval = partial(VirtualInterval, self.clock, synchronous=self._synchronous)
        served = Served(model, interval, self.graph_sizes, predictor, attention=attention, linear=linear)
        self._decider = Decider(self.scheduler, settings, served)
        join(self.scheduler, self._decider.applier, self._decider)

    def start(
        self,
        times: StepTimes,
        host: HostTime,
        speculation: Speculation | None = None,
        attention: Backends | None = None,
        moving: MovingWindow | None = None,
        true_times: StepTimes | None = None,
    ) -> VirtualWorker:
        """Put the modelled device in the place of the worker. Before ``attach``.

        attention: the kernels that its steps run. true_times: ``times`` before any price, for one who foresees steps.

        speculation: for a server that was launched with ``speculative_args``, and for no other. moving: how K moves,
            up to that of the speculation; None: it stays.

        Raises:
            InputError: the server was launched for another speculation.
        """
        scheduler, device = self.scheduler, self.device
        check_launched(scheduler, speculation)
        kind: Any = VirtualWorker
        if speculation is not None:
            draft = scheduler.model_worker
            assert isinstance(draft, AbsentDraft)
            if moving is not None and moving.rule is not None:
                draft.move_by(moving.rule, moving.start, self.graph_sizes)
            foresight = moving.windows if moving is not None and moving.rule is None else None
            kind = partial(
                SpeculativeWorker, speculation=speculation, draft=draft, foresight=foresight, true_times=true_times
            )
        worker: VirtualWorker = kind(
            self.clock, self.traffic, times, host, eos_token=EOS_TOKEN,
            prefill_graph_tokens=device.prefill_graph_tokens,
            synchronous=self._synchronous,
            prompts_wait=lambda: bool(scheduler.waiting_queue) or scheduler.chunked_req is not None,
            attention=attention,
        )  # fmt: skip
        scheduler.model_worker.forward_batch_generation = worker.forward_batch_generation
        scheduler.device_module = VirtualDeviceModule(scheduler.device_module, self.clock)
        scheduler.on_idle = partial(self._idle, scheduler.on_idle)
        scheduler._add_request_to_queue = partial(self._queued, scheduler._add_request_to_queue)
        scheduler.ingest_requests = partial(self._ingest, scheduler.ingest_requests)
        scheduler.record_batch_in_overlap = self._record_batch
        self._worker = worker
        return worker

    def status(self) -> dict[str, Any] | None:
        """An entry of ``ranks`` in GET /roofline, None without a policy."""
        return None if self._decider is None else self._decider.status()

    def run(self) -> None:
        """Serve the traffic to its end.

        Raises:
            TimeIsUp, Stuck: it has none.
        """
        self.scheduler.run_event_loop()

    def _record_batch(self, batch: Batch) -> None:
        """SGLang keeps every tensor of a batch for two iterations, until the device has read it; here nothing reads."""
        scheduler = self.scheduler
        scheduler.batch_record_ct = (scheduler.batch_record_ct + 1) % 2
        scheduler.batch_record_buf[scheduler.batch_record_ct] = [batch]

    def _ingest(self, original: Callable[[], None]) -> None:
        if self.clock.now_s >= self._next_sample_s:
            self._sample()
        original()

    def _queued(self, original: Callable[..., None], req: Request, is_retracted: bool = False) -> None:
        self.retractions += is_retracted
        original(req, is_retracted)

    def _idle(self, original: Callable[[], None]) -> None:
        """SGLang's own checks for leaks, then on to the next arrival; the end of the traffic is the end of the loop."""
        original()
        if self.scheduler.is_fully_idle():
            self._stalled = 0
            next_s = self.traffic.next_arrival_s()
            if next_s is None:
                self.scheduler.gracefully_exit = True
            else:
                self.clock.wait_until(next_s)
            return
        assert self._worker is not None
        if self._worker.iterations > self._stalled_after:
            self._stalled_after, self._stalled = self._worker.iterations, 0
        self.stalls += 1
        self._stalled += 1
        if self._stalled > MOST_STALLS:
            waited_s = MOST_STALLS * STALL_S
            raise Stuck(f"{self.traffic.open} requests are open and none of them ran for {waited_s:g} s")
        self.clock.spend(STALL_S)

    def _sample(self) -> None:
        self._next_sample_s = self.clock.now_s + self._sample_every_s
        scheduler = self.scheduler
        kv_use = kv_share(self._capacities.now(0))
        self.samples.append(
            Sample(
                self.traffic.now_s,
                len(scheduler.running_batch.reqs),
                len(scheduler.waiting_queue),
                kv_use,
                self.retractions,
                self.status(),
            )
        )
