"""Metrics against cases worked out by hand, and against oracles written another way."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.report.columns import columns
from bench.report.metrics import by_class, longest_tenth_ttft_p99_s, paired_ratios, quantile, server_side, summarise
from bench.report.one_request import MISSED, e2e_s, gaps_s, meets, missed, tpot_s, ttft_s
from bench.report.records import ArmRun, RequestRecord, ServerSample
from bench.slo import JudgedSlo
from roofline_policies.slo.objectives import ItlKind

PER_GAP = JudgedSlo(ttft_s=1.0, itl_s=0.1)
MEAN = replace(PER_GAP, itl_kind=ItlKind.MEAN_TPOT)


def record(token_s: tuple[float, ...], **fields: Any) -> RequestRecord:
    values: dict[str, Any] = {
        "index": 0,
        "phase": "",
        "scheduled_s": 0.0,
        "sent_s": 0.0,
        "end_s": token_s[-1] if token_s else 0.0,
        "prompt_tokens": 10,
        "cached_tokens": 0,
        "output_tokens_asked": len(token_s),
    }
    return RequestRecord(token_s=token_s, **{**values, **fields})


def test_one_request_by_hand() -> None:
    one = record((1.5, 1.75, 1.75, 2.5), scheduled_s=1.0, sent_s=1.125)
    assert ttft_s(one) == 0.5  # from the schedule, not from the send
    assert gaps_s(one).tolist() == [0.125, 0.125, 0.75]  # two tokens of one chunk share what it took
    assert tpot_s(one) == pytest.approx(1 / 3)
    assert e2e_s(one) == 1.5


def test_a_request_of_one_token_has_no_itl_and_one_of_none_has_nothing() -> None:
    assert tpot_s(record((0.5,))) is None
    assert gaps_s(record((0.5,))).tolist() == []
    assert meets(record((0.5,)), PER_GAP)
    assert meets(record((0.5,)), MEAN)
    nothing = record((), error="deadline")
    assert (ttft_s(nothing), tpot_s(nothing), e2e_s(nothing)) == (None, None, None)
    assert not meets(nothing, PER_GAP)


def test_an_error_never_meets_and_has_no_e2e() -> None:
    broken = record((0.1, 0.2), error="the answer broke off")
    assert not meets(broken, JudgedSlo(None, None))
    assert e2e_s(broken) is None
    assert ttft_s(broken) == pytest.approx(0.1)


def spaced(gaps: list[float]) -> RequestRecord:
    times = [0.5]
    for gap in gaps:
        times.append(times[-1] + gap)
    return record(tuple(times))


def test_the_kind_of_itl_decides() -> None:
    one_stall = spaced([0.01] * 98 + [0.5, 0.5])  # 98 of 100 gaps within; mean 0.0198
    assert not meets(one_stall, PER_GAP)
    assert meets(one_stall, MEAN)
    assert meets(spaced([0.01] * 99 + [0.5]), PER_GAP)  # exactly 99 of 100
    steady_but_slow = spaced([0.11] * 100)
    assert not meets(steady_but_slow, MEAN)
    assert meets(steady_but_slow, replace(MEAN, itl_s=None))


@pytest.mark.parametrize(
    ("slo", "met"),
    [
        (JudgedSlo(0.5, None), True),
        (JudgedSlo(0.4999, None), False),
        (JudgedSlo(None, None, e2e_s=0.75), True),
        (JudgedSlo(None, None, e2e_s=0.7), False),
        (JudgedSlo(None, 0.25, ItlKind.MEAN_TPOT), True),
        (JudgedSlo(None, 0.2, ItlKind.MEAN_TPOT), False),
        (JudgedSlo(None, 0.2, ItlKind.PER_GAP, gap_fraction=0.5), False),
    ],
)
def test_limits_are_inclusive(slo: JudgedSlo, met: bool) -> None:
    assert meets(record((0.5, 0.75)), slo) is met


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.floats(0, 1))
def test_quantile_is_linear_interpolation_between_order_statistics(values: list[float], q: float) -> None:
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
    assert quantile(values, q) == pytest.approx(low + (high - low) * (place - math.floor(place)), rel=1e-9, abs=1e-9)


def test_quantile_of_nothing_is_none() -> None:
    assert quantile([], 0.5) is None


def test_a_run_by_hand() -> None:
    records = (
        record((0.5, 0.75, 1.0), phase="a", prompt_tokens=100, cached_tokens=50, sent_s=0.001),
        record((3.5, 3.75), phase="b", scheduled_s=2.0, sent_s=2.003, prompt_tokens=60),  # TTFT 1.5: misses
        record((3.0,), phase="b", scheduled_s=3.0, sent_s=3.0, end_s=5.0, prompt_tokens=40, error="deadline"),
        record((), phase="b", scheduled_s=3.0, sent_s=None, end_s=3.0, prompt_tokens=999, error="deadline"),
    )
    row = summarise(ArmRun("x", 2, records, ()), JudgedSlo(1.0, 0.3), usd_per_h=3.6)
    assert (row["arm"], row["repeat"], row["status"], row["crash"]) == ("x", 2, "ok", None)
    assert row["duration_s"] == 5.0
    assert (row["requests"], row["completed"], row["errors"]) == (4, 2, 2)
    assert row["error_kinds"] == {"deadline": 2}
    assert (row["output_tokens"], row["prompt_tokens"]) == (6, 200)
    assert row["output_tokens_per_s"] == pytest.approx(1.2)
    assert row["total_tokens_per_s"] == pytest.approx(206 / 5)
    assert row["requests_per_s"] == pytest.approx(0.4)
    assert row["goodput_per_s"] == pytest.approx(0.2)
    assert row["good_tokens_per_s"] == pytest.approx(103 / 5)  # of the first request alone
    assert row["longest_tenth_ttft_p99_s"] == 0.0  # the longest prompt never got a token: it was given no time at all
    assert row["attainment"] == 0.25
    assert row["cache_hit_rate"] == 0.25
    assert row["usd_per_million_output_tokens"] == pytest.approx(3.6 * 5 / 3600 / 6 * 1e6)
    assert row["usd_per_million_tokens"] == pytest.approx(3.6 * 5 / 3600 / 206 * 1e6)
    assert row["ttft_p50_s"] == pytest.approx(0.5)  # of 0.0, 0.5, 1.5
    assert row["itl_p50_s"] == pytest.approx(0.25)
    assert row["e2e_p99_s"] == pytest.approx(1.0 + 0.75 * 0.99)
    assert row["slip_p99_s"] == pytest.approx(0.001 + 0.002 * 0.98)  # of 0, 1, 3 ms at position 1.98
    assert row["phases"]["a"]["attainment"] == 1.0
    assert row["phases"]["b"]["requests"] == 3
    assert row["classes"] == {}


def test_a_crash_before_the_first_request_has_no_figures_but_a_row() -> None:
    row = summarise(ArmRun("x", 0, (), (), "server exited with code 1"), PER_GAP, 2.0)
    assert row["status"] == "crashed"
    assert row["crash"] == "server exited with code 1"
    assert row["good_tokens_per_s"] is row["longest_tenth_ttft_p99_s"] is None
    assert row["goodput_per_s"] is row["attainment"] is row["ttft_p99_s"] is row["usd_per_million_tokens"] is None


def test_an_unknown_price_is_null_not_zero() -> None:
    row = summarise(ArmRun("x", 0, (record((0.5,)),), ()), PER_GAP, None)
    assert row["usd_per_million_output_tokens"] is None


def sample(t_s: float, retractions: int | None, **rank: Any) -> ServerSample:
    return ServerSample(t_s, {"running": 1, "waiting": 0, "kv_use": t_s / 10}, retractions, (rank,) if rank else ())


def test_what_the_server_says() -> None:
    policy = {"name": "adaptive", "state": "fallback", "fallback_reason": "NaN"}
    row = server_side(
        [
            sample(1.0, 4, changes_total={"chunk": 2}),
            sample(
                3.0, 9, changes_total={"chunk": 5, "cap": 1}, policy=policy, policy_time_s={"p50": 1e-5, "p99": 2e-5}
            ),
        ]
    )
    assert row["kv_use_mean"] == pytest.approx(0.2)
    assert row["kv_use_max"] == pytest.approx(0.3)
    assert row["retractions"] == 5
    assert row["knob_changes"] == 4
    assert row["knob_changes_by_knob"] == {"chunk": 3, "cap": 1}
    assert row["policy_time_p99_s"] == 2e-5
    assert (row["policy_state"], row["fallback_reason"]) == ("fallback", "NaN")


def test_a_server_that_says_nothing_gives_nothing() -> None:
    row = server_side([ServerSample(0.0)])
    assert all(row[key] is None for key in ("kv_use_mean", "kv_use_max", "retractions", "knob_changes", "policy_state"))


def row(arm: str, repeat: int, goodput: float | None, status: str = "ok") -> dict[str, Any]:
    return {"arm": arm, "repeat": repeat, "status": status, "goodput_per_s": goodput}


def test_ratios_pair_within_a_repeat() -> None:
    rows = [row("s", 0, 1.0), row("a", 0, 1.5), row("a", 1, 1.0), row("s", 1, 2.0), row("s", 2, 4.0), row("a", 2, 5.0)]
    ratio = paired_ratios(rows, "s")["a/s"]["goodput_per_s"]
    assert ratio == {"min": 0.5, "median": 1.25, "max": 1.5, "values": [1.5, 0.5, 1.25], "pairs": 3}


def test_a_crashed_or_absent_side_makes_no_pair() -> None:
    rows = [
        *(row("s", 0, 1.0), row("a", 0, 9.0, "crashed")),
        *(row("s", 1, None), row("a", 1, 1.0)),
        *(row("s", 2, 0.0), row("a", 2, 1.0)),
    ]
    assert paired_ratios(rows, "s") == {"a/s": {}}


CLASSES = JudgedSlo(4.0, 0.5, classes={10: JudgedSlo(1.0, 0.1), 1: JudgedSlo(None, None, e2e_s=3.0)})


@pytest.mark.parametrize(
    ("priority", "times", "met"),
    [
        (None, (3.0, 3.4), True),
        (7, (3.0, 3.4), True),
        (10, (3.0, 3.05), False),
        (10, (1.0, 1.4), False),
        (10, (1.0, 1.05), True),
        (1, (2.0, 3.0), True),
        (1, (2.0, 3.1), False),
    ],
)
def test_each_request_is_held_to_its_class(priority: int | None, times: tuple[float, ...], met: bool) -> None:
    assert meets(record(times, priority=priority), CLASSES) is met


def test_classes_are_judged_apart_and_together() -> None:
    records = [record((2.0, 2.05), priority=priority) for priority in (1, 10, None, 10)]
    row = summarise(ArmRun("x", 0, tuple(records), ()), CLASSES, None)
    assert row["attainment"] == 0.5
    assert {name: (one["requests"], one["attainment"]) for name, one in row["classes"].items()} == {
        "10": (2, 0.0), "1": (1, 1.0), "none": (1, 1.0)
    }  # fmt: skip
    assert list(row["classes"]) == ["10", "1", "none"]
    assert row["phases"][""]["attainment"] == 0.5
    assert set(row["classes"]["10"]) == set(row["phases"][""])
    assert by_class([record((1.0,))], CLASSES) == {}


def test_the_longest_tenth_counts_those_that_never_began() -> None:
    served = [record((0.1 * place,), prompt_tokens=place) for place in range(1, 20)]
    starved = record((), prompt_tokens=20, scheduled_s=1.0, end_s=41.0, error="deadline")
    # 0.9 of 20 lengths lies at position 17.1: 18.1, so 19 and 20 are above it, with 1.9 s and 40 s.
    assert longest_tenth_ttft_p99_s([*served, starved]) == pytest.approx(1.9 + 0.99 * 38.1)
    assert longest_tenth_ttft_p99_s(served[:1]) == pytest.approx(0.1)
    alike = [record((float(place),)) for place in range(5)]
    assert longest_tenth_ttft_p99_s(alike) == pytest.approx(3.96)  # all are as long as the border
    assert longest_tenth_ttft_p99_s([]) is None


LIMITS = JudgedSlo(ttft_s=1.0, itl_s=0.125, e2e_s=2.0)


@pytest.mark.parametrize(
    ("one", "slo", "lacks"),
    [
        (record((0.5, 0.625, 0.75)), LIMITS, ()),
        (record((1.5, 1.625, 1.75)), LIMITS, ("ttft",)),
        (record((0.5, 0.625, 1.0)), LIMITS, ("gap",)),
        (record((0.5, 0.625, 1.0)), replace(LIMITS, itl_kind=ItlKind.MEAN_TPOT), ("mean",)),
        (record((0.5, 2.5)), replace(LIMITS, itl_s=None), ("e2e",)),
        (record((1.5, 2.5)), LIMITS, ("ttft", "gap", "e2e")),
        (record((1.5, 2.5)), JudgedSlo(), ()),
        (record((1.5, 2.5), error="closed"), LIMITS, ("not_completed",)),
        (record(()), JudgedSlo(), ("not_completed",)),
    ],
)
def test_what_a_request_missed_is_named(one: RequestRecord, slo: JudgedSlo, lacks: tuple[str, ...]) -> None:
    assert missed(one, slo) == lacks
    assert meets(one, slo) is (not lacks)
    assert set(lacks) <= set(MISSED)


def test_a_run_counts_what_was_missed() -> None:
    records = [record((0.5, 0.625)), record((1.5, 2.5)), record((1.5, 1.625)), record(())]
    row = summarise(ArmRun("a", 0, tuple(records), ()), LIMITS, None)
    assert row["missed"] == {"not_completed": 1, "ttft": 2, "gap": 1, "mean": 0, "e2e": 1}
    assert row["attainment"] == 0.25


def test_without_a_target_every_request_that_ends_is_good() -> None:
    """So the arm that ends earliest has the most goodput: it is judged by throughput."""
    records = (record((9.0, 30.0)), record((0.5, 40.0)), record((), error="refused", end_s=1.0))
    row = summarise(ArmRun("a", 0, records, ()), JudgedSlo(), None)
    assert row["goodput_per_s"] == row["requests_per_s"] == 2 / 40.0
    assert row["missed"] == {"not_completed": 1, "ttft": 0, "gap": 0, "mean": 0, "e2e": 0}


def test_goodput_is_weighted_by_the_class_of_each_request() -> None:
    """Four good requests in 2 s, of 12 tokens each: two of weight 5, one of the server's 0.5, one of a class without
    one. The fifth misses."""
    slo = JudgedSlo(ttft_s=1.0, weight=0.5, classes={10: JudgedSlo(1.0, weight=5.0), 3: JudgedSlo(1.0)})
    times = (0.5, 2.0)
    records = [record(times, priority=priority) for priority in (10, 10, None, 3)]
    late = record((1.5, 2.0), priority=10)
    row = summarise(ArmRun("a", 0, (*records, late), ()), slo, None)
    assert row["goodput_per_s"] == 2.0
    assert row["weighted_goodput_per_s"] == (5 + 5 + 0.5 + 1) / 2.0
    assert row["weighted_good_tokens_per_s"] == 12 * (5 + 5 + 0.5 + 1) / 2.0
    plain = summarise(ArmRun("a", 0, (*records, late), ()), JudgedSlo(1.0), None)
    assert plain["weighted_goodput_per_s"] == plain["goodput_per_s"]
    assert plain["weighted_good_tokens_per_s"] == plain["good_tokens_per_s"]
    titles = [[column.title for column in columns([99]) if column.when([one])] for one in (row, plain)]
    assert ["weighted goodput /s" in one for one in titles] == [True, False]
