"""What the loop is told and passes on, and what it does when something in it fails.

Stand-ins take the place of SGLang's Scheduler, its batches and requests; Guarded has what the guard needs of a Loop.
"""

import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from sglang.srt.model_executor.forward_batch_info import ForwardMode as SglangMode
from stand_ins import MODEL, StandInBatch, StandInRunningBatch, stand_in_scheduler

from roofline_policies.config import load
from roofline_policies.view import Slo
from sglang_patches import loop as loop_module
from sglang_patches.hooks import join, loop_of
from sglang_patches.loop import Loop, contained, timed
from sglang_patches.served import Served


class Guarded:
    def __init__(self):
        self.spent_s = 0.0
        self.given_up = []

    def give_up(self, reason, error=None):
        self.given_up.append((reason, error))

    @timed
    @contained
    def works(self, value):
        return value

    @timed
    @contained
    def fails(self, value):
        raise KeyError(value)


def test_a_result_passes_and_its_time_is_accounted_for():
    served = Guarded()
    assert served.works(3) == 3
    assert served.spent_s > 0
    assert served.given_up == []


def test_a_failure_is_contained_and_gives_the_policy_up():
    served = Guarded()
    assert served.fails("x") is None
    ((reason, error),) = served.given_up
    assert reason == "fails raised KeyError: 'x'"
    assert isinstance(error, KeyError)
    assert served.spent_s > 0


class Listens:
    """A policy that remembers the last view and asks for nothing."""

    view = None

    def propose(self, view):
        self.view = view
        return ()


class Times:
    def step_s(self, *, prefill, decode, graph):
        return 0.01


class Ticks:
    """A forward pass of 20 ms on a clock that only the test moves."""

    source = "a test's clock"

    def end(self):
        pass

    def seconds(self):
        return 0.02

    def done_s(self, processed_s):
        return processed_s


class Request:
    is_retracted = False

    def __init__(self, prompt_tokens, received_s):
        self.extend_end, self.output_ids = prompt_tokens, []
        self.time_stats = SimpleNamespace(scheduler_recv_time=received_s)

    def finished(self):
        return False


@pytest.fixture
def clock(monkeypatch):
    """The loop's monotonic clock; the one deciding rank."""
    clock = SimpleNamespace(now_s=100.0)
    monkeypatch.setattr(loop_module, "decides_here", lambda: True)
    monkeypatch.setattr(
        loop_module, "time", SimpleNamespace(monotonic=lambda: clock.now_s, perf_counter=time.perf_counter)
    )
    return clock


@pytest.fixture
def scheduler():
    pool = SimpleNamespace(get_kv_token_stats=lambda: (0, 0.5))
    return stand_in_scheduler(
        running=1, waiting_queue=[SimpleNamespace(seqlen=900, prefix_len=64)], last_batch=None, chunked_req=None,
        pool_stats_observer=SimpleNamespace(get_pool_stats=lambda: pool), tree_cache=None, device="nothing real",
        metrics_reporter=SimpleNamespace(enable_metrics=False), _engine_paused=False, max_prefill_tokens=16384,
        model_worker=SimpleNamespace(forward_batch_generation=lambda batch: None),
        _request_dispatcher=SimpleNamespace(_mapping={}),
    )  # fmt: skip


def ran(loop, clock, batch, request):
    """One batch from its launch to its result, which gives the request a token."""
    clock.now_s += 0.02
    loop.launching(batch)
    loop.scheduler.model_worker.forward_batch_generation(batch)
    loop.launched(batch)
    request.output_ids.append(7)
    loop.finished(batch, SimpleNamespace(can_run_cuda_graph=False))


def test_a_loop_needs_no_server_to_find_out_what_is_served(clock, scheduler):
    """Model, timing and predictor come from outside; policies see them, and how far the running requests are."""
    policy, times, request = Listens(), Times(), Request(100, received_s=99.5)
    settings = replace(load("adaptive", overrides=["hardware=h200"]), policy=policy, slo=Slo(ttft_s=2.0, itl_s=0.1))
    loop = Loop(scheduler, settings, Served(MODEL, Ticks, predictor=times))
    join(scheduler, loop)
    assert loop_of(scheduler) is loop

    prefill = StandInBatch(SglangMode.EXTEND, [100], [0], forward_iter=1, requests=[request])
    ran(loop, clock, prefill, request)
    ran(loop, clock, StandInBatch(SglangMode.DECODE, seq_lens=[101], forward_iter=2, requests=[request]), request)
    clock.now_s = 100.2
    assert loop.decide() is None
    told = policy.view
    assert told.predictor is times
    assert (told.queue.next_prefix_tokens, told.queue.decode_context_tokens) == (64, 101)
    assert told.queue.slack_s == pytest.approx(99.5 + 2.0 + 2 * 0.1 - 100.2)
    assert loop.controller.iterations == 2
    assert loop.controller.last_record.seconds_source == "a test's clock"
    assert loop.controller.last_record.seconds == 0.02

    loop.retracted(request)
    loop.decide()
    assert (policy.view.queue.retractions, policy.view.queue.slack_s) == (1, None)


def test_progress_is_forgotten_when_nothing_runs_and_kept_while_the_engine_pauses(clock, scheduler):
    policy, request = Listens(), Request(100, received_s=99.5)
    settings = replace(load("adaptive", overrides=["hardware=h200"]), policy=policy)
    loop = Loop(scheduler, settings, Served(MODEL, Ticks))
    ran(loop, clock, StandInBatch(SglangMode.EXTEND, [100], [0], forward_iter=1, requests=[request]), request)
    for paused in (True, False):
        scheduler._engine_paused = paused
        loop.decide()
    assert policy.view.queue.slack_s == pytest.approx(99.5 + 2.0 + 0.1 - 100.02)
    waiting, running = scheduler.waiting_queue, scheduler.running_batch
    scheduler.waiting_queue, scheduler.running_batch = [], StandInRunningBatch(0)
    loop.decide()
    scheduler.waiting_queue, scheduler.running_batch = waiting, running
    loop.decide()
    assert (policy.view.queue.slack_s, policy.view.queue.decode_context_tokens) == (None, 0)
