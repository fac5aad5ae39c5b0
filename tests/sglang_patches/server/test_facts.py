"""What a loop is told of a real server. Stand-ins take the place of SGLang's Scheduler and its worker."""

import logging
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from sglang.srt.model_executor.runner.prefill_cuda_graph_runner import PrefillCudaGraphRunner
from transformers import LlamaConfig

from roofline_policies.model.attention_tiles import Fa3, Tile, TritonAttention
from roofline_policies.model.batch import BatchShape
from roofline_policies.settings.loading import load
from roofline_policies.steps.costs import costs_of
from roofline_policies.steps.predictor import StepPredictor
from roofline_policies.steps.speculation import verify_shape
from roofline_policies.work import Precision, Provenance
from sglang_patches import hooks
from sglang_patches.observe.clocks import DeviceInterval, HostInterval
from sglang_patches.server import facts as served
from sglang_patches.server.agree import KnobsUpdate
from tests.sglang_patches.server.one_rank import one_rank_of, sglang_module
from tests.sglang_patches.stand_ins import StandInArguments

CONFIG = {
    "hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 512, "vocab_size": 1024, "tie_word_embeddings": False,
}  # fmt: skip


@pytest.fixture(autouse=True)
def ranks(monkeypatch):
    """One rank of two, which decides."""
    monkeypatch.setattr(served, "ranks", lambda: SimpleNamespace(tp_size=2))


@cache
def model():
    """The first of two ranks, as SGLang builds it, and what it was built from."""
    config = LlamaConfig(**CONFIG)
    with one_rank_of(2), torch.device("meta"):
        return sglang_module("models.llama").LlamaForCausalLM(config), config


def scheduler(device="cpu", attention="fa3", speculative=False, deterministic=False):
    modules, config = model()
    runner = SimpleNamespace(
        kv_cache_dtype=torch.bfloat16, prefill_attention_backend_str=attention, decode_attention_backend_str="fa3",
        model=modules, is_draft_worker=False, prefill_cuda_graph_runner=None,
    )  # fmt: skip
    return SimpleNamespace(
        device=device,
        model_config=SimpleNamespace(dtype=torch.bfloat16, hf_config=config),
        tp_worker=SimpleNamespace(model_runner=runner, get_decode_cuda_graph_bs=lambda: [8, 1, 4]),
        spec_algorithm=SimpleNamespace(is_none=lambda: not speculative),
        server_args=StandInArguments(
            speculative_num_draft_tokens=4, page_size=1, enable_deterministic_inference=deterministic
        ),
    )


def settings(*overrides):
    return load("adaptive", overrides=overrides)


def test_the_model_is_a_ranks_and_the_clock_the_hosts_on_a_cpu():
    it = served.of_server(scheduler(), settings("hardware=l4"), None)
    (attention,) = it.model.attention
    assert (attention.heads, attention.kv_precision, it.model.provenance) == (2, Precision.BF16, Provenance.MODULES)
    assert (it.interval, it.graph_sizes, it.counters, it.device_uuid) == (HostInterval, [1, 4, 8], None, None)


@pytest.mark.parametrize(("installed", "rows"), [(True, 5), (False, 25)])
def test_what_attention_issues_follows_the_backends_that_run(monkeypatch, installed, rows):
    """``torch_native`` pads queries to the context, but where the CPU platform brings its own prefill."""
    monkeypatch.setattr(served.served_model.standin, "is_installed", lambda: installed)
    it = served.of_server(scheduler(attention="torch_native"), settings("hardware=l4"), None)
    assert it.attention.name == "torch_native and fa3"
    assert it.attention.prefill.prefill_flops([(5, 20)]) == 4 * 2 * 64 * rows * 25
    assert it.attention.decode == Fa3(2, 1, 64)
    times = served.roofline_times(it, settings("hardware=l4"))
    assert times.attention == it.attention
    unified = served.of_server(scheduler(attention="triton", deterministic=True), settings("hardware=l4"), None)
    assert unified.attention.prefill == TritonAttention(2, 1, 64, Tile(64, 64), unified=True)


def test_ceilings_that_stand_in_for_others_are_named_in_the_log(caplog):
    """As a launch with ``hardware=l4`` on another device leaves them, in a precision that they lack."""
    chosen = settings("hardware=l4", "efficiency=roofline")
    borrowed = chosen.ceilings.of_device("NVIDIA RTX 5090")
    some = {precision: rate for precision, rate in borrowed.flops_per_s.items() if precision is not Precision.BF16}
    borrowed = replace(borrowed, flops_per_s=some).covering(Precision.BF16)
    caplog.set_level(logging.WARNING)
    served.of_server(scheduler(), replace(chosen, ceilings=borrowed), None)
    first, second = [record.message for record in caplog.records]
    assert first.startswith("Roofline: the ceilings of NVIDIA L4 stand in for those of NVIDIA RTX 5090.")
    assert second.startswith("Roofline: the compute ceiling of fp16 stands in for bf16, which has none.")


def test_the_roofline_is_a_choice(caplog):
    caplog.set_level(logging.INFO)
    chosen = settings("hardware=h200", "efficiency=roofline")
    it = served.of_server(scheduler(), chosen, None)
    assert it.predictor is None
    assert caplog.records == []
    assert served.roofline_times(it, chosen).model == it.model


