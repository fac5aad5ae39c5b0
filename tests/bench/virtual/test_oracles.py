"""The best fixed setting after the fact, against examples worked out by hand and another way of finding it."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.virtual.oracles import highest_attainment, oracles, with_regret

SIZES = {"chat": 30, "long": 10}


def row(arm: str, goodput: float, chat: int, long: int, status: str = "ok") -> dict[str, Any]:
    """A row of an arm that met the SLO of so many requests of each phase."""
    met = {"chat": chat, "long": long}
    phases = {name: {"requests": size, "attainment": met[name] / size} for name, size in SIZES.items()}
    whole = {"goodput_per_s": goodput, "attainment": (chat + long) / 40}
    return {"arm": arm, "status": status, **whole, "phases": phases}


ROWS = [row("small", 3.0, 30, 2), row("large", 2.5, 12, 8), row("moving", 3.5, 28, 8), row("default", 4.0, 30, 10)]
FIXED = ("small", "large")
REGRETS = ("regret", "regret_attainment", "regret_per_phase")


def test_the_overall_oracle_is_the_fixed_arm_of_the_highest_goodput() -> None:
    found = oracles(ROWS, FIXED)
    assert found["overall"] == {"arm": "small", "goodput_per_s": 3.0, "attainment": 0.8}


def test_the_oracle_per_phase_runs_each_phase_under_its_own_best() -> None:
    found = oracles(ROWS, FIXED)
    assert found["per_phase"]["phases"] == {
        "chat": {"arm": "small", "attainment": 1.0},
        "long": {"arm": "large", "attainment": 0.8},
    }
    assert found["per_phase"]["attainment"] == 38 / 40  # weighed by requests, not 0.9


def test_regret_is_the_share_that_an_arm_does_not_reach() -> None:
    rows = with_regret(ROWS, oracles(ROWS, FIXED))
    assert [{k: v for k, v in one.items() if not k.startswith("regret")} for one in rows] == ROWS
    assert [one["regret"] for one in rows] == pytest.approx([0.0, 1 / 6, -1 / 6, -1 / 3])
    assert [one["regret_per_phase"] for one in rows] == pytest.approx([1 - 32 / 38, 1 - 20 / 38, 1 - 36 / 38, -2 / 38])


def test_arms_that_crashed_are_no_oracles_and_have_no_regret() -> None:
    crashed = {**row("small", 9.0, 30, 10, status="crashed"), "goodput_per_s": None, "attainment": None, "phases": {}}
    rows = [crashed, *ROWS[1:]]
    found = oracles(rows, FIXED)
    assert found["overall"]["arm"] == "large"
    assert {phase["arm"] for phase in found["per_phase"]["phases"].values()} == {"large"}
    shown = with_regret(rows, found)[0]
    assert [shown[key] for key in REGRETS] == [None] * 3


@pytest.mark.parametrize("fixed", [(), ("nobody",)])
def test_without_a_fixed_arm_there_is_no_oracle_and_no_regret(fixed: tuple[str, ...]) -> None:
    found = oracles(ROWS, fixed)
    assert found == {"overall": None, "per_phase": None}
    assert highest_attainment(ROWS, fixed) is None
    assert all(one[key] is None for one in with_regret(ROWS, found) for key in REGRETS)


def test_an_oracle_at_zero_is_no_measure() -> None:
    rows = [row("small", 0.0, 0, 0), row("default", 1.0, 30, 10)]
    found = oracles(rows, FIXED)
    assert found["overall"]["goodput_per_s"] == found["per_phase"]["attainment"] == 0.0
    assert all(one[key] is None for one in with_regret(rows, found) for key in REGRETS)


def test_of_equals_the_first_stands() -> None:
    rows = [row("small", 3.0, 15, 5), row("large", 3.0, 15, 5)]
    for order in (rows, rows[::-1]):
        found = oracles(order, FIXED)
        first = order[0]["arm"]
        assert found["overall"]["arm"] == first
        assert {phase["arm"] for phase in found["per_phase"]["phases"].values()} == {first}


met = st.tuples(st.integers(0, SIZES["chat"]), st.integers(0, SIZES["long"]))
many = st.lists(met, min_size=1, max_size=6)


def rows_of(all_met: list[tuple[int, int]]) -> list[dict[str, Any]]:
    """Goodput in the order of attainment, as with arms of one duration."""
    return [row(f"arm{place}", (chat + long) / 8, chat, long) for place, (chat, long) in enumerate(all_met)]


@given(many)
def test_oracles_are_the_maxima(all_met: list[tuple[int, int]]) -> None:
    rows = rows_of(all_met)
    found = oracles(rows, [one["arm"] for one in rows])
    assert found["overall"]["goodput_per_s"] == max(chat + long for chat, long in all_met) / 8
    reached = Fraction(max(chat for chat, _ in all_met) + max(long for _, long in all_met), 40)
    assert found["per_phase"]["attainment"] == pytest.approx(float(reached), rel=1e-12)


@given(many)
def test_nothing_fixed_beats_the_oracle_per_phase(all_met: list[tuple[int, int]]) -> None:
    rows = rows_of(all_met)
    found = oracles(rows, [one["arm"] for one in rows])
    assert found["per_phase"]["attainment"] >= found["overall"]["attainment"] - 1e-12
    for one in with_regret(rows, found):
        assert one["regret"] is None or one["regret"] >= 0
        assert one["regret_per_phase"] is None or one["regret_per_phase"] >= -1e-12


@given(many, st.randoms(use_true_random=False))
def test_the_order_of_rows_decides_between_equals_alone(all_met: list[tuple[int, int]], random: Any) -> None:
    rows = rows_of(all_met)
    shuffled = random.sample(rows, len(rows))
    one, other = (oracles(order, [each["arm"] for each in rows]) for order in (rows, shuffled))
    assert one["overall"]["goodput_per_s"] == other["overall"]["goodput_per_s"]
    for phase in SIZES:
        best = {each["arm"] for each in rows if each["phases"][phase] == one_phase(one, phase, rows)}
        assert {one["per_phase"]["phases"][phase]["arm"], other["per_phase"]["phases"][phase]["arm"]} <= best
    assert one["per_phase"]["attainment"] == other["per_phase"]["attainment"]


def one_phase(found: dict[str, Any], phase: str, rows: list[dict[str, Any]]) -> Any:
    (mine,) = (each for each in rows if each["arm"] == found["per_phase"]["phases"][phase]["arm"])
    return mine["phases"][phase]


def test_a_request_that_hangs_does_not_decide_the_regret_of_attainment() -> None:
    """It makes the run sixty times as long, and its goodput as much less."""
    hung = {**row("default", 29 / 600, 29, 0), "attainment": 29 / 40}
    found = oracles([row("small", 3.0, 30, 0), row("large", 2.0, 20, 9), hung], FIXED)
    highest = highest_attainment([row("small", 3.0, 30, 0), row("large", 2.0, 20, 9), hung], FIXED)
    assert highest == 0.75
    shown = with_regret([hung], found, highest)[0]
    assert shown["regret"] > 0.98
    assert shown["regret_attainment"] == pytest.approx(1 / 30)
