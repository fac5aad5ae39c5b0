"""The real SGLang server takes another policy while it serves. It has an admin key, which a reload needs."""

import json
import threading
import time
import urllib.error
import urllib.request

import pytest

from bench.demo_model import build
from bench.live.server import Server
from roofline_policies.errors import InputError
from roofline_policies.settings.loading import load
from tests import ROOT
from tests.sglang_patches.served.live_server import generate, prompts, roofline

pytestmark = pytest.mark.slow

CAP = 8
OUTPUT_TOKENS = 24
OWN = "tests.sglang_patches.own_policies"
ENV = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": ""}
KEY = "only-the-operator"
YAML = """
defaults: [hardware: auto, efficiency: auto, slo: interactive, policy: static, _self_]
slo: {ttft_s: 4.0, itl_s: 0.5}
bounds: {max_running_requests: null}
"""


@pytest.fixture(scope="module")
def policy_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("conf") / "mine.yaml"
    path.write_text(YAML)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return build(tmp_path_factory.mktemp("model") / "tiny", preset="tiny")


def server(model, log, *arguments):
    common = ["--model-path", str(model), "--dtype", "float32", "--max-running-requests", str(CAP)]
    common += ["--chunked-prefill-size", "128", "--max-total-tokens", "8192", "--random-seed", "0"]
    return Server([*common, *arguments], log, env=ENV, start_timeout_s=400)


@pytest.fixture(scope="module")
def served(model, policy_file):
    arguments = [
        "--policy",
        str(policy_file),
        "--policy-packages",
        OWN,
        "--admin-api-key",
        KEY,
    ]
    with server(model, policy_file.parent / "server.log", *arguments) as running:
        yield running


@pytest.fixture(scope="module")
def token_ids():
    return prompts([5, 40, 300, 17, 120, 64, 9, 200, 33, 80, 150, 3], vocab_size=256, seed=1)


@pytest.fixture(scope="module")
def expected(served, token_ids):
    return generate(served.base_url, token_ids, OUTPUT_TOKENS)


@pytest.fixture(autouse=True)
def as_launched(served, policy_file):
    yield
    policy_file.write_text(YAML)
    assert reload(served)[0] == 200


def reload(served, body=None, key=KEY):
    """Status and answer of POST /roofline/policy."""
    request = urllib.request.Request(f"{served.base_url}/roofline/policy", method="POST")
    if body is not None:
        request.data = json.dumps(body).encode()
    if key is not None:
        request.add_header("Authorization", f"Bearer {key}")
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as refusal:
        with refusal:
            return refusal.code, json.load(refusal)


def test_the_file_is_read_anew_and_its_policy_moves_a_knob(served, policy_file, token_ids, expected):
    before = roofline(served.base_url)
    assert before["knobs"]["max_running_requests"] == CAP
    policy_file.write_text(YAML.replace("0.5", "0.25").replace("requests: null", "requests: {high: 5}"))
    status, answer = reload(served)
    assert status == 200, answer
    (rank,) = answer["ranks"]
    assert rank["reloads"] == before["policy"]["reloads"] + 1
    assert rank["loaded_at"] > before["policy"]["loaded_at"]
    page = roofline(served.base_url)
    assert (page["slo"]["itl_s"], page["bounds"]["max_running_requests"]) == (0.25, [1, 5])
    assert page["knobs"]["max_running_requests"] == 5
    assert (page["ceilings"], page["device"]) == (before["ceilings"], before["device"])
    status, answer = reload(served, {"policy": f"{OWN}:SmallChunks"})
    assert status == 200, answer
    assert generate(served.base_url, token_ids, OUTPUT_TOKENS) == expected
    page = roofline(served.base_url)
    assert page["policy"]["type"] == "SmallChunks"
    for knob in ("max_running_requests", "prefill_chunk_tokens", "defer_prefill"):
        assert page["changes_total"][knob] > before["changes_total"][knob], knob
    assert page["totals"]["prefill"]["iterations"] > before["totals"]["prefill"]["iterations"] > 0
    assert f"policy mine from {policy_file} decides from now on (reload" in "\n".join(served.log_tail(10_000))


def test_requests_in_flight_go_on(served, token_ids, expected):
    produced = []
    thread = threading.Thread(target=lambda: produced.append(generate(served.base_url, token_ids, OUTPUT_TOKENS)))
    thread.start()
    reloads = 0
    while thread.is_alive():
        for body in ({"policy": f"{OWN}:SmallChunks"}, {"policy": "adaptive"}, {}):
            status, answer = reload(served, body)
            assert status == 200, answer
            reloads += 1
    thread.join()
    assert produced == [expected]
    assert reloads >= 3
    assert roofline(served.base_url)["policy"]["state"] == "active"


