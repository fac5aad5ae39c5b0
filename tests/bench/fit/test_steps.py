"""Fitting step times: known coefficients come back, what cannot be used is refused, the front end's share is told."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("scipy")

from bench.fit import steps as fit_steps
from bench.fit.request_path import SentRequest, alone, read_requests, request_path
from bench.fit.step_records import WARM_UP, StepRecord, parse, read_steps
from roofline_policies.contract.view import ForwardMode, IterationRecord
from roofline_policies.device.hardware import from_catalogue
from roofline_policies.errors import EXIT_BAD_INPUT, InputError
from roofline_policies.model.backends import backends
from roofline_policies.model.batch import BatchShape
from roofline_policies.model.decoder import Decoder
from roofline_policies.steps.fitted_steps import FittedSteps, StepLine
from roofline_policies.steps.host_time import HostTime, RequestPath
from sglang_patches.observe.recorder import line

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 128, "vocab_size": 250,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
MODEL = Decoder.from_config(CONFIG).shard(1).rank_model
PADDED = backends(MODEL, "torch_native", padded_queries=False)
H200 = from_catalogue("h200")
LINES = {
    "prefill": StepLine(0.02, 0.0015, 5e-4, 2e-5, 1e-7, 3e-7),
    "decode": StepLine(base_s=0.018, request_s=0.00123, context_s=1.25e-5),
    "mixed": StepLine(base_s=0.03, request_s=0.002, row_s=4e-4, causal_pair_s=2e-7),
}
HOST = HostTime(0.00217, 4.5e-5)

chunks = st.lists(st.tuples(st.integers(1, 4096), st.integers(0, 8192)), min_size=1, max_size=8)
contexts = st.lists(st.integers(1, 8192), min_size=1, max_size=32)


def draw(rng, mode):
    prefill = [(int(rng.integers(1, 2000)), int(rng.integers(0, 4000))) for _ in range(rng.integers(1, 5))]
    decode = rng.integers(1, 3000, rng.integers(1, 33)).tolist()
    return BatchShape.of(prefill if mode != "decode" else (), decode if mode != "prefill" else (), attention=PADDED)


def records(count=90, noise=lambda rng: 1.0, modes=("prefill", "decode", "mixed")):
    """Iterations of a server that takes as long as LINES and HOST say, back to back but for a pause in between."""
    rng, done_s = np.random.default_rng(3), 1000.0
    for iteration in range(1, count * len(modes) + WARM_UP + 1):
        mode = modes[iteration % len(modes)]
        shape = draw(rng, mode)
        seconds = LINES[mode].seconds(shape) * noise(rng)
        paused = iteration % 40 == 1
        step_s = seconds if paused else seconds + HOST.seconds(shape.requests)
        done_s += step_s + (5.0 if paused else 0.0)
        yield IterationRecord(
            iteration, ForwardMode(mode), shape.requests, shape.new_tokens, shape.context_tokens, 0, False,
            MODEL.work(shape), seconds, "host clock", done_s, step_s,
        )  # fmt: skip


@pytest.fixture
def model_path(tmp_path):
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path / "toy"


def write(path, rows):
    path.write_text("".join(line(row) for row in rows))
    return path


def run(tmp_path, model_path, *more, rows=None):
    file = write(tmp_path / "steps.jsonl", rows if rows is not None else records())
    common = ["--records", str(file), "--model-path", str(model_path), "--device", "h200", "--date", "2026-01-31"]
    return fit_steps.main([*common, "--out", str(tmp_path / "fit.yaml"), *map(str, more)])


# Reading records


@given(chunks, st.just([]) | contexts)
def test_a_batch_is_found_again_in_its_flops(prefill, decode):
    shape = BatchShape.of(prefill, decode, attention=PADDED)
    mode = ForwardMode.MIXED if decode else ForwardMode.PREFILL
    assert read_one(mode, shape).shape == shape._replace(masked_flops=0)


@given(chunks)
def test_of_a_kernel_in_tiles_its_pairs_are_those_it_multiplied(prefill):
    shape = BatchShape.of(prefill, attention=backends(MODEL, "triton"))
    found = read_one(ForwardMode.PREFILL, shape).shape
    assert found.causal_pairs == shape.causal_pairs
    each = MODEL.attention_work(BatchShape(causal_pairs=1)).useful.total
    assert found.pairs == MODEL.attention_work(shape).issued.total // each


@given(contexts, st.integers(0, 8))
def test_so_is_a_padded_decode_batch(decode, padding):
    shape = BatchShape.of(decode_contexts=decode, padded_rows=padding)
    assert read_one(ForwardMode.DECODE, shape).shape == shape


def read_one(mode, shape):
    record = IterationRecord(
        1, mode, shape.requests, shape.new_tokens, shape.context_tokens, shape.padded_rows, False, MODEL.work(shape),
        0.2, "host clock", 7.0, 0.3,
    )  # fmt: skip
    iteration, step = parse(line(record), "a line", MODEL)
    assert (iteration, step.mode) == (1, mode)
    assert (step.start_s, step.host_s) == (pytest.approx(6.8), pytest.approx(0.1))
    assert (step.flops, step.bytes) == (record.work.issued.total, record.work.compulsory.total)
    return step


def test_the_first_iterations_of_every_server_are_left_out(tmp_path):
    rows = list(records(10, modes=["decode"]))
    one, other = write(tmp_path / "one", rows), write(tmp_path / "other", [*rows, *rows])
    assert len(read_steps([one], MODEL)) == 10
    assert len(read_steps([other], MODEL)) == 20
    assert len(read_steps([one, other], MODEL)) == 30


# Fitting


def test_known_coefficients_come_back_exactly(tmp_path, model_path, capsys):
    assert run(tmp_path, model_path) == 0
    fitted = FittedSteps.load(tmp_path / "fit.yaml")
    for mode, known in LINES.items():
        exact = {"rows": 90, "median_error": 0.0, "p90_error": 0.0, "total_error": 0.0}
        assert getattr(fitted, mode) == replace(known, **exact), mode
    assert fitted.host == HOST
    assert (fitted.model, fitted.machine, fitted.date) == ("toy", H200.device, "2026-01-31")
    out = capsys.readouterr().out
    told = json.loads(out.splitlines()[-1])
    assert told["host"] == {"step_s": HOST.step_s, "request_s": HOST.request_s}
    assert [(e["mode"], e["rows"], e["median"]) for e in told["errors"]] == [
        ("prefill", 30, 0.0), ("decode", 30, 0.0), ("mixed", 30, 0.0)
    ]  # fmt: skip
    assert all(0.9 < e["roofline_median"] <= 1 for e in told["errors"])  # a toy model is nothing to an H200
    assert "host time: 2.17 ms an iteration and 45 us a request" in out


def test_a_server_without_mixed_steps_has_no_line_for_them(tmp_path, model_path):
    assert run(tmp_path, model_path, rows=records(modes=["prefill", "decode"])) == 0
    assert FittedSteps.load(tmp_path / "fit.yaml").mixed is None


def test_totals_are_right_under_noise_and_steps_far_off_do_not_spoil_them():
    def noise(rng):
        return float(rng.gamma(25, 1 / 25)) * (8.0 if rng.random() < 0.01 else 1.0)

    steps = list(as_steps(records(3000, noise, modes=["decode"])))
    found = fit_steps.fit_line(ForwardMode.DECODE, steps)
    truth = LINES["decode"]
    ours, exact = (sum(of.seconds(step.shape) for step in steps) for of in (found, truth))
    assert ours == pytest.approx(exact, rel=0.02)
    for requests, context in ((1, 100), (8, 12_000), (32, 48_000)):
        batch = BatchShape(requests, requests, context, context, context, requests)
        assert found.seconds(batch) == pytest.approx(truth.seconds(batch), rel=0.05)


def as_steps(rows):
    for row in rows:
        yield StepRecord(
            row.mode, BatchShape(row.requests, row.new_tokens, row.context_tokens), 1, 1, row.seconds, row.done_s,
            row.step_s, row.step_s == row.seconds,
        )  # fmt: skip


@given(st.lists(st.floats(1e-3, 10), min_size=3, max_size=40), st.floats(1e-3, 1e3))
def test_a_constant_is_fitted_between_the_extremes_and_scales(seconds, factor):
    ones = np.ones((len(seconds), 1))
    (found,) = fit_steps.least_squares(ones, np.array(seconds))
    assert min(seconds) * 0.999 <= found <= max(seconds) * 1.001
    (scaled,) = fit_steps.least_squares(ones, np.array(seconds) * factor)
    assert scaled == pytest.approx(found * factor, rel=2e-3)


# What cannot be used


def spoilt(tmp_path, model_path, capsys, text, *more):
    file = tmp_path / "bad.jsonl"
    file.write_text(text)
    code = fit_steps.main(["--records", str(file), "--model-path", str(model_path), "--device", "h200", *more])
    (message,) = capsys.readouterr().err.splitlines()
    assert code == EXIT_BAD_INPUT
    return message


def row(**changes):
    return json.dumps(json.loads(line(next(records()))) | changes) + "\n"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("no json\n", ["bad.jsonl: line 1", "is not JSON"]),
        (row() + "[1]\n", ["line 2", "is not an object"]),
        (row(mode="idle"), ["line 1: mode = 'idle'", "prefill, decode, mixed"]),
        (row(seconds=0), ["seconds = 0", "> 0"]),
        (row(seconds=None), ["seconds: is missing"]),
        (row(requests=-1), ["requests = -1"]),
        (row(provenance=["inline"]), ["provenance = ['inline']", "['modules'] or ['closed_form']"]),
        (row(issued_flops=12345), ["issued_flops = 12345", "is of another model"]),
        (row(after_idle=3), ["after_idle = 3"]),
        (row(), ["has 0 prefill iterations", "at least 30"]),
        ("", ["has 0 prefill iterations"]),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_one_message(tmp_path, model_path, capsys, text, parts):
    message = spoilt(tmp_path, model_path, capsys, text)
    for part in parts:
        assert part in message


def test_missing_files_are_refused(tmp_path, model_path, capsys):
    good = str(write(tmp_path / "steps.jsonl", records()))
    common = ["--device", "h200", "--records"]
    for arguments, said in (
        ([str(tmp_path / "none"), "--model-path", str(model_path)], "no such file"),
        ([good, "--model-path", str(tmp_path)], "config.json"),
        ([good, "--model-path", str(model_path), "--requests", str(tmp_path / "none")], "no such file"),
        ([good, "--model-path", str(model_path), "--out", str(tmp_path / "none" / "fit.yaml")], "cannot be written"),
        ([good, "--model-path", str(model_path), "--device", "abacus"], "abacus"),
    ):
        assert fit_steps.main([*common, *arguments]) == EXIT_BAD_INPUT
        (message,) = capsys.readouterr().err.splitlines()
        assert said in message


# The way to the scheduler and back


def step(done_s, seconds=0.1, mode=ForwardMode.PREFILL):
    return StepRecord(mode, BatchShape(1, 1, 1, 1, 1, 1), 1, 1, seconds, done_s, seconds, True)


def client_row(sent_s, token_s, zero_s=500.0):
    return json.dumps(
        {"zero_s": zero_s, "sent_s": sent_s, "token_s": token_s, "end_s": (token_s or [sent_s])[-1] + 0.01}
    )


def exchange(count=6, ingress_s=0.004, egress_s=0.003):
    """Lone requests of two tokens: prefill, decode, each token passed on after the step behind it (overlap)."""
    sent = [10.0 * i for i in range(count)]
    steps = []
    for start in sent:
        first = 500.0 + start + ingress_s + HOST.seconds(1)
        steps += [step(first + 0.1), step(first + 0.15, 0.04, ForwardMode.DECODE), step(first + 0.2, 0.04)]
    offset = ingress_s + HOST.seconds(1) + egress_s
    return [(start, [start + offset + 0.15, start + offset + 0.2]) for start in sent], steps


def test_the_way_in_and_the_way_out_are_found_again(tmp_path):
    requests, steps = exchange()
    file = tmp_path / "requests.jsonl"
    file.write_text("\n".join([client_row(*one) for one in requests] + [client_row(99.0, [])]))
    found = request_path(read_requests([file]), steps, HOST)
    assert found.path.ingress_s == pytest.approx(0.004)
    assert found.path.egress_s == pytest.approx(0.003)
    assert (found.added_s, found.token_s, found.requests) == (pytest.approx(0.007), pytest.approx(0.003), 6)


def test_the_command_tells_it_and_writes_it(tmp_path, model_path, capsys):
    requests, steps = exchange()
    rows = list(records())
    # The exchange's steps lie before the others on the clock.
    work, shape = MODEL.work(BatchShape.of([(1, 0)])), BatchShape.of([(1, 0)])
    rows += [
        IterationRecord(
            1000 + i, ForwardMode.PREFILL, shape.requests, 1, 1, 0, False, work, one.seconds, "host clock", one.done_s,
            one.seconds,
        )
        for i, one in enumerate(steps)
    ]  # fmt: skip
    file = tmp_path / "requests.jsonl"
    file.write_text("\n".join(client_row(*one) for one in requests))
    assert run(tmp_path, model_path, "--requests", file, rows=rows) == 0
    assert FittedSteps.load(tmp_path / "fit.yaml").path == RequestPath(0.004, 0.003)
    assert "6 requests" in capsys.readouterr().out


def test_only_requests_that_are_alone_until_their_first_token_count():
    a, b = SentRequest(0.0, (1.0, 2.0), 2.1), SentRequest(3.0, (4.0,), 4.1)
    during_first = SentRequest(0.5, (1.5,), 1.6)
    during_second_token = SentRequest(1.5, (2.5,), 2.6)
    assert alone([a, b]) == [a, b]
    assert alone([a, during_first, b]) == [b]
    assert alone([a, during_second_token, b]) == [a, b]


def test_too_few_lone_requests_and_another_runs_records_are_refused():
    requests, steps = exchange(4)
    sent = [SentRequest(500 + s, tuple(500 + t for t in tokens), 500 + tokens[-1]) for s, tokens in requests]
    with pytest.raises(InputError, match="4 of 4 requests were alone"):
        request_path(sent, steps, HOST)
    with pytest.raises(InputError, match="0 of 4"):
        request_path(sent, [], HOST)


@pytest.mark.parametrize("text", ["[", "{}", client_row(1.0, [2.0], zero_s=None)])
def test_client_records_that_cannot_be_used_are_refused_by_line(tmp_path, text):
    file = tmp_path / "requests.jsonl"
    file.write_text(text)
    with pytest.raises(InputError, match=r"requests\.jsonl: line 1: .* is no record of a request"):
        read_requests([file])
