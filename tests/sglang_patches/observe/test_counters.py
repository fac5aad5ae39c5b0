"""Counters in a server process: what is counted when, and what happens where it fails. Ledgers are real, on the CPU."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from sglang.srt.model_executor.forward_batch_info import ForwardMode as SglangMode

from roofline_policies.contract.view import ForwardMode
from roofline_policies.counting import Ledger, slots
from roofline_policies.model.batch import BatchShape
from roofline_policies.model.gqa import GroupedAttention
from roofline_policies.work import Bytes, Flops, Precision, Provenance
from sglang_patches.observe import counters
from sglang_patches.observe.clocks import HostInterval
from sglang_patches.observe.counters import ATTENTION_KERNELS, Counters, InlineWork, install, reason_not_to_count
from sglang_patches.observe.observer import Observer
from tests.sglang_patches.observe.test_observer import run
from tests.sglang_patches.stand_ins import DECODER, MODEL, StandInBatch

DECODE = BatchShape.of(decode_contexts=[7, 20])


class StandInCounters:
    """Kernels that count when the test says so."""

    def __init__(self):
        self.ledger = Ledger("cpu", rows=4)
        self.rows = [self.ledger.open_row("decode"), self.ledger.open_row("extend")]

    def count(self, row, load=0, store=0, **dots):
        counts = self.ledger.row(self.rows[row]).view(slots.STRIPES, slots.WIDTH)
        for stripe, share in ((0, 1), (17, 3)):  # three quarters in another stripe
            counts[stripe, slots.LOAD] += load * share // 4
            counts[stripe, slots.STORE] += store * share // 4
            for precision, flops in dots.items():
                counts[stripe, slots.DOT[Precision(precision)]] += flops * share // 4

    def snapshot(self, device):
        return self.ledger.snapshot()


@pytest.fixture
def kernels():
    return StandInCounters()


def test_work_is_the_attention_that_was_counted_and_the_rest_from_shapes(kernels):
    kernels.count(0, load=400)  # before the server served anything
    inline = InlineWork(MODEL, kernels, "cpu")
    kernels.count(0, load=8000, store=400, bf16=1200)
    kernels.count(1, load=80, fp32=40)
    work = inline.work(ForwardMode.DECODE, DECODE, inline.snapshot().totals())
    beside, attention = MODEL.work_beside_attention(DECODE), MODEL.attention_work(DECODE)
    assert work.requested == beside.requested + Bytes(8080, 400)
    assert work.issued == beside.issued + Flops(bf16=1200, fp32=40)
    assert work.useful == beside.useful + attention.useful
    assert work.compulsory == beside.compulsory + attention.compulsory
    assert work.provenance == {Provenance.INLINE}


def test_each_iteration_gets_what_was_counted_since_the_last(kernels):
    inline = InlineWork(MODEL, kernels, "cpu")
    requested = []
    for load in (400, 1200, 8):
        kernels.count(0, load=load)
        work = inline.work(ForwardMode.DECODE, DECODE, inline.snapshot().totals())
        requested.append(work.requested.read - MODEL.work_beside_attention(DECODE).requested.read)
    assert requested == [400, 1200, 8]


def test_an_iteration_whose_attention_was_not_counted_has_no_inline_work(kernels):
    inline = InlineWork(MODEL, kernels, "cpu")
    assert inline.work(ForwardMode.DECODE, DECODE, inline.snapshot().totals()) is None


def test_decode_without_groups_multiplies_without_dots(kernels):
    """SGLang's stage 1 for as many KV heads as heads sums products element by element."""
    ungrouped = replace(DECODER, attention=GroupedAttention(4, 4, 16)).rank_model
    inline = InlineWork(ungrouped, kernels, "cpu")
    kernels.count(0, load=400)
    work = inline.work(ForwardMode.DECODE, DECODE, inline.snapshot().totals())
    assert work.issued == ungrouped.work(DECODE).issued


