"""Bad input at launch: one message, exit code 2, and nothing half applied."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from sglang.srt.plugins import load_plugins
from sglang.srt.server_args import prepare_server_args

from bench.demo_model import build
from bench.live.server import Server
from roofline_policies.errors import EXIT_BAD_INPUT
from sglang_patches.hooks import SETTINGS
from tests.sglang_patches.served.live_server import roofline

LAUNCH = [sys.executable, "-m", "sglang.launch_server"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(build(tmp_path_factory.mktemp("model") / "tiny", preset="tiny"))


@pytest.fixture(autouse=True)
def plugin():
    load_plugins()


def changed(model, folder, **changes):
    """The model's folder with other keys in its configuration; None takes a key out."""
    copy = shutil.copytree(model, folder / "changed")
    config = {**json.loads((copy / "config.json").read_text()), **changes}
    (copy / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return str(copy)


def refused(capsys, model, *arguments):
    with pytest.raises(SystemExit) as raised:
        prepare_server_args(["--model-path", model, *arguments])
    assert raised.value.code == EXIT_BAD_INPUT
    assert "SGLANG_ROOFLINE_ACTIVE" not in os.environ
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def test_the_server_starts_no_policy_by_itself(model):
    assert not hasattr(prepare_server_args(["--model-path", model]), SETTINGS)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--policy", "nope"], ["--policy: 'nope'", "adaptive, static"]),
        (["--policy", "nowhere.yaml"], ["nowhere.yaml", "No such file"]),
        (["--policy", "adaptive", "--policy-set", "slo.itl_s=0"], ["slo.itl_s = 0", "greater than 0"]),
        (["--policy", "adaptive", "--policy-set", "slo.itl_s='"], ["--policy-set", "No closing quotation"]),
        (["--policy", "adaptive", "--policy-set", "hardware=h900"], ["hardware = 'h900'", "no such choice", "h200"]),
        (["--policy", "adaptive", "--chunked-prefill-size", "-1", "--policy-set",
          "bounds.prefill_chunk_tokens={low: 64} hardware=h200"],
         ["bounds.prefill_chunk_tokens", "cannot move that knob", "--chunked-prefill-size -1"]),
        (["--policy", "adaptive", "--max-running-requests", "8", "--policy-set",
          "bounds.max_running_requests={low: 16} hardware=h200"],
         ["bounds.max_running_requests", "launched with no such setting", "1 to 8"]),
        (["--policy", "adaptive", "--device", "xpu"], ["hardware.device = 'xpu'", "unknown device", "calibrate"]),
    ],
)  # fmt: skip
def test_a_mistake_ends_the_launch(capsys, model, arguments, parts):
    if "bounds" in str(arguments):
        arguments = [a.replace("={low: ", "='{low: ").replace("} ", "}' ") for a in arguments]
    line = refused(capsys, model, *arguments)
    for part in parts:
        assert part in line, line


