"""Batches are observed as SGLang forms them. StandInBatch stands in for a ScheduleBatch."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sglang.srt.layers.logits_processor import LogitsProcessor
from sglang.srt.model_executor.forward_batch_info import ForwardMode as SglangMode

from roofline_policies.contract.view import ForwardMode
from roofline_policies.model.backends import backends
from roofline_policies.model.batch import BatchShape
from roofline_policies.work import Precision, Provenance
from sglang_patches.observe import clocks
from sglang_patches.observe import observer as observe
from sglang_patches.observe.clocks import DeviceInterval, HostInterval
from sglang_patches.observe.observer import Observer
from tests.sglang_patches.stand_ins import MODEL, StandInBatch


def run(observer, batch, now_s=1.0, graph=False, accepted=None):
    launch = observer.launch(batch)
    observer.forward_starts()
    observer.forward_ends()
    assert observer.launched(batch) is launch
    observer.finish(batch, SimpleNamespace(can_run_cuda_graph=graph, num_correct_drafts_per_req_cpu=accepted), now_s)
    return None if launch is None else launch.mode, next(observer.records(), None)


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

    def parts(batch):
        launch = observer.launch(batch)
        return launch.prefill, launch.decode

    prompts = StandInBatch(SglangMode.EXTEND, [5, 3], [0, 10])
    assert parts(prompts) == (BatchShape.of(prefill=[(5, 0), (3, 10)]), BatchShape())
    decode = StandInBatch(SglangMode.DECODE, seq_lens=[7, 20])
    assert parts(decode) == (BatchShape(), BatchShape.of(decode_contexts=[7, 20]))
    mixed = StandInBatch(SglangMode.MIXED, [5, 1, 1], [4, 19, 30], decoding_reqs=["a", "b"])
    assert parts(mixed) == (BatchShape.of(prefill=[(5, 4)]), BatchShape.of(decode_contexts=[20, 31]))
    launch = observer.launched(mixed)
    assert (launch.prefill, launch.decode) == parts(mixed)
    observer.launched(mixed)
    assert observer.launched(mixed) is None  # told once
    assert observer.launch(StandInBatch(SglangMode.IDLE)) is None
    assert observer.launched(StandInBatch(SglangMode.IDLE)) is None


def test_a_graph_replay_counts_its_padding():
    observer = Observer(MODEL, interval=HostInterval, graph_sizes=[1, 2, 4, 8])
    batch = StandInBatch(SglangMode.DECODE, seq_lens=[7, 20, 30])
    _, replayed = run(observer, batch, graph=True)
    assert (replayed.padded_rows, replayed.cuda_graph) == (1, True)
    assert replayed.work == MODEL.work(BatchShape.of(decode_contexts=[7, 20, 30], padded_rows=1))
    _, eager = run(observer, batch)
    assert eager.padded_rows == 0


CHUNKS, CACHED = [700, 300, 64], [0, 400, 2000]


@pytest.mark.parametrize("name", ["fa3", "triton", "torch_native"])
def test_attention_issues_what_the_kernel_that_runs_does(name):
    """Chunks behind a cached prefix, several in a batch, decode rows beside them, rows that pad a graph."""
    kernels = backends(MODEL, name)

    def issued(*launched, **options):
        observer = Observer(MODEL, interval=HostInterval, attention=kernels, **options)
        return run(observer, *launched)[1].work.issued.total

    def beside(batch):
        return MODEL.work_beside_attention(batch).issued.total

    rows = list(zip(CHUNKS, CACHED, strict=True))
    prefill, layers = BatchShape.of(rows), MODEL.layers
    assert issued(StandInBatch(SglangMode.EXTEND, CHUNKS, CACHED)) == (
        beside(prefill) + layers * kernels.prefill.prefill_flops(rows)
    )
    mixed = StandInBatch(SglangMode.MIXED, [*CHUNKS, 1, 1], [*CACHED, 19, 900], decoding_reqs=["a", "b"])
    assert issued(mixed) == (
        beside(prefill + BatchShape.of(decode_contexts=[20, 901]))
        + layers * kernels.prefill.prefill_flops([*rows, (1, 19), (1, 900)])
    )
    decode = StandInBatch(SglangMode.DECODE, seq_lens=[7, 20, 300])
    assert issued(decode) == (
        beside(BatchShape.of(decode_contexts=[7, 20, 300])) + layers * kernels.decode.decode_flops([7, 20, 300])
    )
    observer = Observer(MODEL, interval=HostInterval, attention=kernels, graph_sizes=[8])
    padded = run(observer, decode, graph=True)[1].work
    assert padded.issued.total == (
        beside(BatchShape.of(decode_contexts=[7, 20, 300], padded_rows=5))
        + layers * kernels.decode.decode_flops([7, 20, 300], 5)
    )
    assert padded.useful == MODEL.work(BatchShape.of(decode_contexts=[7, 20, 300])).useful
    verify = Observer(MODEL, interval=HostInterval, attention=kernels, drafts=lambda requests: 3)
    assert run(verify, StandInBatch(SglangMode.DECODE, seq_lens=[7, 20]))[1].work.issued.total == (
        beside(BatchShape.of([(4, 7), (4, 20)], all_logits=True))
        + layers * kernels.prefill.prefill_flops([(4, 7), (4, 20)])
    )


@pytest.mark.parametrize(
    ("new", "starts", "rows"),
    [
        ([400], [0], 400),
        ([400], [399], 1),
        ([400], [400], 1),  # a chunk before the start, or logprobs of the answer alone
        ([400], [150], 250),
        ([128, 5, 60], [128, 0, 20], 1 + 5 + 40),  # one wants none, one all, one from its middle on
    ],
)
def test_rows_whose_logprobs_were_asked_for_go_through_the_head(new, starts, rows):
    lens = {"extend_lens": new, "prefix_lens": [3] * len(new)}
    batch = StandInBatch(SglangMode.EXTEND, **lens, return_logprob=True, extend_logprob_start_lens=starts)
    _, asked = run(Observer(MODEL, interval=HostInterval), batch)
    _, plain = run(Observer(MODEL, interval=HostInterval), StandInBatch(SglangMode.EXTEND, **lens))
    head = 2 * MODEL.hidden_size * MODEL.head.outputs
    assert asked.work.issued.total - plain.work.issued.total == head * (rows - len(new))
    assert asked.work.useful.total - plain.work.useful.total == head * (rows - len(new))
    assert asked.work.compulsory == plain.work.compulsory


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 60)), min_size=1, max_size=5))
def test_rows_of_the_head_are_those_that_sglang_takes(requests):
    """The logits processor's own pruning, on hidden states that carry their row's number."""
    new = [one for one, _ in requests]
    starts = [min(start, one) for one, start in requests]
    batch = StandInBatch(SglangMode.EXTEND, new, [0] * len(new), return_logprob=True, extend_logprob_start_lens=starts)
    wanted = any(one > start for one, start in zip(new, starts, strict=True))
    metadata = SimpleNamespace(
        forward_mode=SglangMode.EXTEND, extend_return_logprob=wanted, extend_seq_lens=torch.tensor(new),
        extend_seq_lens_cpu=new, extend_logprob_start_lens_cpu=starts,
    )  # fmt: skip
    states = torch.arange(sum(new), dtype=torch.float32)[:, None]
    pruned = LogitsProcessor._get_pruned_states(SimpleNamespace(), states, None, None, metadata)[0]
    assert sum(observe.head_rows(batch)) == len(pruned)


def test_decode_rows_have_their_logits_whatever_was_asked_of_the_prompt():
    stale = StandInBatch(
        SglangMode.DECODE, [99, 99], [0, 0], seq_lens=[7, 20], return_logprob=True, extend_logprob_start_lens=[0, 0]
    )
    _, record = run(Observer(MODEL, interval=HostInterval), stale)
    assert record.work == MODEL.work(BatchShape.of(decode_contexts=[7, 20]))


def test_layers_in_another_precision_are_counted_in_it():
    observer = Observer(MODEL, interval=HostInterval, linear=(Precision.FP8, None))
    _, prefill = run(observer, StandInBatch(SglangMode.EXTEND, [5], [0]))
    assert prefill.work == MODEL.with_products(Precision.FP8).work(BatchShape.of([(5, 0)]))
    _, decode = run(observer, StandInBatch(SglangMode.DECODE, seq_lens=[7], forward_iter=2))
    assert decode.work == MODEL.work(BatchShape.of(decode_contexts=[7]))


def test_a_verify_step_of_speculation_is_an_estimate():
    observer = Observer(MODEL, interval=HostInterval, drafts=lambda requests: 3)
    _, record = run(observer, StandInBatch(SglangMode.DECODE, seq_lens=[7, 20]))
    assert record.new_tokens == 8
    assert record.work.provenance == {Provenance.ESTIMATED}


def test_a_step_runs_as_many_rows_as_hold_when_it_is_launched_and_only_what_was_accepted_is_useful():
    now = {"window": 3}
    observer = Observer(MODEL, interval=HostInterval, drafts=lambda requests: now["window"], graph_sizes=[4])
    before = [7, 20]
    for iteration, (window, accepted) in enumerate([(3, [3, 0]), (1, [0, 1]), (3, [0, 0])], 1):
        now["window"] = window
        batch = StandInBatch(SglangMode.DECODE, seq_lens=before, forward_iter=iteration)
        _, record = run(observer, batch, accepted=accepted, graph=True)
        rows = window + 1
        issued = MODEL.work(BatchShape.of([(rows, one) for one in before], all_logits=True, padded_rows=2 * rows))
        kept = [(one + 1, length) for one, length in zip(accepted, before, strict=True)]
        assert (record.window, record.accepted, record.new_tokens) == (window, sum(accepted), 2 * rows)
        assert record.padded_rows == 2 * rows
        assert record.work.issued == issued.issued
        assert record.work.useful == MODEL.work(BatchShape.of(kept, all_logits=True)).useful


def test_a_step_without_drafts_on_a_server_that_drafts_computes_the_token_behind_its_lengths():
    observer = Observer(MODEL, interval=HostInterval, drafts=lambda requests: 0)
    _, record = run(observer, StandInBatch(SglangMode.DECODE, seq_lens=[7, 20]), accepted=[0, 0])
    plain = MODEL.work(BatchShape.of(decode_contexts=[8, 21]))
    assert (record.work.issued, record.work.useful) == (plain.issued, plain.useful)
    assert (record.window, record.accepted, record.new_tokens) == (0, 0, 2)


def test_without_drafts_a_record_says_nothing_of_them():
    _, record = run(Observer(MODEL, interval=HostInterval), StandInBatch(SglangMode.DECODE, seq_lens=[7]))
    assert (record.window, record.accepted) == (None, None)


@pytest.mark.parametrize("mode", [SglangMode.IDLE, SglangMode.PREBUILT])
def test_a_batch_that_computes_nothing_is_passed_over(mode):
    assert run(Observer(MODEL, interval=HostInterval), StandInBatch(mode)) == (None, None)


class Clock:
    """The observer's clock, set by the test."""

    def __init__(self, monkeypatch):
        self.now_s = 0.0
        monkeypatch.setattr(clocks.time, "monotonic", lambda: self.now_s)


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
    monkeypatch.setattr(clocks.torch, "get_device_module", lambda: SimpleNamespace(Event=StandInEvent))
    observer = Observer(MODEL, interval=DeviceInterval)
    batch = StandInBatch(SglangMode.DECODE, seq_lens=[7])
    assert run(observer, batch)[1] is None
    assert observer.finished == 1
    monkeypatch.setattr(StandInEvent, "over", True)
    record = next(observer.records())
    assert (record.seconds, record.seconds_source) == (0.0125, "device events")


def test_work_beside_which_something_runs_uncounted_says_so():
    for names, provenance in (((), {Provenance.CLOSED_FORM}), (("LoRA adapters",), {Provenance.ESTIMATED})):
        observer = Observer(MODEL, interval=HostInterval, not_counted=names)
        batch = StandInBatch(SglangMode.EXTEND, [4], [0])
        observer.launch(batch)
        observer.forward_starts()
        observer.forward_ends()
        observer.launched(batch)
        observer.finish(batch, SimpleNamespace(can_run_cuda_graph=False), 1.0)
        (record,) = observer.records()
        assert record.work.provenance == provenance
