"""How requests end: only an answer that is whole is completed, and only a completed one can be good."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from bench.live.client import Limits, Replay
from bench.report.headlines import verdict_lines
from bench.report.metrics import summarise
from bench.report.one_request import e2e_s, meets
from bench.report.records import ArmRun, Ending, RequestRecord
from bench.report.rendering import shown_columns, write_report
from bench.slo import JudgedSlo
from bench.traffic.request import Request
from tests.bench.live.stand_in_server import StandInServer
from tests.bench.live.test_client import PROMPTS
from tests.bench.report.test_itl import streamed
from tests.bench.report.test_report import result_of

ANYTHING = JudgedSlo(None, None)


def answered(tokens: int, asked: int, **fields: Any) -> RequestRecord:
    chunks = [(0.1 * place, 1) for place in range(1, tokens + 1)]
    if not chunks:
        return replace(streamed((0.1, 1)), token_s=(), output_tokens_asked=asked, **fields)
    return streamed(*chunks, output_tokens_asked=asked, **fields)


@pytest.mark.parametrize(
    ("record", "ending"),
    [
        (answered(400, 400, finish="length"), Ending.COMPLETED),
        (answered(198, 400, finish="length"), Ending.SHORT),
        (answered(198, 400, finish="stop"), Ending.SHORT),  # the server was told not to heed stop tokens
        (answered(198, 400, finish="stop", ignore_eos=False), Ending.COMPLETED),
        (answered(198, 400, finish="length", ignore_eos=False), Ending.SHORT),
        (answered(0, 400, finish="length"), Ending.EMPTY),
        (answered(0, 400, finish="stop", ignore_eos=False), Ending.EMPTY),
        (answered(198, 400, finish="abort", error="aborted: out of memory"), Ending.ABORTED),
        (answered(0, 400, finish="abort", error="aborted: too long"), Ending.ABORTED),
        (answered(0, 400, finish="error", error="no such adapter"), Ending.ABORTED),
        (answered(198, 400, error="the answer broke off"), Ending.ERROR),
        (answered(400, 400, finish="length", error="deadline"), Ending.ERROR),
    ],
)
def test_a_request_has_one_ending(record: RequestRecord, ending: Ending) -> None:
    assert record.ending is ending
    good = ending is Ending.COMPLETED
    assert meets(record, ANYTHING) is record.completed is good
    assert (e2e_s(record) is not None) is good


MIXED = (
    *(answered(10, 10, finish="length", index=place, prompt_tokens=100) for place in range(3)),
    answered(4, 10, finish="length"),
    answered(8, 20, finish="length"),
    answered(0, 10, finish="length"),
    answered(5, 10, finish="abort", error="aborted: made up"),
    answered(5, 10, error="the answer broke off"),
    answered(0, 10, error="HTTP 500: made up"),
)


def test_endings_are_counted_apart_and_add_up() -> None:
    row = summarise(ArmRun("x", 0, MIXED, ()), ANYTHING, None)
    names = ("completed", "short", "empty", "aborted", "errors")
    assert [row[name] for name in names] == [3, 2, 1, 1, 2]
    assert sum(row[name] for name in names) == row["requests"]
    assert row["short_share"] == 12 / 30
    assert row["attainment"] == 3 / 9
    assert row["goodput_per_s"] == row["requests_per_s"] == pytest.approx(3 / 1.0)
    assert row["good_tokens_per_s"] == pytest.approx(3 * 110 / 1.0)
    assert row["e2e_p99_s"] == pytest.approx(1.0)
    assert row["error_kinds"] == {"aborted: made up": 1, "the answer broke off": 1, "HTTP 500: made up": 1}


def test_the_headline_the_table_and_the_page_say_so(tmp_path: Any) -> None:
    run = ArmRun("static", 0, MIXED, ())
    result = result_of([run])
    (line,) = [line for line in verdict_lines(result) if "not completed" in line]
    assert line == (
        "static: 6 of 9 requests were not completed: 2 short (with 40% of the tokens that they were to have), 1 empty, "
        "1 aborted, 2 ended by an error."
    )
    page = write_report(tmp_path / "r.html", result, [run]).read_text("utf-8")
    assert line in page
    titles = [column.title for column in shown_columns(result)]
    assert {"short answers", "empty answers", "aborted answers", "errors"} <= set(titles)
    whole = result_of([ArmRun("static", 0, MIXED[:3], ())])
    assert not [line for line in verdict_lines(whole) if "not completed" in line]
    assert not {"short answers", "empty answers", "aborted answers"} & {one.title for one in shown_columns(whole)}


@pytest.mark.parametrize(
    ("fault", "ending", "tokens", "error"),
    [
        (3, Ending.ERROR, 2, "the answer broke off"),
        (4, Ending.ABORTED, 0, "made to fail"),
        (5, Ending.ABORTED, 2, "aborted: made to abort"),
        (6, Ending.ERROR, 0, "HTTP 500"),
        (7, Ending.ERROR, 0, "no end within 2 s"),
        (9, Ending.ERROR, 0, "JSONDecodeError"),
        (10, Ending.EMPTY, 0, None),
        (11, Ending.SHORT, 2, None),
        (12, Ending.ERROR, 2, "ended by logits that are no numbers"),
        (13, Ending.ABORTED, 2, "ended by 'moderation': made up"),
    ],
)
def test_what_a_server_does_is_what_the_record_says(fault: int, ending: Ending, tokens: int, error: str | None) -> None:
    requests = [Request(0.0, 8, 4, (fault,)), Request(0.01, 8, 4)]
    with StandInServer() as server:
        bad, good = asyncio.run(Replay(server.base_url, requests, PROMPTS, Limits(request_s=2)).run())
    assert (bad.ending, bad.output_tokens) == (ending, tokens)
    assert bad.error is error is None or (bad.error or "").startswith(error or "?")
    assert (good.ending, good.finish) == (Ending.COMPLETED, "length")
