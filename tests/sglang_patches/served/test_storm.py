"""The real SGLang server under policies that made it end, or its pages fail."""

import json
import threading
import time
import urllib.request

import pytest

from bench.demo_model import build
from bench.live.server import Server
from bench.storm import live
from tests import ROOT
from tests.sglang_patches.served.live_server import generate, get, roofline

pytestmark = pytest.mark.slow

OWN = "tests.sglang_patches.own_policies"
ENV = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": ""}
LONG = [100 + 7 * n % 3000 for n in range(7900)]
SHARED = [200 + n for n in range(60)]
BURST = [*([*SHARED, 3000 + n] for n in range(12)), [50 + 11 * n % 3000 for n in range(1000)]]
"""Twelve prompts with a prefix in common that nobody had before, and a long one behind them."""


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return build(tmp_path_factory.mktemp("model") / "demo", preset="demo")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return build(tmp_path_factory.mktemp("model") / "tiny", preset="tiny")


def part_way(base_url, after):
    """Wait until a step of the long prompt has run and the policy knows the next."""
    while roofline(base_url)["iterations"] < after + 2:
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("policy", "overrides"),
    [("adaptive", "slo.ttft_s=30"), (f"{OWN}:OrdersByDeadline", "slo.ttft_s=0.001")],
    ids=["shipped", "late from its first chunk on"],
)
def test_a_burst_beside_a_prompt_that_is_part_way_is_served(demo, tmp_path, policy, overrides):
    arguments = ["--model-path", str(demo), "--chunked-prefill-size", "256", "--policy", policy]
    arguments += ["--policy-set", overrides]
    with Server(arguments, tmp_path / "server.log", env=ENV, start_timeout_s=400) as running:
        answers = {}
        before = roofline(running.base_url)["iterations"]
        first = threading.Thread(target=lambda: answers.update(long=generate(running.base_url, [LONG], 4)))
        first.start()
        part_way(running.base_url, before)
        answers["burst"] = generate(running.base_url, BURST, 4)
        first.join()
        page = roofline(running.base_url)
    assert [len(ids) for ids in answers["burst"]] == [4] * len(BURST)
    assert [len(ids) for ids in answers["long"]] == [4]
    assert page["policy"]["state"] == "active"
    assert page["knobs"]["deadline_order"] is True


def test_a_storm_over_a_server_that_retracts_loses_nothing(tiny):
    arguments = ("--chunked-prefill-size", "128", "--max-running-requests", "12", "--max-total-tokens", "8192")
    launched, result = live.run(tiny, arguments, policy=None, seconds=15, seed=1, retract_every=8)
    assert "SGLANG_TEST_RETRACT_INTERVAL=8" in launched
    assert (result.problem, result.lost) == (None, 0)
    assert result.served > 20
    assert result.retractions > 0
    assert result.changes > 100


def post(base_url, path, body):
    request = urllib.request.Request(f"{base_url}{path}", json.dumps(body).encode(), method="POST")
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.loads(response.read().decode("utf-8"))


def every_page(base_url):
    """The status of the one rank; SGLang's own page and the metrics answer, too."""
    (internal,) = json.loads(get(base_url, "/server_info"))["internal_states"]
    assert "# HELP" in get(base_url, "/metrics")
    page = roofline(base_url)
    assert internal["roofline"]["policy"]["state"] == page["policy"]["state"]
    json.dumps(page, ensure_ascii=False, allow_nan=False).encode("utf-8")
    return page


def test_reasons_that_are_no_text_break_no_page(tiny, tmp_path):
    arguments = ["--model-path", str(tiny), "--dtype", "float32", "--chunked-prefill-size", "128", "--enable-metrics"]
    arguments += [
        "--policy",
        f"{OWN}:Unspeakable",
        "--policy-packages",
        OWN,
    ]
    with Server(arguments, tmp_path / "server.log", env=ENV, start_timeout_s=400) as running:
        generate(running.base_url, [[16 + n, *range(20, 320)] for n in range(6)], 8)
        page = every_page(running.base_url)
        assert page["policy"]["state"] == "active"
        reasons = {change["reason"] for change in page["changes"]}
        assert {"<Mute that cannot be shown>", "no\\ud800 room", "\\udcff", "None"} <= reasons
        assert any(reason.startswith("SchedulerView(") for reason in reasons)
        assert max(map(len, reasons)) == 1000
        assert all(reason.isprintable() for reason in reasons)

        post(running.base_url, "/roofline/policy", {"policy": f"{OWN}:FailsUnspeakably"})
        generate(running.base_url, [[16, *range(20, 60)]], 8)
        page = every_page(running.base_url)
        assert page["policy"]["state"] == "fallback"
        assert page["policy"]["fallback_reason"] == "FailsUnspeakably raised Mute: <Mute that cannot be shown>"
        post(running.base_url, "/roofline/policy", {"policy": "static"})
        generate(running.base_url, [[16, *range(20, 60)]], 8)
        assert every_page(running.base_url)["policy"]["revived_from"] == page["policy"]["fallback_reason"]
        assert "FailsUnspeakably raised Mute" in "\n".join(running.log_tail(10_000))