@pytest.mark.parametrize(
    ("changes", "arguments"),
    [
        ({}, ["--quantization", "fp8"]),
        ({}, ["--quantization", "w8a8_int8"]),
        ({}, ["--kv-cache-dtype", "fp8_e4m3"]),
        ({}, ["--tp-size", "2"]),
        ({}, ["--json-model-override-args", '{"num_experts": 8}']),
        ({"quantization_config": {"quant_method": "fp8", "activation_scheme": "dynamic"}}, []),
        ({"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "num_experts": 4}, []),
    ],
)  # fmt: skip
def test_no_model_and_no_precision_is_refused_for_the_sake_of_a_policy(
    model, tmp_path, monkeypatch, changes, arguments
):
    monkeypatch.setenv("SGLANG_ROOFLINE_ACTIVE", "")
    launch = ["--policy", "static", "--policy-set", "hardware=l4", *arguments]
    assert hasattr(prepare_server_args(["--model-path", changed(model, tmp_path, **changes), *launch]), SETTINGS)


@pytest.mark.parametrize(
    ("dtype", "arguments"),
    [
        (None, []), (None, ["--dtype", "bfloat16"]), ("float32", []), ("float64", ["--dtype", "bfloat16"]),
        ("bfloat16", ["--dtype", "half"]),
    ],
)  # fmt: skip
def test_a_dtype_that_the_configuration_lacks_or_has_otherwise_is_sglangs_business(
    model, tmp_path, monkeypatch, dtype, arguments
):
    monkeypatch.setenv("SGLANG_ROOFLINE_ACTIVE", "")
    path = changed(model, tmp_path, torch_dtype=dtype, dtype=None)
    launch = ["--model-path", path, "--policy", "static", "--policy-set", "hardware=h200", *arguments]
    assert hasattr(prepare_server_args(launch), SETTINGS)


@pytest.mark.slow
def test_a_server_whose_configuration_has_no_dtype_serves(model, tmp_path):
    path = changed(model, tmp_path, torch_dtype=None, dtype=None)
    command = ["--model-path", path, "--policy", "static", "--policy-set",
               "bounds.max_running_requests={low:100000,high:200000}",
               "--max-total-tokens", "4096"]  # fmt: skip
    with Server(command, tmp_path / "log") as server:
        page = roofline(server.base_url)
    log = (tmp_path / "log").read_text()
    assert page["precision"] == "fp16"
    assert "the server was launched with no such setting" in log
    assert "The knob moves within the launch range" in log


def test_an_untested_sglang_is_refused_and_the_flag_overrides_it(capsys, model, monkeypatch):
    monkeypatch.setattr("sglang_patches.needs.sglang_version.version", lambda name: "0.9.9")
    line = refused(capsys, model, "--policy", "adaptive")
    assert "0.9.9" in line
    assert "--policy-allow-untested" in line


def test_a_good_policy_rides_along(model, monkeypatch):
    monkeypatch.setenv("SGLANG_ROOFLINE_ACTIVE", "")
    server_args = prepare_server_args(["--model-path", model, "--policy", "static", "--policy-set", "hardware=l4"])
    ceilings = getattr(server_args, SETTINGS).ceilings
    assert ceilings.device == "NVIDIA L4"
    (sentence,) = ceilings.stand_ins
    assert sentence.startswith("the ceilings of NVIDIA L4 stand in for those of ")
    assert os.environ["SGLANG_ROOFLINE_ACTIVE"] == "1"


@pytest.mark.slow
def test_the_command_itself_exits_with_2_and_no_traceback(model):
    command = [*LAUNCH, "--model-path", model, "--policy", "adaptive", "--policy-set", "slo.itl_s=0"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert ran.returncode == EXIT_BAD_INPUT
    assert "error: adaptive: slo.itl_s = 0" in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.slow
def test_help_names_the_options():
    ran = subprocess.run([*LAUNCH, "--help"], capture_output=True, text=True, check=True, timeout=300)
    for option in ("--policy POLICY", "--policy-set", "--policy-packages", "--policy-allow-untested"):
        assert option in ran.stdout


def test_yaml_config_of_sglang_sets_the_policy_too(capsys, model, tmp_path: Path):
    config = tmp_path / "server.yaml"
    config.write_text("policy: nope\n")
    with pytest.raises(SystemExit) as raised:
        prepare_server_args(["--model-path", model, "--config", str(config)])
    assert raised.value.code == EXIT_BAD_INPUT
    assert "'nope'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            "record=/a=b",
            "error: adaptive: 'record=/a=b': cannot be read at '=' (character 10); allowed: quotes around ",
        ),
        (
            "slo.itl=0.03",
            "error: adaptive: slo.itl = 0.03: unknown key; did you mean slo.itl_s?; allowed: slo.ttft_s, ",
        ),
        ("record='/a b", 'error: --policy-set: "record=\'/a b": No closing quotation'),
        ("hardware=h999", "error: adaptive: hardware = 'h999': no such choice; allowed: a10, a100_pcie, a100_sxm, "),
    ],
)
def test_mistakes_in_overrides_are_put_into_words(model, capsys, overrides, message):
    line = refused(capsys, model, "--policy", "adaptive", "--policy-set", overrides)
    assert line[: len(message)] == message
