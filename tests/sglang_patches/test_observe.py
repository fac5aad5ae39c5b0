"""Batches are observed as SGLang forms them. StandInBatch stands in for a ScheduleBatch."""

from types import SimpleNamespace

import pytest
from sglang.srt.model_executor.forward_batch_info import ForwardMode as SglangMode
from stand_ins import MODEL, StandInBatch

from roofline_policies.batch import BatchShape
from roofline_policies.view import ForwardMode
from roofline_policies.work import Provenance
from sglang_patches import observe
from sglang_patches.observe import DeviceInterval, HostInterval, Observer


def run(observer, batch, now_s=1.0, graph=False):
    mode = observer.launch(batch)
    observer.forward_starts()
    observer.forward_ends()
    observer.launched(batch)
    observer.finish(batch, SimpleNamespace(can_run_cuda_graph=graph), now_s)
    return mode, next(observer.records(), None)


def test_a_prefill_with_prefix():
    mode, record = run(Observer(MODEL, interval=HostInterval), StandInBatch(SglangMode.EXTEND, [5, 3], [0, 10]))
    assert mode is record.mode is ForwardMode.PREFILL
    assert (record.requests, record.new_tokens, record.context_tokens) == (2, 8, 18)
    assert record.work == MODEL.work(BatchShape.of(prefill=[(5, 0), (3, 10)]))
    assert record.work.provenance == {Provenance.CLOSED_FORM}
    assert record.seconds > 0
    assert record.seconds_source == "host clock"


def test_a_decode_ignores_the_stale_extend_lengths():
    batch = StandInBatch(SglangMode.DECODE, [99, 99], [99, 99], seq_lens=[7, 20])
    mode, record = run(Observer(MODEL, interval=HostInterval), batch)
    assert mode is ForwardMode.DECODE
    assert record.work == MODEL.work(BatchShape.of(decode_contexts=[7, 20]))


def test_a_mixed_batch():
    mode, record = run(Observer(MODEL, interval=HostInterval), StandInBatch(SglangMode.MIXED, [5, 1], [0, 19]))
    assert mode is ForwardMode.MIXED
    assert record.new_tokens == 6


def test_what_is_launched_is_told_as_prompts_and_decode_rows():
    observer = Observer(MODEL, interval=HostInterval)
    assert observer.launching is None
    observer.launch(StandInBatch(SglangMode.EXTEND, [5, 3], [0, 10]))
    assert observer.launching == (BatchShape.of(prefill=[(5, 0), (3, 10)]), BatchShape())
    observer.launch(StandInBatch(SglangMode.DECODE, seq_lens=[7, 20]))
    assert observer.launching == (BatchShape(), BatchShape.of(decode_contexts=[7, 20]))
    observer.launch(StandInBatch(SglangMode.MIXED, [5, 1, 1], [4, 19, 30], decoding_reqs=["a", "b"]))
    assert observer.launching == (BatchShape.of(prefill=[(5, 4)]), BatchShape.of(decode_contexts=[20, 31]))
    observer.launched(StandInBatch(SglangMode.MIXED))
    assert observer.launching is None
    observer.launch(StandInBatch(SglangMode.IDLE))
    assert observer.launching is None


def test_a_graph_replay_counts_its_padding():
    observer = Observer(MODEL, interval=HostInterval, graph_sizes=[1, 2, 4, 8])
    batch = StandInBatch(SglangMode.DECODE, seq_lens=[7, 20, 30])
    _, replayed = run(observer, batch, graph=True)
    assert (replayed.padded_rows, replayed.cuda_graph) == (1, True)
    assert replayed.work == MODEL.work(BatchShape.of(decode_contexts=[7, 20, 30], padded_rows=1))
    _, eager = run(observer, batch)
    assert eager.padded_rows == 0


def test_a_verify_step_of_speculation_is_an_estimate():
    observer = Observer(MODEL, interval=HostInterval, rows_per_request=4)
    _, record = run(observer, StandInBatch(SglangMode.DECODE, seq_lens=[7, 20]))
    assert record.new_tokens == 8
    assert record.work.provenance == {Provenance.ESTIMATED}


@pytest.mark.parametrize("mode", [SglangMode.IDLE, SglangMode.PREBUILT])
def test_a_batch_that_computes_nothing_is_passed_over(mode):
    assert run(Observer(MODEL, interval=HostInterval), StandInBatch(mode)) == (None, None)


