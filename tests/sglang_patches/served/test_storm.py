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
def served(tmp_path_factory):
    """A server that every test here but the storm takes, each under a policy of its own."""
    folder = tmp_path_factory.mktemp("demo")
    arguments = ["--model-path", str(build(folder / "model", preset="demo")), "--chunked-prefill-size", "256"]
    # It stays for the module; one that polls would take a core from the storm's.
    arguments += ["--enable-metrics", "--sleep-on-idle", "--policy", "adaptive", "--policy-packages", OWN]
    with Server(arguments, folder / "server.log", env=ENV, start_timeout_s=400) as running:
        yield running


def decide_by(running, policy, overrides=""):
    """Have a server decide by another policy, with nothing in its cache."""
    with urllib.request.urlopen(urllib.request.Request(f"{running.base_url}/flush_cache", method="POST"), timeout=60):
        pass
    post(running.base_url, "/roofline/policy", {"policy": policy, "set": overrides})


def part_way(base_url, after):
    """Wait until a step of the long prompt has run and the policy knows the next."""
    while roofline(base_url)["iterations"] < after + 2:
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("policy", "overrides"),
    [("adaptive", "slo.ttft_s=30"), (f"{OWN}:OrdersByDeadline", "slo.ttft_s=0.001")],
    ids=["shipped", "late from its first chunk on"],
)
def test_a_burst_beside_a_prompt_that_is_part_way_is_served(served, policy, overrides):
    decide_by(served, policy, overrides)
    answers = {}
    before = roofline(served.base_url)["iterations"]
    first = threading.Thread(target=lambda: answers.update(long=generate(served.base_url, [LONG], 4)))
    first.start()
    part_way(served.base_url, before)
    answers["burst"] = generate(served.base_url, BURST, 4)
    first.join()
    page = roofline(served.base_url)
    assert [len(ids) for ids in answers["burst"]] == [4] * len(BURST)
    assert [len(ids) for ids in answers["long"]] == [4]
    assert page["policy"]["state"] == "active"
    assert page["knobs"]["deadline_order"] is True


def test_a_storm_over_a_server_that_retracts_loses_nothing(tmp_path):
    tiny = build(tmp_path / "tiny", preset="tiny")
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


def test_reasons_that_are_no_text_break_no_page(served):
    decide_by(served, f"{OWN}:Unspeakable")
    generate(served.base_url, [[16 + n, *range(20, 320)] for n in range(6)], 8)
    page = every_page(served.base_url)
    assert page["policy"]["state"] == "active"
    reasons = {change["reason"] for change in page["changes"]}
    assert {"<Mute that cannot be shown>", "no\\ud800 room", "\\udcff", "None"} <= reasons
    assert any(reason.startswith("SchedulerView(") for reason in reasons)
    assert max(map(len, reasons)) == 1000
    assert all(reason.isprintable() for reason in reasons)

    post(served.base_url, "/roofline/policy", {"policy": f"{OWN}:FailsUnspeakably"})
    generate(served.base_url, [[16, *range(20, 60)]], 8)
    page = every_page(served.base_url)
    assert page["policy"]["state"] == "fallback"
    assert page["policy"]["fallback_reason"] == "FailsUnspeakably raised Mute: <Mute that cannot be shown>"
    post(served.base_url, "/roofline/policy", {"policy": "static"})
    generate(served.base_url, [[16, *range(20, 60)]], 8)
    assert every_page(served.base_url)["policy"]["revived_from"] == page["policy"]["fallback_reason"]
    assert "FailsUnspeakably raised Mute" in "\n".join(served.log_tail(10_000))
