"""Who asks: shares, shifts and phases of their own, and that a draw depends on nothing else."""

from __future__ import annotations

import re
from typing import Any

import pytest

from bench.traffic import Request, load_traffic
from bench.traffic.classes import ClassShare, assign, picked, read_classes, read_shifts
from roofline_policies.errors import InputError

PHASE = {"name": "a", "duration_s": 1000, "rate_per_s": 4, "prompt_median": 50, "output_median": 5}
PHASED: dict[str, Any] = {"kind": "phased", "phases": [PHASE]}
MIXED = [{"priority": 10, "share": 3}, {"priority": 0, "share": 7}]
ONLY = [{"priority": 5, "share": 1}]


def load(seed: int = 0, **conf: Any) -> list[Request]:
    return list(load_traffic({**PHASED, **conf}, seed).requests)


def priorities(requests: list[Request]) -> list[int | None]:
    return [request.priority for request in requests]


def test_classes_lie_side_by_side_in_their_shares() -> None:
    classes = [ClassShare(10, 3.0), ClassShare(0, 6.0), ClassShare(-1, 1.0)]
    draws = [0.0, 0.29, 0.31, 0.89, 0.91, 1.0]  # 1.0 is never drawn, and rounding must not lead beyond the last
    assert [picked(classes, draw) for draw in draws] == [10, 10, 0, 0, -1, -1]
    assert picked([], 0.5) is None


def test_shares_are_kept_and_add_up_to_whatever_they_do() -> None:
    drawn = priorities(load(classes=MIXED))
    assert drawn.count(10) / len(drawn) == pytest.approx(0.3, abs=0.03)  # of 4,000: 4 deviations
    assert set(drawn) == {10, 0}
    assert drawn == priorities(load(classes=[{**one, "share": one["share"] / 70} for one in MIXED]))


def test_without_classes_nobody_has_a_priority() -> None:
    assert set(priorities(load())) == set(priorities(load(classes=None, shifts=None))) == {None}


def test_a_draw_follows_the_seed_and_nothing_else() -> None:
    drawn = priorities(load(classes=MIXED))
    assert drawn == priorities(load(classes=MIXED))
    assert drawn != priorities(load(1, classes=MIXED))
    assert drawn == priorities(load(classes=MIXED, rate_scale=3, prompt_scale=2, max_output_tokens=4))
    assert drawn[:50] == priorities(load(classes=MIXED, max_requests=50))
    more = priorities(load(classes=[{"priority": 10, "share": 4}, {"priority": 0, "share": 6}]))
    assert all(later == 10 for early, later in zip(drawn, more, strict=True) if early == 10)
    bare = load()
    assert [(r.arrival_s, r.prompt_tokens, r.output_tokens) for r in load(classes=MIXED)] == [
        (r.arrival_s, r.prompt_tokens, r.output_tokens) for r in bare
    ]


def test_shifts_apply_from_their_second_of_the_run_on() -> None:
    other = [{"priority": 6, "share": 1}]
    shifted = load(
        classes=MIXED, shifts=[{"at_s": 100, "classes": ONLY}, {"at_s": 300, "classes": other}], rate_scale=2
    )
    plain = load(classes=MIXED, rate_scale=2)
    for one, before in zip(shifted, plain, strict=True):
        expected = before.priority if one.arrival_s < 100 else 5 if one.arrival_s < 300 else 6
        assert one.priority == expected
    assert {None, 5} == set(priorities(load(shifts=[{"at_s": 100, "classes": ONLY}])))
    exact = assign(
        [Request(99.9, 1, 1), Request(100.0, 1, 1)], (), read_shifts([{"at_s": 100, "classes": ONLY}], ""), 0
    )
    assert priorities(exact) == [None, 5]


def test_a_phases_own_classes_come_before_those_of_the_traffic() -> None:
    phases = [PHASE, {**PHASE, "name": "b", "classes": ONLY}]
    drawn = load(phases=phases, classes=MIXED, shifts=[{"at_s": 1200, "classes": MIXED}])
    assert {one.priority for one in drawn if one.phase == "b"} == {5}
    assert {one.priority for one in drawn if one.phase == "a"} == {10, 0}
    mixed = load(phases=[{**PHASE, "classes": MIXED}])
    assert [(one.arrival_s, one.prompt_tokens) for one in mixed] == [
        (one.arrival_s, one.prompt_tokens) for one in load()
    ]
    assert priorities(mixed).count(10) / len(mixed) == pytest.approx(0.3, abs=0.03)


NO_CLASSES = "is not a list of classes; allowed: null, or a list of {priority"


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({}, f"x: classes = {{}}: {NO_CLASSES}"),
        ([], f"x: classes = []: {NO_CLASSES}"),
        ([3], "x.classes[0]: 3: is not a section of keys and values"),
        ([{"priority": 1, "share": 1, "slo": 2}], "x.classes[0]: slo = 2: unknown key; allowed: priority, share"),
        ([{"share": 1}], "x.classes[0]: priority = None: is no priority; allowed: a whole number"),
        ([{"priority": 1.5, "share": 1}], "x.classes[0]: priority = 1.5: is no priority; allowed: a whole number"),
        ([{"priority": True, "share": 1}], "x.classes[0]: priority = True: is no priority; allowed: a whole number"),
        ([{"priority": 1}], "x.classes[0]: share: is missing; allowed: a number > 0"),
        ([{"priority": 1, "share": 0}], "x.classes[0]: share = 0: is out of range; allowed: a number > 0"),
        ([MIXED[0], MIXED[0]], "x.classes[1]: priority = 10: is there twice; allowed: "),
    ],
)
def test_classes_that_cannot_be_used(classes: object, message: str) -> None:
    with pytest.raises(InputError, match="^" + re.escape(message)):
        read_classes(classes, "x")


@pytest.mark.parametrize(
    ("shifts", "message"),
    [
        ([], "x: shifts = []: is not a list of shifts; allowed: null, or a list of {at_s"),
        ([{"at_s": -1, "classes": MIXED}], "x.shifts[0]: at_s = -1: is out of range; allowed: a number >= 0"),
        ([{"at_s": 5}], "x.shifts[0]: classes: is missing; allowed: null, or a list of {priority"),
        ([{"at_s": 5, "classes": []}], "x.shifts[0]: classes = []: is not a list of classes"),
        ([{"at_s": 5, "shares": []}], "x.shifts[0]: shares = []: unknown key; allowed: at_s, classes"),
        (
            [{"at_s": 5, "classes": MIXED}, {"at_s": 5, "classes": ONLY}],
            "x.shifts[1]: at_s = 5.0: is not in order of time; allowed: a number > 5, when the shift before begins",
        ),
    ],
)
def test_shifts_that_cannot_be_used(shifts: object, message: str) -> None:
    with pytest.raises(InputError, match="^" + re.escape(message)):
        read_shifts(shifts, "x")


def test_what_is_wrong_in_a_traffic_is_named() -> None:
    with pytest.raises(InputError, match=r"^traffic\.classes\[0\]: share = -1"):
        load(classes=[{"priority": 1, "share": -1}])
    with pytest.raises(InputError, match=r"^traffic\.phases\[0\]\.classes\[0\]: share = -1"):
        load(phases=[{**PHASE, "classes": [{"priority": 1, "share": -1}]}])