class Clock:
    """The observer's clock, set by the test."""

    def __init__(self, monkeypatch):
        self.now_s = 0.0
        monkeypatch.setattr(observe.time, "monotonic", lambda: self.now_s)


def test_wall_time_runs_from_step_to_step_but_not_across_a_pause(monkeypatch):
    clock, observer = Clock(monkeypatch), Observer(MODEL, interval=HostInterval)

    def step(start_s, end_s, after_idle=False):
        batch = StandInBatch(SglangMode.DECODE, seq_lens=[7], after_idle_gap=after_idle)
        clock.now_s = start_s
        observer.launch(batch)
        observer.forward_starts()
        clock.now_s = end_s
        observer.forward_ends()
        observer.launched(batch)
        observer.finish(batch, SimpleNamespace(), end_s)
        return next(observer.records())

    assert step(10.0, 10.2).step_s == pytest.approx(0.2)
    second = step(10.3, 10.6)
    assert (second.seconds, second.step_s, second.done_s) == pytest.approx((0.3, 0.4, 10.6))
    assert step(99.0, 99.1, after_idle=True).step_s == pytest.approx(0.1)


def test_under_overlap_a_synchronous_device_does_not_charge_a_step_for_the_next(monkeypatch):
    """On a CPU the next forward pass runs before this step's result is processed."""
    clock, observer = Clock(monkeypatch), Observer(MODEL, interval=HostInterval)
    decode = StandInBatch(SglangMode.DECODE, seq_lens=[7], forward_iter=1)
    prefill = StandInBatch(SglangMode.EXTEND, [900], [0], forward_iter=2)
    for batch, forward_s in ((decode, 0.02), (prefill, 0.50)):
        observer.launch(batch)
        observer.forward_starts()
        clock.now_s += forward_s
        observer.forward_ends()
        observer.launched(batch)
    observer.finish(decode, SimpleNamespace(), clock.now_s)
    observer.finish(prefill, SimpleNamespace(), clock.now_s + 0.02)
    assert observer.finished == 2
    assert [record.step_s for record in observer.records()] == pytest.approx([0.02, 0.50])
    assert observer.finished == 0


def test_results_are_matched_to_launches_under_overlap():
    observer = Observer(MODEL, interval=HostInterval)
    first = StandInBatch(SglangMode.EXTEND, [5], [0], forward_iter=1)
    second = StandInBatch(SglangMode.DECODE, seq_lens=[6], forward_iter=2)
    for batch in (first, second):
        observer.launch(batch)
        observer.forward_starts()
        observer.forward_ends()
        observer.launched(batch)
    assert observer.in_flight == 2
    observer.finish(first, SimpleNamespace(), 1.0)
    observer.finish(second, SimpleNamespace(), 2.0)
    assert [record.mode for record in observer.records()] == [ForwardMode.PREFILL, ForwardMode.DECODE]
    assert observer.in_flight == 0


def test_the_cache_hit_rate_is_of_all_prompt_tokens():
    observer = Observer(MODEL, interval=HostInterval)
    assert observer.cache_hit_rate is None
    for hit, new in ((30, 10), (0, 60)):
        stats = SimpleNamespace(log_hit_tokens=hit, log_input_tokens=new)
        run(observer, StandInBatch(SglangMode.EXTEND, [new], [hit], prefill_stats=stats))
    assert observer.cache_hit_rate == 0.3


class StandInEvent:
    """A device event whose end is reached when the test says so."""

    over = False

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        pass

    def query(self):
        return type(self).over

    def elapsed_time(self, end):
        assert self.over
        return 12.5

    def synchronize(self):
        raise AssertionError("the forward stream must not be waited for")


def test_device_time_is_polled_never_waited_for(monkeypatch):
    monkeypatch.setattr(observe.torch, "get_device_module", lambda: SimpleNamespace(Event=StandInEvent))
    observer = Observer(MODEL, interval=DeviceInterval)
    batch = StandInBatch(SglangMode.DECODE, seq_lens=[7])
    assert run(observer, batch)[1] is None
    assert observer.finished == 1
    monkeypatch.setattr(StandInEvent, "over", True)
    record = next(observer.records())
    assert (record.seconds, record.seconds_source) == (0.0125, "device events")
