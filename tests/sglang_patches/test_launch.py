"""Bad input at launch: one message, exit code 2, and nothing half applied."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sglang.srt.plugins import load_plugins
from sglang.srt.server_args import prepare_server_args

from bench.demo_model import build
from roofline_policies.errors import EXIT_BAD_INPUT
from sglang_patches.hooks import SETTINGS

LAUNCH = [sys.executable, "-m", "sglang.launch_server"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(build(tmp_path_factory.mktemp("model") / "tiny", preset="tiny"))


@pytest.fixture(autouse=True)
def plugin():
    load_plugins()


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
        (["--policy", "adaptive", "--policy-set", "hardware=h900"], ["hardware/h900", "h200"]),
        (["--policy", "adaptive", "--pp-size", "2"], ["pp_size = 2"]),
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


def test_a_model_whose_work_is_not_known_is_refused_by_name(capsys, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mamba2", "architectures": ["Mamba2ForCausalLM"]}))
    line = refused(capsys, str(tmp_path), "--policy", "adaptive")
    assert "mamba2" in line.lower()
    assert "LlamaForCausalLM" in line


def test_an_untested_sglang_is_refused_and_the_flag_overrides_it(capsys, model, monkeypatch):
    monkeypatch.setattr("sglang_patches.compat.version", lambda name: "0.9.9")
    line = refused(capsys, model, "--policy", "adaptive")
    assert "0.9.9" in line
    assert "--policy-allow-untested" in line


def test_a_good_policy_rides_along(model, monkeypatch):
    monkeypatch.setenv("SGLANG_ROOFLINE_ACTIVE", "")
    server_args = prepare_server_args(["--model-path", model, "--policy", "static", "--policy-set", "hardware=l4"])
    assert getattr(server_args, SETTINGS).ceilings.device == "NVIDIA L4"
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
