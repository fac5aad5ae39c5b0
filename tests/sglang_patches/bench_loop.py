"""What the loop costs in one scheduler iteration: observe, decide, actuate (pytest-benchmark).

``warm``: iterations follow each other at once. ``after_forward``: before each, as much memory is read as a forward
pass of a small model reads, so that the loop finds nothing in the processor's caches, as in a CPU server.
"""

from types import SimpleNamespace

import pytest
import torch
from sglang.srt.model_executor.forward_batch_info import ForwardMode as SglangMode

from roofline_policies.contract.decision import Bounds
from roofline_policies.control.controller import Controller
from roofline_policies.settings.loading import load
from roofline_policies.steps.roofline_steps import RooflineSteps
from sglang_patches.loop.actuator import Actuator
from sglang_patches.loop.layout import launch_knobs, launch_ranges
from sglang_patches.observe.clocks import HostInterval
from sglang_patches.observe.observer import Observer
from sglang_patches.requests.capacities import Capacities
from sglang_patches.requests.output_watch import OutputWatch
from sglang_patches.requests.prefill_rate import PrefillWatch
from sglang_patches.requests.progress import Progress
from sglang_patches.requests.promises import Promises
from sglang_patches.requests.queues import Queues
from sglang_patches.requests.waiting import Waiting
from tests.sglang_patches.stand_ins import MODEL, StandInBatch, StandInRunningBatch, stand_in_scheduler

WEIGHTS = torch.ones(32 << 20)  # 128 MiB


class Waits:
    """A request that waits."""

    seqlen, prefix_len, priority, output_ids = 900, 0, None, ()
    sampling_params = SimpleNamespace(max_new_tokens=16, custom_params=None)

    def __init__(self, number):
        self.rid = str(number)


class Running:
    """A request that runs."""

    output_ids = (7,)
    is_retracted, priority, rid = False, None, "a request"
    time_stats = SimpleNamespace(scheduler_recv_time=0.0, prefill_finished_time=0.1)
    sampling_params = SimpleNamespace(max_new_tokens=16, custom_params=None)

    def finished(self):
        return False


def prefill(size):
    """The batch that the running requests came from."""
    reqs = [Running() for _ in range(size)]
    return SimpleNamespace(
        forward_mode=SglangMode.EXTEND, reqs=reqs, chunked_req=None, decoding_reqs=None, forward_iter=0
    )


def after_forward():
    WEIGHTS.sum()


@pytest.fixture(params=[10, 10_000], ids=["10_waiting", "10000_waiting"])
def iteration(request):
    scheduler = stand_in_scheduler(
        running=64, waiting_queue=[Waits(number) for number in range(request.param)], last_batch=None,
        chunked_req=None,
    )  # fmt: skip
    scheduler.running_batch = StandInRunningBatch(64)
    settings = load("adaptive", overrides=["hardware=h200", "slo.ttft_s=1e6"])  # nobody is passed over: all are judged
    queues, actuator = Queues(scheduler, Capacities(scheduler)), Actuator(scheduler)
    observer = Observer(MODEL, interval=HostInterval)
    times = RooflineSteps(MODEL, settings.ceilings)
    promises, outputs = Promises(settings.objectives), OutputWatch()
    waiting = Waiting(scheduler, promises, times)
    service = PrefillWatch(waiting.ticket)
    progress = Progress(settings.objectives.server, promises.slo_of)
    controller = Controller(
        settings.policy, ceilings=settings.ceilings, bounds=Bounds(*launch_ranges(scheduler)),
        launch=launch_knobs(scheduler), slo=settings.objectives.server, settings=settings.controller, started_s=0.0,
        predictor=times,
    )  # fmt: skip
    prompts = prefill(64)
    batch = StandInBatch(SglangMode.DECODE, seq_lens=list(range(1000, 1064)), requests=prompts.reqs)
    state = SimpleNamespace(now_s=0.0)
    progress.launched(prompts, 64_000, 0.0)
    progress.finished(prompts)

    def step():
        state.now_s += 0.01
        launch = observer.launch(batch)
        controller.launched(launch.mode, state.now_s, launch.prefill, launch.decode)
        observer.forward_starts()
        observer.forward_ends()
        launch = observer.launched(batch)
        progress.launched(batch, launch.decode.context_tokens, 0.0)
        observer.finish(batch, SimpleNamespace(can_run_cuda_graph=False), state.now_s)
        progress.finished(batch)
        for record in observer.records():
            controller.observe(record)
        outputs.finished(batch)
        queue = queues.state(
            state.now_s, progress=progress, need=progress.need(state.now_s, 0.01, outputs.least()),
            prompt_due_s=waiting.due_s(state.now_s), relegated=waiting.relegated, retractions=0, cache_hit_rate=0.5,
            chunk_tokens=2048,
        )  # fmt: skip
        knobs = controller.decide(state.now_s, queue).knobs
        moved = waiting.judged(state.now_s, service.ahead_s(None), service.pace, knobs.relegate_for_s)
        waiting.clock_s = state.now_s
        waiting.order(knobs.deadline_order)
        waiting.move(moved)
        actuator.apply(knobs)

    return step


def test_loop_warm(benchmark, iteration):
    benchmark.pedantic(iteration, rounds=2000, warmup_rounds=100)


def test_loop_after_forward(benchmark, iteration):
    benchmark.pedantic(iteration, setup=after_forward, rounds=300, warmup_rounds=5)
