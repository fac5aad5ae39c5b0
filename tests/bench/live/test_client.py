"""The client against a stand-in server; nothing here is SGLang."""

from __future__ import annotations

import asyncio

import pytest

from bench.live.client import Limits, Replay
from bench.live.prompts import PromptBuilder
from bench.report.records import RequestRecord
from bench.traffic.request import Request
from tests.bench.live.stand_in_server import StandInServer


class FirstToken(PromptBuilder):
    """Prompts whose first token is the request's number: the stand-in takes it for a fault."""

    def tokens(self, request: Request, index: int) -> list[int]:
        return [request.prefix_blocks[0] if request.prefix_blocks else 100, *super().tokens(request, index)][
            : request.prompt_tokens
        ]


PROMPTS = FirstToken(0, 1000)


def replay(server: StandInServer, requests: list[Request], limits: Limits | None = None) -> list[RequestRecord]:
    return asyncio.run(Replay(server.base_url, requests, PROMPTS, limits).run())


def test_every_token_is_recorded_with_its_time() -> None:
    with StandInServer(first_s=0.05, step_s=0.02) as server:
        (record,) = replay(server, [Request(0.0, 40, 5, phase="chat")])
    assert record.error is None
    assert (record.phase, record.prompt_tokens, record.cached_tokens, record.output_tokens) == ("chat", 40, 10, 5)
    assert record.sent_s is not None
    assert record.first_token_s is not None
    assert record.first_token_s - record.sent_s >= 0.05
    gaps = [b - a for a, b in zip(record.token_s, record.token_s[1:], strict=False)]
    assert len(gaps) == 4
    assert all(gap > 0 for gap in gaps)
    assert record.end_s >= record.token_s[-1]


def test_tokens_of_one_chunk_share_its_time() -> None:
    with StandInServer(tokens_per_chunk=3) as server:
        (record,) = replay(server, [Request(0.0, 4, 7)])
    assert len(record.token_s) == 7
    assert [record.token_s.count(time) for time in dict.fromkeys(record.token_s)] == [3, 3, 1]


def test_the_body_is_what_sglang_expects() -> None:
    with StandInServer() as server:
        replay(server, [Request(0.0, 8, 3)])
    (body,) = server.bodies
    assert body["stream"] is True
    assert body["sampling_params"] == {"temperature": 0, "max_new_tokens": 3, "ignore_eos": True}
    assert len(body["input_ids"]) == 8
    assert "priority" not in body


def test_a_priority_is_sent_and_recorded() -> None:
    with StandInServer() as server:
        records = replay(server, [Request(0.0, 8, 3, priority=10), Request(0.05, 8, 3, priority=0)])
    assert [body["priority"] for body in server.bodies] == [record.priority for record in records] == [10, 0]


def test_targets_of_its_own_are_sent_as_a_client_would_send_them() -> None:
    with StandInServer() as server:
        replay(server, [Request(0.0, 8, 3, slo={"ttft_s": 0.5}), Request(0.05, 8, 3)])
    asks, other = (body["sampling_params"] for body in server.bodies)
    assert asks.pop("custom_params") == {"slo": {"ttft_s": 0.5}}
    assert asks == other == {"temperature": 0, "max_new_tokens": 3, "ignore_eos": True}


def test_arrivals_never_wait_for_answers() -> None:
    requests = [Request(0.02 * place, 4, 1) for place in range(20)]
    with StandInServer(first_s=1.0) as server:
        records = replay(server, requests)
    assert [record.index for record in records] == list(range(20))
    assert all(record.error is None for record in records)
    # All were sent before the first answer came: 0.4 s of arrivals, 1 s to the first token.
    assert max(record.sent_s or 9.0 for record in records) < min(record.first_token_s or 0.0 for record in records)
    assert all((record.sent_s or 0.0) >= record.scheduled_s for record in records)


