"""What a real server says of itself once nobody asks it for anything: its page and its series are of that moment."""

import json
import re
import threading
import time
import urllib.request

import pytest

from bench.demo_model import build
from bench.live.server import Server
from tests import ROOT
from tests.sglang_patches.served.live_server import generate, get, prompts

pytestmark = pytest.mark.slow

ENV = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": ""}
WITHIN_S = 1.0
PHASES = ("prefill", "decode", "mixed")
NOW = ("roofline_compute_ratio", "roofline_memory_bandwidth_ratio", "roofline_intensity_flops_per_byte")
LAYOUTS = {"sleeps": ["--sleep-on-idle"], "two_ranks": ["--tp", "2"]}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return build(tmp_path_factory.mktemp("model") / "tiny", preset="tiny")


@pytest.fixture(scope="module", params=LAYOUTS)
def served(model, tmp_path_factory, request):
    arguments = ["--model-path", str(model), "--dtype", "float32", "--max-running-requests", "8", "--random-seed", "0"]
    arguments += ["--chunked-prefill-size", "128", "--max-total-tokens", "8192", "--enable-metrics"]
    arguments += ["--policy", "adaptive", *LAYOUTS[request.param]]
    with Server(arguments, tmp_path_factory.mktemp("log") / "server.log", env=ENV, start_timeout_s=900) as running:
        yield running


def ranks(server):
    return json.loads(get(server.base_url, "/roofline"))["ranks"]


def series(server):
    """Our series: value by name and labels."""
    found = re.findall(r"^(roofline_\w+)\{(.*)\} (\S+)$", get(server.base_url, "/metrics"), re.MULTILINE)
    return {(name, labels): float(value) for name, labels, value in found}


def total(values, name):
    return sum(value for (found, _), value in values.items() if found == name)


def busy_load(server):
    return sum(rank["num_running_reqs"] for rank in json.loads(get(server.base_url, "/v1/loads?include=all"))["loads"])


def post(server, path, **body):
    data, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
    asked = urllib.request.Request(f"{server.base_url}{path}", data=data, headers=headers)
    with urllib.request.urlopen(asked, timeout=60) as response:
        assert response.status == 200


def test_series_are_there_before_anybody_asks_for_anything(served):
    values = series(served)
    for name in (*NOW, "roofline_issued_flops_total", "roofline_iterations_total"):
        assert len([labels for found, labels in values if found == name]) == 3, name
    assert total(values, "roofline_policy_fallback") == 0
    assert total(values, "roofline_compute_ceiling_flops_per_second") > 0
    assert {re.search(r'dp_rank="(\d)"', labels)[1] for _, labels in values} == {"0"}


def test_after_traffic_everything_that_is_of_now_is_zero_or_absent_within_a_second(served):
    before = series(served)
    seen = []
    watch = threading.Event()

    def look():
        while not watch.wait(0.1):
            seen.extend(ranks(served))

    watching = threading.Thread(target=look)
    watching.start()
    try:
        generate(served.base_url, prompts([40, 300, 64, 90], vocab_size=256, seed=1), 200)
        ended_s = time.monotonic()
    finally:
        watch.set()
        watching.join()
    assert max(page["running"] for page in seen) >= 1
    assert max(page["kv_use"] for page in seen) > 0
    assert any(page["decode"] for page in seen)
    time.sleep(max(0.0, ended_s + WITHIN_S - time.monotonic()))
    values, pages = series(served), ranks(served)
    assert busy_load(served) == 0
    for name in NOW:
        assert total(values, name) == 0, name
    assert total(values, "roofline_iterations_total") - total(before, "roofline_iterations_total") >= 200
    assert total(values, "roofline_issued_flops_total") > total(before, "roofline_issued_flops_total")
    assert total(values, "roofline_loop_seconds_count") > total(before, "roofline_loop_seconds_count")
    for page in pages:
        assert (page["running"], page["waiting"], page["kv_use"], page["decode_context_tokens"]) == (0, 0, 0, 0)
        assert (page["slack_s"], page["itl_s"], *(page[phase] for phase in PHASES)) == (None,) * 5
    worked = [page for page in pages if page["iterations"]]
    assert worked
    for page in worked:
        assert page["last_iteration_age_s"] >= WITHIN_S - 0.1
        assert page["last"]["decode"]["age_s"] >= page["last_iteration_age_s"]
    assert sum(page["totals"]["decode"]["new_tokens"] for page in pages) >= 4 * 199


def test_a_paused_engine_shows_what_it_holds_and_nothing_that_moves(served):
    """Paused where it stands: its requests are there, as SGLang's own page says, and nothing runs."""
    asked = threading.Thread(target=generate, args=(served.base_url, prompts([50], vocab_size=256, seed=2), 400))
    asked.start()
    while not any(page["decode"] for page in ranks(served)):
        time.sleep(0.02)
    post(served, "/pause_generation", mode="in_place")
    time.sleep(2 * WITHIN_S)
    held, pages, values = busy_load(served), ranks(served), series(served)
    post(served, "/continue_generation")
    asked.join()
    assert sum(page["running"] for page in pages) + sum(page["waiting"] for page in pages) >= held
    assert all(page[phase] is None for page in pages for phase in PHASES)
    for name in NOW:
        assert total(values, name) == 0, name
    time.sleep(WITHIN_S)
    assert [page["running"] + page["waiting"] for page in ranks(served)] == [0]