def test_a_device_is_timed_by_its_events_and_watched(monkeypatch):
    monkeypatch.setattr(served.served_model, "device_uuid", lambda: "GPU-1")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    it = served.of_server(scheduler("cuda"), settings("hardware=h200"), None)
    assert (it.interval, it.device_uuid) == (DeviceInterval, "GPU-1")


def test_the_devices_efficiencies_are_found_by_its_name(caplog):
    caplog.set_level(logging.INFO)
    it = served.of_server(scheduler(), settings("hardware=h200"), None)
    same = StepPredictor.for_device(
        it.model, "h200", tp_size=2, captured=[1, 4, 8], costs=costs_of("h200"), decode_attention="fa3"
    )
    assert it.predictor == same
    decode = BatchShape.of(decode_contexts=[100] * 3)
    assert it.predictor.step_s(prefill=BatchShape(), decode=decode, graph=True) == same.step_s(
        decode=decode, graph=True
    )
    (line,) = [record.message for record in caplog.records]
    assert "step times are predicted with the h200's efficiencies" in line


def test_where_nothing_was_measured_there_is_no_predictor_and_one_line_says_why(caplog):
    caplog.set_level(logging.INFO)
    assert served.of_server(scheduler(), settings("hardware=l4"), None).predictor is None
    (line,) = [record.message for record in caplog.records]
    assert line.startswith("Roofline: step times are not predicted: ")
    assert "no measured efficiencies" in line


def test_a_kernel_that_was_not_measured_is_priced_as_the_nearest_and_named(caplog):
    """Prefill and decode have backends of their own."""
    caplog.set_level(logging.INFO)
    it = served.of_server(scheduler(attention="flashinfer"), settings("hardware=h200"), None)
    first, second = [record.message for record in caplog.records]
    assert "step times are predicted with the h200's efficiencies" in first
    assert second == "Roofline: attention of prompts: fa3 stands in for flashinfer, which was not measured."
    own = served.of_server(scheduler(), settings("hardware=h200"), None)
    prompt = {"prefill": BatchShape.of(prefill=[(512, 0)])}
    assert it.predictor.step(**prompt) == own.predictor.step(**prompt)
    other = served.of_server(scheduler(attention="triton"), settings("hardware=h200"), None)
    assert other.predictor.step(**prompt).attention_s > own.predictor.step(**prompt).attention_s
    rows = {"decode": BatchShape.of(decode_contexts=[900] * 4)}
    assert other.predictor.step(**rows) == own.predictor.step(**rows)


def test_drafts_are_left_to_be_learned_and_one_line_says_so(caplog):
    """The target's verify step is predicted, with the rows that it has."""
    caplog.set_level(logging.INFO)
    it = served.of_server(scheduler(speculative=True), settings("hardware=h200"), None)
    verify = verify_shape(4, 400, 3)
    plain = BatchShape.of(decode_contexts=[100] * 4)
    assert it.predictor.step_s(decode=verify, graph=True) > it.predictor.step_s(decode=plain, graph=True)
    assert served.roofline_times(it, settings("hardware=l4")).step_s(decode=verify) > 0
    assert "drafts are not predicted" in caplog.records[-1].message


def test_efficiencies_that_do_not_cover_the_server_let_it_start_and_warn(caplog):
    asked = settings("hardware=l4", "efficiency=h200")
    assert served.of_server(scheduler(attention="of_tomorrow"), asked, None).predictor is None
    (record,) = caplog.records
    assert (record.levelno, "no such kernel" in record.message) == (logging.WARNING, True)
    it = served.of_server(scheduler(), settings("hardware=l4", "efficiency=h200"), None)
    assert it.predictor.ceilings.device == "NVIDIA H200"


def test_no_predictor_where_none_is_wanted(caplog):
    caplog.set_level(logging.INFO)
    assert served.of_server(scheduler(), settings("hardware=h200", "efficiency=none"), None).predictor is None
    assert not caplog.records


@pytest.mark.parametrize("decider", [None, "a decider"])
def test_what_is_joined_is_the_schedulers_and_hears_the_broadcast(decider):
    dispatcher = SimpleNamespace(_mapping={})
    scheduler = SimpleNamespace(_request_dispatcher=dispatcher, policy=SimpleNamespace())
    applier = SimpleNamespace(apply=lambda update: None)
    assert hooks.applier_of(scheduler) is hooks.decider_of(scheduler) is None
    hooks.join(scheduler, applier, decider)
    assert hooks.applier_of(scheduler) is hooks.applier_of(scheduler.policy) is applier
    assert hooks.decider_of(scheduler) is decider
    assert scheduler._request_dispatcher._mapping[KnobsUpdate] is applier.apply


def test_steps_with_prompts_that_were_captured_are_told_as_replays():
    """The runner is SGLang's own class, without what it would capture; another runner, as for eager steps, has none."""
    ours = scheduler()
    captured = PrefillCudaGraphRunner.__new__(PrefillCudaGraphRunner)
    captured.max_num_tokens = 4096
    for runner, rows in ((captured, 4096), (None, 0), (SimpleNamespace(max_num_tokens=512), 0)):
        ours.tp_worker.model_runner.prefill_cuda_graph_runner = runner
        assert served.of_server(ours, settings("hardware=h200"), None).predictor.replayed_rows == rows
