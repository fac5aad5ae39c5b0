"""What deciding needs in place of a server: a clock that only a test moves, a scheduler, a request, step times."""

import time
from types import SimpleNamespace

from sglang_patches.loop import decider as decider_module
from tests.sglang_patches.stand_ins import stand_in_scheduler


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
    is_retracted, priority, rid, inflight_middle_chunks, prefix_len = False, None, "a request", 0, 0

    def __init__(self, prompt_tokens, received_s):
        self.extend_end, self.output_ids, self.seqlen = prompt_tokens, [], prompt_tokens
        self.time_stats = SimpleNamespace(scheduler_recv_time=received_s, prefill_finished_time=received_s + 0.52)
        self.sampling_params = SimpleNamespace(max_new_tokens=16, custom_params=None)

    def finished(self):
        return False


def still_clock(monkeypatch):
    """The decider's monotonic clock; the one rank there is."""
    clock = SimpleNamespace(now_s=100.0)
    monkeypatch.setattr(decider_module, "alone", lambda: True)
    monkeypatch.setattr(
        decider_module, "time", SimpleNamespace(monotonic=lambda: clock.now_s, perf_counter=time.perf_counter)
    )
    return clock


def with_one_waiting():
    """A scheduler on which one request runs and one waits."""
    asked = SimpleNamespace(max_new_tokens=16, custom_params=None)
    waits = SimpleNamespace(output_ids=[], seqlen=900, prefix_len=64, priority=None, rid="waits", sampling_params=asked)
    return stand_in_scheduler(
        running=1, waiting_queue=[waits], last_batch=None, chunked_req=None,
        device="nothing real",
        metrics_reporter=SimpleNamespace(enable_metrics=False), _engine_paused=False, max_prefill_tokens=16384,
        model_worker=SimpleNamespace(forward_batch_generation=lambda batch: None),
        _request_dispatcher=SimpleNamespace(_mapping={}),
    )  # fmt: skip


def ran(decider, clock, batch, request):
    """One batch from its launch to its result, which gives the request a token."""
    clock.now_s += 0.02
    decider.launching(batch)
    decider.scheduler.model_worker.forward_batch_generation(batch)
    decider.launched(batch)
    request.output_ids.append(7)
    decider.finished(batch, SimpleNamespace(can_run_cuda_graph=False))