def test_a_policy_that_failed_is_replaced_without_a_restart(served, token_ids, expected):
    assert reload(served, {"policy": f"{OWN}:BreaksAfterAWhile"})[0] == 200
    generate(served.base_url, token_ids, 4 * OUTPUT_TOKENS)  # far more passes than it survives, at any batch size
    assert roofline(served.base_url)["policy"]["state"] == "fallback"
    status, answer = reload(served, {"policy": f"{OWN}:MixesNowAndThen"})
    assert status == 200, answer
    assert answer["ranks"][0]["revived_from"] == "BreaksAfterAWhile raised RuntimeError: broken on purpose"
    was = roofline(served.base_url)
    assert generate(served.base_url, token_ids, OUTPUT_TOKENS) == expected
    page = roofline(served.base_url)
    assert (page["policy"]["state"], page["policy"]["fallback_reason"]) == ("active", None)
    assert page["changes_total"]["mixed_chunk"] > was["changes_total"]["mixed_chunk"]
    assert page["iterations"] > was["iterations"]
    assert "had failed: BreaksAfterAWhile" in "\n".join(served.log_tail(10_000))


@pytest.mark.parametrize(
    "text",
    [
        YAML.replace("0.5", "0"), YAML + "nonsense: 1\n", YAML + "slo: [\n",
        YAML.replace("policy: static", "policy: nobodys"), YAML.replace("requests: null", "requests: {low: 9, high: 5}")
    ],
)  # fmt: skip
def test_a_file_that_the_launch_would_refuse_is_refused_with_its_words(served, policy_file, text):
    before = roofline(served.base_url)
    policy_file.write_text(text)
    with pytest.raises(InputError) as at_launch:
        load(str(policy_file))
    assert reload(served) == (400, {"error": {"message": str(at_launch.value)}})
    after = roofline(served.base_url)
    for part in ("policy", "slo", "bounds", "knobs"):
        assert after[part] == before[part]


def test_bounds_beyond_the_launch_are_refused_with_the_words_of_the_launch(served, policy_file):
    policy_file.write_text(YAML.replace("requests: null", f"requests: {{low: {CAP + 1}}}"))
    allowed = f"the server was launched with no such setting; allowed: 1 to {CAP}"
    message = f"{policy_file}: bounds.max_running_requests = '{CAP + 1} to None': {allowed}"
    assert reload(served) == (400, {"error": {"message": message}})
    # Where pages and steps come in, the scheduler alone knows what it was launched with.
    policy_file.write_text(YAML.replace("requests: null", "requests: null, prefill_chunk_tokens: {high: 63}"))
    status, answer = reload(served)
    assert status == 400
    assert (
        "bounds.prefill_chunk_tokens = 'None to 63': the server was launched with no such" in answer["error"]["message"]
    )
    assert roofline(served.base_url)["bounds"]["max_running_requests"] == [1, CAP]


def test_only_the_operator_reloads_and_only_from_where_he_said(served, policy_file):
    before = roofline(served.base_url)["policy"]
    assert reload(served, key=None)[0] == 401
    assert reload(served, key="another")[0] == 401
    for policy in ("os:abort", "/etc/passwd", f"{policy_file.parent}/../mine.yaml"):
        status, answer = reload(served, {"policy": policy})
        assert status == 403
        assert "a .yaml file in the folder of the one it was launched with" in answer["error"]["message"]
    assert roofline(served.base_url)["policy"] == before


def test_ranks_that_share_a_queue_adopt_in_the_same_iteration(model, token_ids, expected, tmp_path):
    """Ranks that disagreed would wait for each other for ever, or produce different tokens."""
    with server(model, tmp_path / "server.log", "--policy", "static", "--tp", "2",
                "--policy-packages", OWN) as running:  # fmt: skip
        produced = []
        thread = threading.Thread(target=lambda: produced.append(generate(running.base_url, token_ids, OUTPUT_TOKENS)))
        thread.start()
        time.sleep(0.2)
        status, answer = reload(running, {"policy": f"{OWN}:SmallChunks", "set": "slo.ttft_s=7"}, key=None)
        thread.join()
        again = generate(running.base_url, token_ids, OUTPUT_TOKENS)
        page = roofline(running.base_url)
    assert status == 200, answer
    assert [rank["reloads"] for rank in answer["ranks"]] == [1]
    assert (produced, again) == ([expected], expected)
    assert (page["policy"]["type"], page["slo"]["ttft_s"]) == ("SmallChunks", 7)
    assert page["changes_total"]["prefill_chunk_tokens"] > 0
