"""The real SGLang server with a policy, over HTTP."""

import json
import os
import re
import subprocess
import sys
import urllib.request

import pytest

from bench.demo_model import build
from bench.live.server import Server
from roofline_policies.model.batch import BatchShape
from roofline_policies.model.decoder import Decoder
from roofline_policies.work import Precision
from tests import ROOT
from tests.sglang_patches.served.live_server import generate, prompts, roofline

pytestmark = pytest.mark.slow

LENGTHS = [5, 40, 300, 17, 120, 64, 9, 200, 33, 80, 150, 3]
OUTPUT_TOKENS = 24
CAP = 8
OWN = "tests.sglang_patches.own_policies"
KEY = "only-the-operator"
ENV = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": ""}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return build(tmp_path_factory.mktemp("model") / "tiny", preset="tiny")


@pytest.fixture(scope="module")
def token_ids():
    return prompts(LENGTHS, vocab_size=256, seed=1)


def server(model, folder, *arguments):
    common = ["--model-path", str(model), "--dtype", "float32", "--max-running-requests", str(CAP)]
    # Two servers stay for the whole module; one that polls would take a core from the others.
    common += ["--chunked-prefill-size", "128", "--max-total-tokens", "8192", "--random-seed", "0", "--sleep-on-idle"]
    return Server([*common, *arguments], folder / "server.log", env=ENV, start_timeout_s=400)


@pytest.fixture(scope="module")
def expected(model, token_ids, tmp_path_factory):
    """The tokens of a server without a policy."""
    with server(model, tmp_path_factory.mktemp("plain")) as plain:
        return generate(plain.base_url, token_ids, OUTPUT_TOKENS)


def post(running, path, body):
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    asked = urllib.request.Request(f"{running.base_url}{path}", data=json.dumps(body).encode(), headers=headers)
    with urllib.request.urlopen(asked, timeout=60) as response:
        return response.status


def adopted(running, policy):
    """Whether the server, its prefix cache empty, decides by another policy from now on."""
    return post(running, "/flush_cache", {}) == post(running, "/roofline/policy", {"policy": policy}) == 200


RIDGE = "policy=ridge slo.itl_s=0.0005 controller.dwell_s=0.05 log_interval_s=1"


@pytest.fixture(scope="module")
def adaptive(model, tmp_path_factory):
    """A server whose ITL target nothing can meet, so that the ridge rule has to act."""
    folder = tmp_path_factory.mktemp("adaptive")
    arguments = ["--policy", "adaptive", "--policy-set"]
    with server(model, folder, *arguments, RIDGE) as running:
        yield running


def test_a_knob_moves_with_its_reason_and_the_tokens_stay_the_same(adaptive, token_ids, expected):
    assert generate(adaptive.base_url, token_ids, OUTPUT_TOKENS) == expected
    page = roofline(adaptive.base_url)
    assert page["policy"]["state"] == "active"
    moved = [change for change in page["changes"] if change["knob"] == "max_running_requests"]
    assert moved
    assert moved[0]["old"] == CAP
    assert moved[0]["new"] < CAP
    reason = r"a decode step of \d requests takes \d+ ms, over the ITL target of 0 ms"
    assert re.fullmatch(reason, moved[0]["reason"])
    assert moved[0]["policy"] == "RidgeBatchSize"
    assert page["knobs"]["max_running_requests"] < CAP
    low, high = page["bounds"]["max_running_requests"]
    assert (low, high) == (1, CAP)
    line = r"Roofline\. \d+ running, \d+ waiting, KV \d+% full: .*max_running_requests 8 -> \d .*RidgeBatchSize: "
    assert re.search(line, "\n".join(adaptive.log_tail(10_000)))


@pytest.fixture(scope="module")
def predicting(model, tmp_path_factory):
    """A server with the default policy; the tests behind the first have it adopt other ones."""
    arguments = ["--policy", "adaptive", "--policy-set", "slo.ttft_s=30 slo.itl_s=0.05 controller.dwell_s=0.05"]
    arguments += ["--policy-packages", OWN, "--admin-api-key", KEY]
    with server(model, tmp_path_factory.mktemp("predicting"), *arguments) as running:
        yield running


def test_the_default_policy_predicts_and_the_tokens_stay_the_same(predicting, token_ids, expected):
    """Where no kernel of the device was measured, the roofline predicts and the steps that ran correct it."""
    assert generate(predicting.base_url, token_ids, OUTPUT_TOKENS) == expected
    page = roofline(predicting.base_url)
    assert page["policy"]["state"] == "active"
    assert page["predictor"] == "RooflineSteps"
    assert page["lateness"]["per_gap"]["judged"] > OUTPUT_TOKENS
    assert page["lateness"]["mean"]["says"] == "nothing measured yet"
    learned = page["correction"]["decode"]
    assert learned["scale"] + learned["add_s"] > 0
    assert page["knobs"]["deadline_order"] is True
    ordered = [change for change in page["changes"] if change["knob"] == "deadline_order"]
    assert [(change["old"], change["new"], change["policy"]) for change in ordered] == [(False, True, "SloGuard")]
    chosen = [change for change in page["changes"] if change["knob"] in ("prefill_chunk_tokens", "mixed_chunk")]
    assert {change["policy"] for change in chosen} <= {"PrefillDeferral", "controller"}
    assert " running, " in page["last_change"]


