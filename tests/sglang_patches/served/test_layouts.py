"""Real servers on every layout that a CPU runs, with a policy that moves every knob at random."""

import json
import urllib.request

import pytest

from bench.demo_model import build
from bench.live.server import Server
from tests import ROOT
from tests.sglang_patches.served.live_server import generate, get, prompts

pytestmark = pytest.mark.slow

LENGTHS = [5, 40, 300, 17, 120, 64, 9, 200, 33, 80, 150, 3]
OUTPUT_TOKENS = 16
STORM = ["--policy", "roofline_policies.testing:Storm"]
ENV = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": ""}

LAYOUTS = {
    "pipeline": (["--pp-size", "2"], 1),
    "replicas": (["--dp-size", "2"], 2),
    "attention groups": (["--tp-size", "2", "--attn-dp-size", "2"], 2),
}
"""Arguments of a launch, and how many of its schedulers decide."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return build(tmp_path_factory.mktemp("model") / "tiny", family="qwen3", preset="tiny")


@pytest.fixture(scope="module")
def token_ids():
    return prompts(LENGTHS, vocab_size=256, seed=1)


def server(model, folder, *arguments):
    common = ["--model-path", str(model), "--dtype", "float32", "--max-running-requests", "16"]
    common += ["--chunked-prefill-size", "128", "--max-total-tokens", "8192", "--random-seed", "0"]
    return Server([*common, *arguments], folder / "server.log", env=ENV, start_timeout_s=400)


def ranks(running):
    return json.loads(get(running.base_url, "/roofline"))["ranks"]


@pytest.fixture(scope="module")
def expected(model, token_ids, tmp_path_factory):
    """The tokens of one rank without a policy."""
    with server(model, tmp_path_factory.mktemp("plain")) as plain:
        return generate(plain.base_url, token_ids, OUTPUT_TOKENS)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_group_of_ranks_decides_for_its_own_requests_and_the_tokens_stay_the_same(
    model, token_ids, expected, tmp_path, layout
):
    """Ranks that formed different batches would wait for each other for ever, or produce other tokens."""
    arguments, deciding = LAYOUTS[layout]
    with server(model, tmp_path, *STORM, *arguments) as running:
        produced = generate(running.base_url, token_ids, OUTPUT_TOKENS)
        pages = ranks(running)
    assert produced == expected
    assert len(pages) == deciding
    for page in pages:
        assert page["policy"]["state"] == "active"
        assert page["iterations"] > 0
        assert set(page["immovable"]) == {"speculation_window", "quant_tier"}
        assert min(page["changes_total"][knob] for knob in ("max_running_requests", "defer_prefill", "mixed_chunk")) > 0
        assert page["binds"] in page["capacity"]
        assert page["waits_for"] is None
        assert (
            ("estimated" in page["provenance"]["work"]) == bool(page["not_counted"]) == (layout == "attention groups")
        )
    computed = sum(page["totals"][mode]["new_tokens"] for page in pages for mode in ("prefill", "decode", "mixed"))
    # Each token but the last of an answer is computed once; so is a health check's, and a row in flight at an end.
    assert computed >= sum(LENGTHS) + len(LENGTHS) * (OUTPUT_TOKENS - 1)


def embedding(base_url, ids):
    asked = urllib.request.Request(
        f"{base_url}/encode", json.dumps({"input_ids": ids}).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(asked, timeout=60) as response:
        return json.loads(response.read())["embedding"]


def test_an_embedding_model_is_served_and_what_decodes_is_idle(model, token_ids, tmp_path):
    with server(model, tmp_path, "--is-embedding") as plain:
        expected = [embedding(plain.base_url, ids) for ids in token_ids]
    with server(model, tmp_path, "--is-embedding", *STORM) as running:
        produced = [embedding(running.base_url, ids) for ids in token_ids]
        (page,) = ranks(running)
    assert produced == [pytest.approx(one, abs=1e-5) for one in expected]
    assert page["policy"]["state"] == "active"
    assert page["totals"]["prefill"]["new_tokens"] >= sum(LENGTHS)
    assert page["totals"]["decode"]["iterations"] == 0
    assert page["immovable"]["max_running_requests"] == "nothing decodes (--is-embedding, or a reward model)"
    assert page["changes_total"]["prefill_chunk_tokens"] > 0