@pytest.mark.parametrize(
    ("fault", "error", "tokens"),
    [
        (3, "the answer broke off", 2),
        (4, "made to fail", 0),
        (5, "aborted: made to abort", 2),
        (6, 'HTTP 500: {"error": "made to fail"}', 0),
        (7, "no end within 0.3 s", 0),
        (8, "not an answer of /generate: {'surprise': 1}", 0),
        (9, "JSONDecodeError: ", 0),
    ],
)
def test_what_goes_wrong_is_recorded_and_the_rest_goes_on(fault: int, error: str, tokens: int) -> None:
    with StandInServer() as server:
        bad, good = replay(server, [Request(0.0, 8, 4, (fault,)), Request(0.01, 8, 4)], Limits(request_s=0.3))
    assert (bad.error or "").startswith(error)
    assert bad.output_tokens == tokens
    assert bad.output_tokens_asked == 4
    assert good.error is None


def test_what_is_open_at_the_deadline_is_an_error() -> None:
    with StandInServer() as server:
        slow, quick = replay(server, [Request(0.0, 8, 4, (7,)), Request(0.1, 8, 4)], Limits(drain_s=0.4))
    assert slow.error == "deadline"
    assert slow.end_s == pytest.approx(0.5, abs=0.2)
    assert quick.error is None


def test_nobody_listening_is_an_error_per_request() -> None:
    with StandInServer() as server:
        url = server.base_url
    (record,) = asyncio.run(Replay(url, [Request(0.0, 8, 4)], PROMPTS).run())
    assert (record.error or "").startswith("ClientConnectorError")


def test_a_stopped_run_records_everything_at_once() -> None:
    with StandInServer(step_s=0.05) as server:
        run = Replay(server.base_url, [Request(0.0, 8, 1000), Request(60.0, 8, 4)], PROMPTS)

        async def stopped() -> list[RequestRecord]:
            asyncio.get_running_loop().call_later(0.3, run.stop, "server exited with code 9")
            return await asyncio.wait_for(run.run(), 10)

        begun, unsent = asyncio.run(stopped())
    assert begun.error == unsent.error == "server exited with code 9"
    assert begun.output_tokens > 0
    assert unsent.sent_s is None


def test_a_closed_loop_sends_one_when_one_ends() -> None:
    requests = [Request(0.0, 8, 1 + place % 4) for place in range(9)]
    with StandInServer(first_s=0.05, step_s=0.03) as server:
        records = asyncio.run(Replay(server.base_url, requests, PROMPTS, concurrency=3).run())
    assert [record.index for record in records] == list(range(9))
    assert all(record.error is None for record in records)
    moments = sorted((moment, change) for one in records for moment, change in ((one.scheduled_s, 1), (one.end_s, -1)))
    in_flight = [sum(change for _, change in moments[: place + 1]) for place in range(len(moments))]
    assert max(in_flight) == 3
    ends = sorted(one.end_s for one in records)
    for place, one in enumerate(sorted(records, key=lambda record: record.scheduled_s)):
        assert one.index == place
        assert one.sent_s is not None
        assert one.sent_s >= one.scheduled_s
        if place >= 3:  # sent when the slot's last one was over
            assert one.scheduled_s >= ends[place - 3]


def test_a_closed_loop_goes_on_after_a_request_that_fails_and_stops_when_told() -> None:
    requests = [Request(0.0, 8, 2, prefix_blocks=(6,)), Request(0.0, 8, 2), Request(0.0, 8, 2, prefix_blocks=(7,)),
                Request(0.0, 8, 2)]  # fmt: skip
    with StandInServer() as server:
        replay = Replay(server.base_url, requests, PROMPTS, concurrency=1)

        async def stopped() -> list[RequestRecord]:
            run = asyncio.create_task(replay.run())
            await asyncio.sleep(0.5)
            replay.stop("the server died")
            return await run

        records = asyncio.run(stopped())
    assert [record.error for record in records] == [
        'HTTP 500: {"error": "made to fail"}', None, "the server died", "the server died",
    ]  # fmt: skip
    assert [record.sent_s is None for record in records] == [False, False, False, True]