def test_records_carry_inline_work_and_fall_back(kernels):
    observer = Observer(MODEL, interval=HostInterval, inline=InlineWork(MODEL, kernels, "cpu"))
    batch = StandInBatch(SglangMode.DECODE, seq_lens=[7, 20])
    original = observer.forward_ends

    def counting_forward_ends():
        kernels.count(0, load=400)
        original()

    observer.forward_ends = counting_forward_ends
    _, record = run(observer, batch)
    assert record.work.provenance == {Provenance.INLINE}
    observer.forward_ends = original
    _, record = run(observer, batch)
    assert record.work == MODEL.work(DECODE)
    assert record.work.provenance == {Provenance.CLOSED_FORM}


class StandInTree:
    """A prefix cache in which two requests lock 16 tokens, 12 of them the same."""

    def supports_prefix_sharing(self):
        return True

    def protected_size(self):
        return 6 + 16 - 12


def test_a_shared_prefix_is_compulsory_once():
    class Batch(StandInBatch):
        @property
        def reqs(self):
            return [SimpleNamespace(kv=SimpleNamespace(cache_protected_len=locked)) for locked in (6, 16)]

    _, record = run(
        Observer(MODEL, interval=HostInterval, tree_cache=StandInTree()), Batch(SglangMode.DECODE, seq_lens=[7, 20])
    )
    apart = MODEL.work(DECODE)
    assert record.work.compulsory.read == apart.compulsory.read - 12 * MODEL.kv_bytes_per_token
    assert record.work.requested == apart.requested


def arguments(**changes):
    fields = {"attention_backend": "triton", "prefill_attention_backend": None, "decode_attention_backend": None}
    return SimpleNamespace(**{**fields, "speculative_algorithm": None, **changes})


def test_only_tritons_kernels_can_be_counted():
    assert reason_not_to_count(arguments()) is None
    assert "fa3" in reason_not_to_count(arguments(attention_backend="fa3"))
    assert "flashinfer" in reason_not_to_count(arguments(prefill_attention_backend="flashinfer"))
    assert "default" in reason_not_to_count(arguments(attention_backend=None))
    assert "draft" in reason_not_to_count(arguments(speculative_algorithm="EAGLE"))


def test_every_kernel_is_there_and_exact():
    from importlib import import_module

    from roofline_policies.counting import counted

    for module, name in ATTENTION_KERNELS:
        exactness = counted(getattr(import_module(module), name)).exactness()
        assert exactness.exact, name
        assert exactness.sites, name


def test_a_kernel_that_sglang_lacks_leaves_the_closed_form(monkeypatch, caplog):
    monkeypatch.setattr(counters, "ATTENTION_KERNELS", (("sglang.kernels.ops.attention.decode_attention", "gone"),))
    caplog.set_level("INFO")
    assert install(arguments()) is None
    assert "work follows from shapes: module" in caplog.text
    assert "gone" in caplog.text


def test_a_twin_that_cannot_be_launched_gives_way_to_the_original(caplog):
    """No CUDA driver is here, so the twin fails at its first launch: the request is served all the same."""
    from sglang.kernels.ops.attention import decode_attention

    kernel, launches = decode_attention._fwd_kernel_stage2, []
    vars(kernel)["run"] = lambda *args, **kwargs: launches.append((args, kwargs))
    try:
        counting = Counters([kernel], ledger=Ledger("cpu", rows=1))
        kernel[(1,)](torch.zeros(1), answer=42)
        assert launches == [((launches[0][0][0],), {"grid": (1,), "warmup": False, "answer": 42})]
        assert counting.failure.startswith("_fwd_kernel_stage2: ")
        assert counting.snapshot("cpu") is None
        assert "attention is not counted any more" in caplog.text
        kernel[(1,)](answer=43)
        assert len(launches) == 2
    finally:
        vars(kernel).pop("run")


def test_a_triton_that_nobody_tried_leaves_the_closed_form(monkeypatch, caplog):
    import triton

    monkeypatch.setattr(triton, "__version__", "3.10.0")
    caplog.set_level("INFO")
    assert install(arguments()) is None
    assert "work follows from shapes: Triton 3.10.0: counting was not tried with it; allowed: 3.8.0" in caplog.text
