"""Batches are observed as SGLang forms them. StandInBatch has the attributes of a ScheduleBatch that are read."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
from sglang.srt.model_executor.forward_batch_info import ForwardMode as SglangMode

from roofline_policies.batch import BatchShape
from roofline_policies.model import ModelShape
from roofline_policies.view import ForwardMode
from roofline_policies.work import Precision, Provenance
from sglang_patches import observe
from sglang_patches.observe import Observer

MODEL = ModelShape(
    "llama", hidden_size=64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16, intermediate_size=128,
    vocab_size=256, tied_embeddings=False, qkv_bias=False, output_bias=False, mlp_bias=False, qk_norm=False,
    weight_precision=Precision.BF16, kv_precision=Precision.BF16,
)  # fmt: skip


@dataclass
class StandInBatch:
    forward_mode: SglangMode
    extend_lens: list = field(default_factory=list)
    prefix_lens: list = field(default_factory=list)
    seq_lens: list = field(default_factory=list)
    forward_iter: int = 1
    after_idle_gap: bool = False
    prefill_stats: object = None

    @property
    def reqs(self):
        return [None] * (len(self.seq_lens) or len(self.extend_lens))

    @property
    def seq_lens_cpu(self):
        return torch.tensor(self.seq_lens)


def run(observer, batch, now_s=1.0, graph=False):
    mode = observer.launch(batch)
    observer.forward_starts()
    observer.forward_ends()
    observer.launched(batch)
    return mode, observer.finish(batch, SimpleNamespace(can_run_cuda_graph=graph), now_s)


def test_a_prefill_with_prefix():
    mode, record = run(Observer(MODEL, device="cpu"), StandInBatch(SglangMode.EXTEND, [5, 3], [0, 10]))
    assert mode is record.mode is ForwardMode.PREFILL
    assert (record.requests, record.new_tokens, record.context_tokens) == (2, 8, 18)
    assert record.work == MODEL.work(BatchShape.of(prefill=[(5, 0), (3, 10)]))
    assert record.work.provenance == {Provenance.CLOSED_FORM}
    assert record.seconds > 0
    assert record.seconds_source == "host clock"


def test_a_decode_ignores_the_stale_extend_lengths():
    batch = StandInBatch(SglangMode.DECODE, [99, 99], [99, 99], seq_lens=[7, 20])
    mode, record = run(Observer(MODEL, device="cpu"), batch)
    assert mode is ForwardMode.DECODE
    assert record.work == MODEL.work(BatchShape.of(decode_contexts=[7, 20]))


def test_a_mixed_batch():
    mode, record = run(Observer(MODEL, device="cpu"), StandInBatch(SglangMode.MIXED, [5, 1], [0, 19]))
    assert mode is ForwardMode.MIXED
    assert record.new_tokens == 6


def test_a_graph_replay_counts_its_padding():
    observer = Observer(MODEL, device="cpu", graph_sizes=[1, 2, 4, 8])
    batch = StandInBatch(SglangMode.DECODE, seq_lens=[7, 20, 30])
    _, replayed = run(observer, batch, graph=True)
    assert (replayed.padded_rows, replayed.cuda_graph) == (1, True)
    assert replayed.work == MODEL.work(BatchShape.of(decode_contexts=[7, 20, 30], padded_rows=1))
    _, eager = run(observer, batch)
    assert eager.padded_rows == 0


def test_a_verify_step_of_speculation_is_an_estimate():
    observer = Observer(MODEL, device="cpu", rows_per_request=4)
    _, record = run(observer, StandInBatch(SglangMode.DECODE, seq_lens=[7, 20]))
    assert record.new_tokens == 8
    assert record.work.provenance == {Provenance.ESTIMATED}


@pytest.mark.parametrize("mode", [SglangMode.IDLE, SglangMode.PREBUILT])
def test_a_batch_that_computes_nothing_is_passed_over(mode):
    assert run(Observer(MODEL, device="cpu"), StandInBatch(mode)) == (None, None)


def test_wall_time_runs_from_result_to_result_but_not_across_a_pause():
    observer = Observer(MODEL, device="cpu")
    decode = StandInBatch(SglangMode.DECODE, seq_lens=[7])
    _, first = run(observer, decode, now_s=10.0)
    assert first.step_s == first.seconds
    decode.forward_iter = 2
    assert run(observer, decode, now_s=10.5)[1].step_s == 0.5
    decode.after_idle_gap = True
    _, after_pause = run(observer, decode, now_s=99.0)
    assert after_pause.step_s == after_pause.seconds < 1.0


def test_results_are_matched_to_launches_under_overlap():
    observer = Observer(MODEL, device="cpu")
    first = StandInBatch(SglangMode.EXTEND, [5], [0], forward_iter=1)
    second = StandInBatch(SglangMode.DECODE, seq_lens=[6], forward_iter=2)
    for batch in (first, second):
        observer.launch(batch)
        observer.forward_starts()
        observer.forward_ends()
        observer.launched(batch)
    assert observer.in_flight == 2
    assert observer.finish(first, SimpleNamespace(), 1.0).mode is ForwardMode.PREFILL
    assert observer.finish(second, SimpleNamespace(), 2.0).mode is ForwardMode.DECODE
    assert observer.in_flight == 0


def test_the_cache_hit_rate_is_of_all_prompt_tokens():
    observer = Observer(MODEL, device="cpu")
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
    observer = Observer(MODEL, device="cuda")
    batch = StandInBatch(SglangMode.DECODE, seq_lens=[7])
    assert run(observer, batch)[1] is None
    monkeypatch.setattr(StandInEvent, "over", True)
    _, record = run(observer, batch)
    assert (record.seconds, record.seconds_source) == (0.0125, "device events")
