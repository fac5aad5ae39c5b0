"""Finished iterations in a file: what a line says, when it is written, and files that fail."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest
from sglang.srt.plugins import load_plugins
from sglang.srt.server_args import prepare_server_args

from bench.demo_model import build
from bench.fit.step_records import WARM_UP, read_steps
from bench.live.server import Server
from roofline_policies.contract.view import ForwardMode, IterationRecord
from roofline_policies.errors import EXIT_BAD_INPUT, InputError
from roofline_policies.model.batch import BatchShape
from roofline_policies.model.decoder import Decoder
from roofline_policies.settings.loading import load
from roofline_policies.work import Precision
from sglang_patches.observe import recorder
from sglang_patches.observe.recorder import Recorder
from tests.sglang_patches.served.live_server import generate, prompts, roofline
from tests.sglang_patches.stand_ins import MODEL

SHAPE = BatchShape.of(decode_contexts=[5, 7, 30], padded_rows=1)


def record(iteration=1, *, step_s=0.03):
    return IterationRecord(
        iteration, ForwardMode.DECODE, SHAPE.requests, SHAPE.new_tokens, SHAPE.context_tokens, SHAPE.padded_rows, True,
        MODEL.work(SHAPE), 0.02, "host clock", 100.5, step_s, True, 0.028, 1.25,
    )  # fmt: skip


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_a_line_says_what_the_record_says():
    work = MODEL.work(SHAPE)
    assert json.loads(recorder.line(record(17), running=3, waiting=9)) == {
        "iteration": 17, "mode": "decode", "requests": 3, "new_tokens": 3, "context_tokens": 42, "padded_rows": 1,
        "cuda_graph": True, "issued_flops": work.issued.total, "useful_flops": work.useful.total,
        "requested_bytes": work.requested.total, "compulsory_bytes": work.compulsory.total,
        "provenance": ["closed_form"], "seconds": 0.02, "seconds_source": "host clock", "done_s": 100.5, "step_s": 0.03,
        "predicted_s": 0.028, "margin": 1.25, "window": None, "accepted": None, "after_idle": False,
        "running": 3, "waiting": 9,
    }  # fmt: skip


def test_a_step_after_a_pause_has_no_step_to_count_from():
    assert json.loads(recorder.line(record(step_s=0.02)))["after_idle"]


def test_lines_are_written_when_they_are_flushed_behind_what_is_there(tmp_path):
    path = tmp_path / "steps.jsonl"
    path.write_text('{"iteration": 0}\n')
    kept = Recorder(str(path))
    kept.flush()
    kept.add(record(1), running=3, waiting=0)
    kept.add(record(2), running=3, waiting=0)
    assert len(lines(path)) == 1
    kept.flush()
    kept.flush()
    assert [line["iteration"] for line in lines(path)] == [0, 1, 2]


def test_memory_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(recorder, "BUFFERED_LINES", 4)
    kept = Recorder(str(tmp_path / "steps.jsonl"))
    for iteration in range(6):
        kept.add(record(iteration), running=3, waiting=0)
    assert len(lines(tmp_path / "steps.jsonl")) == 4


@pytest.mark.parametrize("path", ["/dev/full", "nowhere/steps.jsonl"])
def test_a_file_that_fails_is_logged_once_and_recording_ends(path, caplog):
    kept = Recorder(path)
    with caplog.at_level(logging.ERROR):
        for iteration in range(3):
            kept.add(record(iteration), running=3, waiting=0)
            kept.flush()
    (message,) = caplog.messages
    assert path in message
    assert "cannot be written" in message
    assert not kept.recording


def test_each_data_parallel_rank_has_a_file_of_its_own():
    names = [recorder.of_rank("out/steps.jsonl", rank) for rank in range(3)]
    assert names == ["out/steps.jsonl", "out/steps.dp1.jsonl", "out/steps.dp2.jsonl"]


def test_a_check_creates_the_file_and_leaves_what_is_in_it(tmp_path):
    path = tmp_path / "steps.jsonl"
    recorder.check(str(path), where="a test")
    assert path.read_text() == ""
    path.write_text("kept\n")
    recorder.check(str(path), where="a test")
    assert path.read_text() == "kept\n"


@pytest.mark.parametrize("name", ["", "nowhere/steps.jsonl", "a\0b"])
def test_a_file_that_cannot_be_written_is_refused(tmp_path, name):
    with pytest.raises(InputError) as refused:
        recorder.check(str(tmp_path / name), where="mine.yaml")
    assert (refused.value.where, refused.value.key) == ("mine.yaml", "record")
    assert refused.value.value == str(tmp_path / name)
    assert "null" in refused.value.allowed


def test_the_configuration_names_the_file():
    assert load("adaptive").record is None
    assert load("static", overrides=["record=out/steps.jsonl"]).record == "out/steps.jsonl"


@pytest.mark.parametrize("value", ["''", "[1]", "{a: 1}"])
def test_what_is_no_path_is_refused(value):
    with pytest.raises(InputError) as refused:
        load("static", overrides=[f"record={value}"])
    assert (refused.value.where, refused.value.key) == ("static", "record")


# In a server


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return build(tmp_path_factory.mktemp("model") / "tiny", preset="tiny")


@pytest.mark.parametrize(("path", "said"), [("nowhere/steps.jsonl", "No such file"), (".", "Is a directory")])
def test_a_launch_with_a_file_that_cannot_be_written_ends_at_once(capsys, model, tmp_path, monkeypatch, path, said):
    monkeypatch.chdir(tmp_path)
    load_plugins()
    with pytest.raises(SystemExit) as raised:
        prepare_server_args(["--model-path", str(model), "--policy", "static", "--policy-set", f"record={path}"])
    assert raised.value.code == EXIT_BAD_INPUT
    assert "SGLANG_ROOFLINE_ACTIVE" not in os.environ
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    for part in ("static: record = ", repr(path), said, "allowed: path of a file"):
        assert part in line


@pytest.mark.slow
def test_a_server_records_every_iteration_to_the_last_flop(model, tmp_path):
    path = tmp_path / "steps.jsonl"
    arguments = ["--model-path", str(model), "--dtype", "float32", "--max-running-requests", "8", "--random-seed", "0"]
    arguments += ["--chunked-prefill-size", "128", "--max-total-tokens", "8192", "--policy", "static"]
    arguments += ["--policy-set", f"record={path} log_interval_s=0.5"]
    env = {"PYTHONDONTWRITEBYTECODE": ""}
    with Server(arguments, tmp_path / "server.log", env=env, start_timeout_s=400) as server:
        generate(server.base_url, prompts([5, 300, 40, 17, 120], vocab_size=256, seed=1), 24)
        page = roofline(server.base_url)
    rows = lines(path)
    assert len(rows) == page["iterations"]
    assert [row["iteration"] for row in rows] == sorted(row["iteration"] for row in rows)
    for mode in ("prefill", "decode"):
        for key in ("new_tokens", "issued_flops", "useful_flops"):
            assert sum(row[key] for row in rows if row["mode"] == mode) == page["totals"][mode][key]
    assert all(row["step_s"] >= row["seconds"] > 0 for row in rows)
    assert all(0 < row["predicted_s"] < 60 and row["margin"] > 1 for row in rows)
    assert rows[0]["after_idle"]
    assert not all(row["after_idle"] for row in rows)
    assert max(row["running"] for row in rows) > 1

    rank = Decoder.from_directory(model, weight_precision=Precision.FP32).shard(1).rank_model
    steps = read_steps([path], rank)
    assert len(steps) == len(rows) - WARM_UP
    decodes = [step.shape for step in steps if step.mode is ForwardMode.DECODE]
    assert decodes
    assert all(shape.pairs == shape.context_tokens and shape.new_tokens == shape.requests for shape in decodes)
    # The second chunk of the long prompt stands behind the first.
    assert any(step.shape.context_tokens > step.shape.new_tokens for step in steps if step.mode is ForwardMode.PREFILL)
