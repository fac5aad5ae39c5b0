"""A request that hangs makes its run long; what that does to which figure."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.report.headlines import sweep_lines, verdict_lines
from bench.report.metrics import summarise
from bench.report.records import ArmRun, RequestRecord
from bench.report.tail import tail
from bench.slo import JudgedSlo
from bench.sweep.page import write_page
from bench.sweep.summary import cell_result, judged
from tests.bench.report.test_itl import streamed
from tests.bench.report.test_report import result_of
from tests.bench.sweep.cells import crashed
from tests.bench.sweep.test_summary import result as swept

SLO = JudgedSlo(1.0, 0.1)


def quick(arrival_s: float, **fields: Any) -> RequestRecord:
    return streamed((arrival_s + 0.1, 1), (arrival_s + 0.15, 1), scheduled_s=arrival_s, sent_s=arrival_s, **fields)


def hangs(arrival_s: float, until_s: float) -> RequestRecord:
    return replace(quick(arrival_s), token_s=(), end_s=until_s, error="deadline")


def steady(requests: int, over_s: float) -> tuple[RequestRecord, ...]:
    return tuple(quick(over_s * place / (requests - 1)) for place in range(requests))


def test_one_of_101_hangs_for_ten_minutes() -> None:
    row = summarise(ArmRun("x", 0, (*steady(100, 10.0), hangs(5.0, 600.0)), ()), SLO, None)
    assert row["attainment"] == pytest.approx(100 / 101)
    assert row["goodput_per_s"] == pytest.approx(100 / 600)  # as the field has it: over the whole run
    assert row["goodput_arrivals_per_s"] == pytest.approx(10.0)
    assert row["duration_s"] == 600.0
    assert row["last_arrival_s"] == 10.0
    assert row["ended_99_s"] == pytest.approx(10.15)
    assert (row["drain_s"], row["longest_request_s"]) == (590.0, 595.0)


@pytest.mark.parametrize(("hung", "of"), [(1, 20), (3, 40), (10, 200)])
def test_however_many_hang_the_others_count_as_they_came(hung: int, of: int) -> None:
    records = (*steady(of, 20.0), *(hangs(3.0 + place, 900.0 + place) for place in range(hung)))
    row = summarise(ArmRun("x", 0, records, ()), SLO, None)
    assert row["goodput_arrivals_per_s"] == pytest.approx(of / 20.0)
    assert row["goodput_per_s"] < of / 900.0 + 1e-9


def test_the_last_hundredth_is_left_out_and_never_less_than_one() -> None:
    for requests, left_out in ((1, 0), (2, 1), (100, 1), (199, 1), (200, 2), (1000, 10)):
        records = [replace(quick(0.0), scheduled_s=0.0, end_s=float(place)) for place in range(1, requests + 1)]
        assert tail(records, 0)["ended_99_s"] == requests - left_out


def test_times_count_from_the_first_arrival() -> None:
    found = tail([quick(100.0), quick(104.0)], 2)
    assert found == pytest.approx(
        {"last_arrival_s": 4.0, "ended_99_s": 0.15, "drain_s": 0.15, "longest_request_s": 0.15,
         "goodput_arrivals_per_s": 0.5}
    )  # fmt: skip


def test_of_nothing_there_is_no_tail_and_a_burst_has_no_rate_of_arrivals() -> None:
    assert set(tail([], 0).values()) == {None}
    assert tail([quick(0.0)] * 8, 8)["goodput_arrivals_per_s"] is None


def test_the_headline_says_what_the_last_request_did() -> None:
    hung = result_of([ArmRun("static", 0, (*steady(100, 10.0), hangs(5.0, 600.0)), ())])
    lines = [line for line in verdict_lines(hung) if "the last request arrived" in line]
    assert lines == [
        "static: the last request arrived at 10.0 s, all but 1 were over at 10.2 s, the last at 600.0 s; goodput 0.167 "
        "req/s over the whole run, 10 over the time in which requests arrived."
    ]
    well = result_of([ArmRun("static", 0, steady(100, 10.0), ())])
    assert verdict_lines(well) == []


def test_of_repeats_the_worst_is_told() -> None:
    runs = [
        ArmRun("static", repeat, (*steady(20, 10.0), hangs(5.0, until)), ()) for repeat, until in ((0, 50), (1, 99))
    ]
    (line,) = (line for line in verdict_lines(result_of(runs)) if "the last at" in line)
    assert "the last at 99.0 s" in line


def test_a_sweep_says_how_many_runs_a_few_requests_decided_and_what_was_not_completed(tmp_path: Path) -> None:
    well = summarise(ArmRun("well", 0, steady(100, 10.0), ()), SLO, None)
    hung = summarise(ArmRun("hung", 0, (*steady(100, 10.0), hangs(5.0, 600.0)), ()), SLO, None)
    cell = cell_result(judged("half", {}, [well, hung], ["well"]))
    assert cell["arms"]["hung"]["ratio"] == pytest.approx(10.15 / 600)
    assert cell["arms"]["hung"]["attainment_ratio"] == pytest.approx(100 / 101)
    assert cell["arms"]["hung"]["regret_attainment"] == pytest.approx(1 / 101)
    lines = sweep_lines([cell, {"arms": {"dead": crashed("dead")}}])
    assert [line.partition(":")[0] for line in lines[:1]] == ["In 1 of 2 runs requests were not completed"]
    assert lines[0].endswith("1 ended by an error.")
    assert lines[1].startswith("In 1 of 2 runs the last hundredth of the requests added more than a tenth")
    assert sweep_lines([{"arms": {"well": well}}]) == []
    whole = swept()
    whole["cells"][0]["arms"]["default"]["errors"] = 2
    assert "requests were not completed: 2 ended by an error." in write_page(tmp_path / "s.html", whole).read_text()
