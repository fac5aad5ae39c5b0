"""The highest load that an arm is up to, against values worked out by hand."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.sweep.capacity import Capacity, Point, capacities, capacity


@pytest.mark.parametrize(
    ("met", "found", "text"),
    [
        ((1.0, 0.95, 0.7), Capacity(2.2), "2.2"),  # a fifth of the way from 2 to 3
        ((1.0, 0.9, 0.7), Capacity(2.0), "2"),
        ((1.0, 0.9, 0.9), Capacity(3.0, ">="), ">= 3"),
        ((0.89, 0.5, 0.2), Capacity(1.0, "<"), "< 1"),
        ((0.95, 0.8, 0.95), Capacity(3.0, ">="), ">= 3"),  # the highest, whatever lies before
        ((0.8, 1.0, 0.5), Capacity(2.2), "2.2"),
        ((1.0, None, None), Capacity(1.1), "1.1"),  # a crash serves nobody
        ((None, None, None), Capacity(1.0, "<"), "< 1"),
    ],
)
def test_it_lies_on_the_line_between_two_loads(met: tuple[float | None, ...], found: Capacity, text: str) -> None:
    one = capacity(list(zip((1.0, 2.0, 3.0), met, strict=True)), 0.9)
    assert (one.rate_scale, one.sign) == (pytest.approx(found.rate_scale), found.sign)
    assert str(one) == text


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.floats(0.1, 1))
def test_it_is_a_load_of_the_sweep_or_between_two(met: list[float], least: float) -> None:
    one = capacity(list(enumerate(met, start=1)), least)
    assert 1 <= one.rate_scale <= len(met)
    assert (one.sign == "<") == (max(met) < least)
    assert (one.sign == ">=") == (met[-1] >= least)


def points(traffic: str, scales: tuple[float, ...], **met: tuple[float, ...]) -> list[Point]:
    return [
        Point({"traffic": traffic, "load": str(place)}, scale, {arm: values[place] for arm, values in met.items()})
        for place, scale in enumerate(scales)
    ]


TWO = [
    *points("chat", (2.0, 1.0), default=(0.8, 1.0), other=(0.85, 1.0), steady=(1.0, 1.0)),  # in any order
    *points("code", (10.0, 20.0), default=(1.0, 0.8), other=(1.0, 0.5), steady=(0.95, 0.85)),
]


def test_arms_are_compared_where_neither_is_only_bounded() -> None:
    found = capacities(TWO, ["default", "other", "steady"], "load", 0.9, "default")
    chat, code = found["places"]
    assert (chat["place"], chat["loads"], code["place"], code["loads"]) == ("chat", [1, 2], "code", [10, 20])
    assert [one["arms"][arm]["text"] for one in (chat, code) for arm in ("default", "other", "steady")] == [
        "1.5", "1.67", ">= 2", "15", "12", "15"
    ]  # fmt: skip
    assert found["summary"][1] == {
        "arm": "other", "min": pytest.approx(0.8), "median": pytest.approx((0.8 + 10 / 9) / 2),
        "max": pytest.approx(10 / 9), "worst": "code", "places": 2,
    }  # fmt: skip
    assert (found["summary"][2]["places"], found["summary"][2]["min"]) == (1, pytest.approx(1.0))
    assert json.loads(json.dumps(found)) == found


def test_without_a_baseline_there_are_capacities_and_no_ratios() -> None:
    found = capacities(TWO, ["default", "other"], "load", 0.9, None)
    assert (len(found["places"]), found["summary"]) == (2, [])


def test_loads_that_do_not_differ_are_no_loads() -> None:
    alike = points("chat", (1.0, 1.0), default=(1.0, 0.5))
    assert capacities(alike, ["default"], "load", 0.9, "default")["places"] == []
    alone = points("chat", (1.0,), default=(1.0,))
    found = capacities(alone, ["default"], "load", 0.9, "default")
    assert (found["places"], found["summary"][0]["median"]) == ([], None)
