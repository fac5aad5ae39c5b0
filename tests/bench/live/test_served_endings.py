"""A real server that cannot hold what is asked for, and that streams several tokens at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from bench.demo_model import build
from bench.live.client import Limits, Replay
from bench.live.prompts import PromptBuilder
from bench.live.server import Server
from bench.report.metrics import summarise
from bench.report.one_request import gaps_s
from bench.report.records import ArmRun, Ending, RequestRecord
from bench.slo import JudgedSlo
from bench.traffic.request import Request

pytestmark = pytest.mark.slow

VOCABULARY = 256
INTERVAL = 4
ARGUMENTS = ("--dtype", "float32", "--max-total-tokens", "700", "--stream-interval", str(INTERVAL))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    model = build(tmp_path_factory.mktemp("model") / "tiny", preset="tiny")
    log = tmp_path_factory.mktemp("server") / "log"
    with Server(["--model-path", str(model), *ARGUMENTS], log, start_timeout_s=400) as running:
        yield running


def replay(server: Server, *requests: Request) -> list[RequestRecord]:
    return asyncio.run(Replay(server.base_url, requests, PromptBuilder(0, VOCABULARY), Limits(300, 300)).run())


def test_an_answer_that_does_not_fit_is_short_and_not_good(server: Server) -> None:
    (record,) = replay(server, Request(0.0, 500, 400))
    assert (record.error, record.finish) == (None, "length")
    assert 150 < record.output_tokens < 200
    assert record.ending is Ending.SHORT
    row = summarise(ArmRun("x", 0, (record,), ()), JudgedSlo(None, None), None)
    assert [row[name] for name in ("completed", "short", "errors", "attainment")] == [0, 1, 0, 0.0]
    assert row["short_share"] == record.output_tokens / 400


def test_a_prompt_that_does_not_fit_is_not_completed(server: Server) -> None:
    refused, whole = replay(server, Request(0.0, 900, 10), Request(0.1, 50, 10))
    assert refused.output_tokens <= 1  # SGLang reports a token for a prompt that it refuses
    assert refused.ending in (Ending.ABORTED, Ending.ERROR)
    assert refused.error
    assert whole.ending is Ending.COMPLETED


def test_tokens_that_are_streamed_four_at_a_time_share_their_gap(server: Server) -> None:
    (record,) = replay(server, Request(0.0, 50, 41))
    assert record.completed
    row = summarise(ArmRun("x", 0, (record,), ()), JudgedSlo(None, None), None)
    assert row["tokens_per_chunk"] >= 41 / 11  # the first token at once, then ten times four; a read may hold more
    assert (gaps_s(record) > 0).all()
    assert row["itl_p50_s"] <= row["icl_p50_s"] / 2
