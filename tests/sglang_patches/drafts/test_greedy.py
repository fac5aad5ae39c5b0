"""Greedy answers with drafts are those without, in fp32, while requests are retracted and aborted; drafts are real."""

import statistics

import pytest

from bench.drafted_model import build_drafted, is_recited
from tests.sglang_patches.drafts.speculating import ALGORITHMS, ask, prompts, server, typed

pytestmark = pytest.mark.slow

REQUESTS, LONGEST, OUTPUT_TOKENS = 40, 16, 80
ABORTED = frozenset(range(5, REQUESTS, 7))
# Less than the answers of eight requests need in the end, and more than they need at first: some are retracted.
FEW_TOKENS = 400
RECITED = is_recited(4096).tolist()


def recites(answer):
    return RECITED[answer.token_ids[0]]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return build_drafted(tmp_path_factory.mktemp("pair") / "tiny", preset="tiny")


@pytest.fixture(scope="module")
def asked():
    return prompts(REQUESTS, seed=1, longest=LONGEST)


@pytest.fixture(scope="module")
def expected(pair, asked, tmp_path_factory):
    with server(tmp_path_factory.mktemp("plain"), "--model-path", str(pair / "target")) as plain:
        return [answer.token_ids for answer in ask(plain.base_url, asked, OUTPUT_TOKENS)]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_tokens_stay_the_same_and_what_is_recited_is_drafted(pair, asked, expected, tmp_path, algorithm):
    memory = ["--schedule-conservativeness", "0.1"]
    with server(tmp_path, *typed(pair, algorithm), *memory, tokens=FEW_TOKENS) as drafting:
        answers = ask(drafting.base_url, asked, OUTPUT_TOKENS, aborted=ABORTED)
    for place, (answer, tokens) in enumerate(zip(answers, expected, strict=True)):
        assert answer.token_ids == (tokens[: len(answer.token_ids)] if place in ABORTED else tokens), place
    assert all(len(answers[place].token_ids) >= OUTPUT_TOKENS // 3 for place in ABORTED)
    assert sum(answer.told["num_retractions"] for answer in answers) > 0
    whole = [answer for place, answer in enumerate(answers) if place not in ABORTED]
    recited, invented = ([answer.share_right for answer in whole if recites(answer) == said] for said in (True, False))
    # An answer's first round has to be said once before it can be looked up.
    assert statistics.mean(recited) > (0.5 if algorithm == "ngram" else 0.95)
    assert statistics.mean(invented) < 0.15
