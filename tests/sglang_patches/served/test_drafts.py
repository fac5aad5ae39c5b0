"""Real servers whose number of drafts moves while they serve: greedy tokens stay those of a server without drafts."""

import urllib.request

import pytest

from bench.drafted_model import build_drafted
from roofline_policies.contract.decision import Knob
from tests.sglang_patches.drafts.speculating import ask, prompts, server, typed
from tests.sglang_patches.served.live_server import roofline

pytestmark = pytest.mark.slow

REQUESTS, OUTPUT_TOKENS = 24, 64
FEW_TOKENS = 400
"""Of the KV cache: some requests are retracted while the number of drafts moves."""

KNOB = Knob.SPECULATION_WINDOW.value


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return build_drafted(tmp_path_factory.mktemp("pair") / "tiny", preset="tiny")


@pytest.fixture(scope="module")
def asked():
    return prompts(REQUESTS, seed=2)


@pytest.fixture(scope="module")
def expected(pair, asked, tmp_path_factory):
    with server(tmp_path_factory.mktemp("plain"), "--model-path", str(pair / "target")) as plain:
        return [answer.token_ids for answer in ask(plain.base_url, asked, OUTPUT_TOKENS)]


@pytest.mark.parametrize("algorithm", ["standalone", "eagle", "eagle3", "ngram"])
def test_every_number_of_drafts_gives_the_tokens_that_none_gives(pair, asked, expected, tmp_path, algorithm):
    moves = ["--policy", "tests.sglang_patches.own_policies:DraftsByTurns", "--enable-metrics", "--policy-set",
             "hardware=h200 controller.dwell_s=0 controller.hysteresis=0 learned=null"]  # fmt: skip
    memory = ["--schedule-conservativeness", "0.1"]
    with server(tmp_path, *typed(pair, algorithm), *moves, *memory, tokens=FEW_TOKENS) as drafting:
        answers = ask(drafting.base_url, asked, OUTPUT_TOKENS)
        page = roofline(drafting.base_url)
        with urllib.request.urlopen(f"{drafting.base_url}/metrics", timeout=30) as response:
            series = response.read().decode()
    assert [answer.token_ids for answer in answers] == expected
    assert page["policy"]["state"] == "active"
    assert page["changes_total"][KNOB] > 3
    assert KNOB not in page["immovable"]
    assert page["bounds"][KNOB] == [0, 3]
    drafts = page["drafts"]
    assert (drafts["windows"], drafts["launched"]) == ([0, 1, 3], 3)
    assert set(drafts["steps_by_window"]) == {"0", "1", "3"}
    assert 0 < drafts["accepted"] < drafts["drafted"]
    assert len(drafts["acceptance"]) == 3
    assert f'roofline_knob{{dp_rank="0",knob="{KNOB}"' in series
    assert "roofline_drafts_accepted_total{" in series
    log = (tmp_path / "server.log").read_text()
    assert f"{KNOB} cannot be moved" not in log
