"""When requests come: anchored at the first, in a stated unit, in order; what cannot be true is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.traffic import Traffic, load_traffic
from roofline_policies.errors import InputError
from tests.bench.traffic.traces import read


def rows(folder: Path, times: list[Any], **more: Any) -> Path:
    path = folder / "trace.jsonl"
    lines = [json.dumps({"timestamp": time, "input_length": 600, "output_length": 5, **more}) for time in times]
    path.write_text("\n".join(lines))
    return path


def load(path: Path, **conf: Any) -> Traffic:
    return load_traffic({"kind": "mooncake", "path": str(path), **conf}, seed=0)


def texts(traffic: Traffic) -> list[str]:
    return [note.text for note in traffic.notes]


@pytest.mark.parametrize(
    ("times", "unit", "stands"),
    [
        ([1717000000000, 1717000001000], None, "1717000000000 ms (2024-05-29 16:26:40 UTC)"),
        ([1717000000, 1717000001], "s", "1717000000 s (2024-05-29 16:26:40 UTC)"),
        ([1717000000000000000, 1717000001000000000], "ns", "1717000000000000000 ns (2024-05-29 16:26:40 UTC)"),
        ([5000, 6000], None, "5000 ms"),
    ],
)
def test_a_trace_begins_with_its_first_request(tmp_path: Path, times: list[int], unit: str | None, stands: str) -> None:
    traffic = load(rows(tmp_path, times), time_unit=unit)
    assert [one.arrival_s for one in traffic.requests] == [0.0, 1.0]
    assert f"the first request, at {stands}, comes at 0 s; traffic.start_s counts from there" in texts(traffic)


def test_a_trace_that_begins_at_zero_needs_no_word(tmp_path: Path) -> None:
    assert not any("comes at 0 s" in text for text in texts(load(rows(tmp_path, [0, 1000]))))


def test_dates_may_stand_in_the_place_of_numbers(tmp_path: Path) -> None:
    path = rows(tmp_path, ["2024-05-29T16:26:40Z", "2024-05-29 18:26:41.5+02:00"])
    assert [one.arrival_s for one in read(path)] == [0.0, 1.5]
    with pytest.raises(InputError, match=r"is a date, and traffic.time_unit=ms is of numbers"):
        read(path, time_unit="ms")


def test_numbers_in_the_place_of_dates_need_a_unit(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n100,5,5\n101.5,5,5\n")
    with pytest.raises(
        InputError, match=r"TIMESTAMP = '100': is a number, no date; allowed: YYYY.*traffic.time_unit=s"
    ):
        read(path)
    assert [one.arrival_s for one in read(path, time_unit="s")] == [0.0, 1.5]


@pytest.mark.parametrize(
    ("times", "conf", "message"),
    [
        ([1717000000000, 1717000001000], {"time_unit": "s"}, "line 1: timestamp = 1717000000000: lies beyond the "
         "year 2286 as seconds; allowed: traffic.time_unit=ms or traffic.time_unit=us or traffic.time_unit=ns"),
        ([0, 1717000001000], {}, "line 2: timestamp = 1717000001000: comes 1,717,000,001 s (54.4 years) after the "
         "first request as milliseconds; allowed: a trace of at most ten years; traffic.time_unit says"),
        ([0.0, 61.5, 122.0], {}, "timestamp: its 3 requests come within 0.122 s as milliseconds; allowed: "
         "traffic.time_unit=s, or traffic.time_unit=ms if it is so"),
        ([0.0, 3599.25, 7199.5], {"window_s": 120}, "its 3 requests come within 7.199 s as milliseconds; allowed: "),
        ([*range(1001)], {}, "its 1,001 requests come within 1 s as milliseconds; allowed: traffic.time_unit=s, or "),
        ([0, 0.25, 0.5], {"time_unit": "ms"}, "its 3 requests come within 0.001 s as milliseconds; allowed: "),
        ([0, 2, 1], {}, "line 3: timestamp = 1: lies 0.001 s before the line above; allowed: times that never "
         "decrease, or traffic.sort=true to have them sorted"),
        ([0, 1000], {"start_s": 50, "window_s": 10}, "traffic.window_s = 10.0: no request arrives between 50 s and "
         "60 s (the last request comes 1 s after the first); allowed: a window with at least one request"),
        ([7000, 8000, 99000], {"start_s": 50, "window_s": 10}, "no request arrives between 50 s and 60 s (the last "
         "before it comes 1 s after the first; the next one after it comes at 92 s); allowed: "),
    ],
)  # fmt: skip
def test_what_cannot_be_true_is_refused(tmp_path: Path, times: list[float], conf: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        load(rows(tmp_path, times), **conf)


def test_the_users_word_settles_what_only_looks_wrong(tmp_path: Path) -> None:
    path = rows(tmp_path, [0.0, 61.5, 122.0])
    assert [one.arrival_s for one in load(path, time_unit="s").requests] == [0.0, 61.5, 122.0]
    assert load(path, time_unit="ms").requests[-1].arrival_s == 0.122
    assert load(rows(tmp_path, [*range(1001)]), time_unit="ms").requests[-1].arrival_s == 1.0


def test_a_burst_at_one_moment_is_one(tmp_path: Path) -> None:
    assert {one.arrival_s for one in load(rows(tmp_path, [0] * 2000)).requests} == {0.0}


def test_what_is_out_of_order_is_sorted_where_the_format_promises_none_or_the_user_asks(tmp_path: Path) -> None:
    path = rows(tmp_path, [9000, 4000, 6000, 1000])
    traffic = load(path, sort=True)
    assert [one.arrival_s for one in traffic.requests] == [0.0, 3.0, 5.0, 8.0]
    assert "2 rows came before the row above: sorted by time" in texts(traffic)
    assert [one.arrival_s for one in load(path, kind="timed").requests] == [0.0, 3.0, 5.0, 8.0]
    with pytest.raises(InputError, match="lies 5 s before the line above"):
        load(path, kind="timed", sort=False)


@given(st.lists(st.integers(0, 10**7), min_size=1, max_size=30), st.integers(0, 10**12))
def test_where_a_trace_is_anchored_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, gaps: list[int], at: int
) -> None:
    folder = tmp_path_factory.mktemp("anchored")
    times = [sum(gaps[: place + 1]) for place in range(len(gaps))]
    here = read(rows(folder, times), "mooncake", time_unit="ms")
    there = read(rows(folder, [time + at for time in times]), "mooncake", time_unit="ms")
    assert here == there
    assert here[0].arrival_s == 0.0
    assert [one.arrival_s for one in here] == pytest.approx([(time - times[0]) / 1e3 for time in times])
