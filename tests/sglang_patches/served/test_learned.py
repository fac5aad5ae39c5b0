"""What one server learned of step times is where the next one of its kind starts."""

import json
import time

import pytest

from bench.demo_model import build
from bench.live.server import Server
from tests.sglang_patches.served.live_server import generate, prompts, roofline

pytestmark = pytest.mark.slow

WRITTEN_WITHIN_S = 60.0


def server(model, folder, *arguments):
    common = ["--model-path", str(model), "--dtype", "float32", "--max-running-requests", "8", "--random-seed", "0"]
    common += ["--chunked-prefill-size", "128", "--max-total-tokens", "8192", "--policy", "adaptive"]
    env = {"PYTHONDONTWRITEBYTECODE": ""}
    return Server([*common, *arguments], folder / "server.log", env=env, start_timeout_s=400)


def written(file):
    """What a server keeps, once it has written it."""
    ends_s = time.monotonic() + WRITTEN_WITHIN_S
    while not file.exists() and time.monotonic() < ends_s:
        time.sleep(0.2)
    return json.loads(file.read_text())


def test_the_next_server_starts_where_the_last_one_was(tmp_path):
    model, file = build(tmp_path / "tiny", preset="tiny"), tmp_path / "kept" / "steps.json"
    asked = prompts([5, 300, 40, 17, 120, 64], vocab_size=256, seed=1)
    with server(model, tmp_path, "--policy-set", f"learned={file}") as first:
        before = roofline(first.base_url)["correction"]
        generate(first.base_url, asked, 48)
        learned = roofline(first.base_url)["correction"]
        kept = written(file)
    assert sum(one["steps"] for one in before.values()) < learned["decode"]["steps"]
    assert kept["key"]["predictor"] == "roofline"
    assert kept["learned"]["decode"]["steps"][0] > 16
    with server(model, tmp_path, "--policy-set", f"learned={file}") as again:
        assert f"step times start from what was learned in {file}" in "\n".join(again.log_tail(10_000))
        start = roofline(again.base_url)["correction"]
    assert start["decode"]["steps"] >= 16
    assert start["decode"]["scale"] == pytest.approx(learned["decode"]["scale"], rel=0.5)