def test_work_is_accounted_for_to_the_last_flop(adaptive, model):
    """Whatever the batching, chunking and deferral, the sum over iterations is the closed form of the requests."""
    shape = Decoder.from_directory(model, weight_precision=Precision.FP32)
    token_ids = prompts([31, 7, 260, 90], vocab_size=256, seed=2)
    token_ids = [[200 + i, *ids] for i, ids in enumerate(token_ids)]
    before = roofline(adaptive.base_url)["totals"]
    generate(adaptive.base_url, token_ids, OUTPUT_TOKENS)
    after = roofline(adaptive.base_url)["totals"]

    def spent(phase, key):
        return after[phase][key] - before[phase][key]

    lengths = [len(ids) for ids in token_ids]
    assert spent("mixed", "new_tokens") == 0
    assert spent("prefill", "new_tokens") == sum(lengths)
    assert spent("decode", "new_tokens") == len(lengths) * (OUTPUT_TOKENS - 1)
    decode = BatchShape.of(decode_contexts=[n + i for n in lengths for i in range(1, OUTPUT_TOKENS)])
    assert spent("decode", "issued_flops") == shape.work(decode).issued.total
    # Causal pairs do not depend on where a prompt is cut; the head runs once more for every further chunk.
    whole = shape.work(BatchShape.of(prefill=[(n, 0) for n in lengths])).useful.total
    head_flops = 2 * shape.hidden_size * shape.vocab_size
    extra_flops = spent("prefill", "useful_flops") - whole
    assert extra_flops % head_flops == 0
    assert 0 < extra_flops // head_flops <= sum(lengths) // 16


def test_the_page_tells_where_its_figures_come_from(adaptive):
    page = roofline(adaptive.base_url)
    assert page["provenance"] == {"work": ["modules"], "seconds": "host clock"}
    assert page["precision"] == "fp32"
    assert page["ceilings"]["source"].startswith("calibrated")
    assert page["last"]["decode"]["bound"] in ("compute", "memory", "overhead")
    assert page["policy_time_s"]["p50"] < page["policy_time_s"]["p99"]


def test_sglangs_own_client_completes(adaptive, model, tmp_path):
    port = adaptive.base_url.rpartition(":")[2]
    command = [sys.executable, "-m", "sglang.benchmark.serving", "--backend", "sglang", "--host", "127.0.0.1"]
    command += ["--port", port, "--model", str(model), "--tokenizer", str(model), "--dataset-name", "random-ids"]
    command += ["--num-prompts", "8", "--random-input-len", "40", "--random-output-len", "8", "--request-rate", "20"]
    command += ["--output-file", str(tmp_path / "out.jsonl"), "--random-range-ratio", "1", "--tokenize-prompt"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env={**os.environ, **ENV})
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert re.search(r"Successful requests:\s+8\b", ran.stdout), ran.stdout[-2000:]


def test_mixing_is_turned_on_and_off_while_requests_run(predicting, token_ids, expected):
    """Whichever steps the decode rows ride in, they produce the same tokens."""
    assert adopted(predicting, f"{OWN}:MixesNowAndThen")
    before = roofline(predicting.base_url)
    assert generate(predicting.base_url, token_ids, OUTPUT_TOKENS) == expected
    page = roofline(predicting.base_url)
    log = "\n".join(predicting.log_tail(10_000))
    assert page["policy"]["state"] == "active"
    assert page["changes_total"]["mixed_chunk"] - before["changes_total"].get("mixed_chunk", 0) > 1
    totals = before["totals"]
    rows = {phase: page["totals"][phase]["new_tokens"] - totals[phase]["new_tokens"] for phase in totals}
    assert rows["mixed"] > 0
    assert sum(rows.values()) == sum(LENGTHS) + len(LENGTHS) * (OUTPUT_TOKENS - 1)
    assert page["predictor"] == "RooflineSteps"  # no kernel of this processor was measured
    assert log.count("step times are not predicted: ") == 1


def test_the_server_outlives_its_policy(predicting, token_ids, expected):
    assert adopted(predicting, f"{OWN}:BreaksAfterAWhile")
    assert generate(predicting.base_url, token_ids, OUTPUT_TOKENS) == expected
    page = roofline(predicting.base_url)
    log = "\n".join(predicting.log_tail(10_000))
    assert page["policy"]["state"] == "fallback"
    assert page["policy"]["fallback_reason"] == "BreaksAfterAWhile raised RuntimeError: broken on purpose"
    launch = {"max_running_requests": CAP, "prefill_chunk_tokens": 128, "defer_prefill": False, "mixed_chunk": False}
    launch |= {"deadline_order": False, "relegate_for_s": 0, "defended_from_us": 0, "new_token_permille": 0}
    launch |= {"speculation_window": None, "quant_tier": None}
    assert page["knobs"] == launch
    assert "broken on purpose. The launch settings hold from now on." in log


def test_two_ranks_agree(model, token_ids, expected, tmp_path):
    """Ranks that formed different batches would wait for each other for ever, or produce different tokens."""
    with server(model, tmp_path, "--policy", f"{OWN}:SmallChunks", "--tp", "2") as running:
        produced = generate(running.base_url, token_ids, OUTPUT_TOKENS)
        page = roofline(running.base_url)
    assert produced == expected
    assert page["changes_total"]["prefill_chunk_tokens"] > 0
    assert page["changes_total"]["defer_prefill"] > 0
    assert page["changes_total"]["mixed_chunk"] > 0
