"""Ratios to the best fixed setting, against values worked out by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest
from rich.console import Console

from bench.sweep.capacity import Point, capacities
from bench.sweep.page import unit_rows
from bench.sweep.shortfalls import shortfalls
from bench.sweep.summary import Judged, by_value, cell_result, judged, summary
from bench.sweep.tables import Shown, cells_table, shortfalls_table, summary_table, tables
from tests.bench.sweep.cells import crashed, row

ARMS = ["default", "adaptive", "small", "large"]
FIXED = ["small", "large"]

# Requests of 100 that met the SLO: default, adaptive, small, large. None: crashed.
CELLS = {
    "half": (80, 100, 50, 80),  # best fixed: large, 0.8
    "near": (30, 45, 60, 20),  # small, 0.6
    "past": (10, 29, 29, 2),  # small, 0.29: below 0.3
    "edge": (None, 15, 30, 30),  # small, the first of equals, 0.3
    "none": (0, 10, 0, 0),  # 0: no ratio
}


def cells() -> list[Judged]:
    found = []
    for name, mets in CELLS.items():
        rows = [crashed(arm) if met is None else row(arm, met) for arm, met in zip(ARMS, mets, strict=True)]
        found.append(judged(name, {"load": name}, rows, FIXED))
    return found


def test_a_cell_is_held_against_its_best_fixed_setting() -> None:
    half, near, past, edge, none = cells()
    assert half.ratios == {"default": 1.0, "adaptive": 1.25, "small": 0.625, "large": 1.0}
    assert near.ratios == pytest.approx({"default": 0.5, "adaptive": 0.75, "small": 1.0, "large": 1 / 3})
    assert edge.ratios == {"default": None, "adaptive": 0.5, "small": 1.0, "large": 1.0}
    assert none.ratios == dict.fromkeys(ARMS)
    assert [c.oracle["overall"]["arm"] for c in (half, near, past, edge)] == ["large", "small", "small", "small"]
    assert half.rows["adaptive"]["regret"] == pytest.approx(-0.25)
    assert edge.rows["default"]["regret"] is None
    assert [c.counts(0.3) for c in (half, near, past, edge, none)] == [True, True, False, True, False]


def test_the_summary_is_over_the_cells_that_count() -> None:
    default, adaptive, small, large = summary(cells(), ARMS, 0.3)
    of_default = {"min": 0.5, "median": 0.75, "max": 1.0, "worst": "near", "cells": 2}
    assert default == {
        "arm": "default", **of_default, "crashes": 1, "good_tokens": of_default, "against": {},
        "attainment": of_default, "weighted": of_default, "weighted_tokens": of_default,
        # Tokens per second of default and of the best fixed: 90 and 90, 65 and 80; prompts wait for 2 s and 7 s.
        "cost_median": pytest.approx((1 + 80 / 65) / 2), "longest_tenth_ttft_p99_median_s": 4.5,
    }  # fmt: skip
    of_adaptive = {"min": 0.5, "median": 0.75, "max": 1.25, "worst": "edge", "cells": 3}
    assert adaptive == {
        "arm": "adaptive", **of_adaptive, "crashes": 0, "good_tokens": of_adaptive, "against": {},
        "attainment": of_adaptive, "weighted": of_adaptive, "weighted_tokens": of_adaptive,
        "cost_median": pytest.approx(80 / 72.5), "longest_tenth_ttft_p99_median_s": 5.5,
    }  # fmt: skip
    assert (small["min"], small["median"], small["max"]) == (0.625, 1.0, 1.0)
    assert (large["min"], large["median"], large["max"]) == (pytest.approx(1 / 3), 1.0, 1.0)


def test_an_arm_that_always_crashed_has_no_ratio_and_keeps_its_row() -> None:
    lost = [judged("half", {}, [crashed("default"), row("small", 90)], ["small"])]
    nothing = {"min": None, "median": None, "max": None, "worst": None, "cells": 0}
    assert summary(lost, ["default"], 0.3) == [
        {"arm": "default", **nothing, "crashes": 1, "good_tokens": nothing, "attainment": nothing, "against": {},
         "weighted": nothing, "weighted_tokens": nothing, "cost_median": None, "longest_tenth_ttft_p99_median_s": None}
    ]  # fmt: skip
    assert unit_rows(cell_result(lost[0]))[0]["status"] == "crashed: ValueError: <no> such flag"


def test_a_cell_without_a_fixed_arm_that_lived_has_no_oracle() -> None:
    lost = judged("half", {}, [row("default", 90), crashed("small")], ["small"])
    assert (lost.oracle_attainment, lost.ratios) == (None, {"default": None, "small": None})
    assert not lost.counts(0.0)


def test_good_tokens_are_held_against_the_most_of_any_fixed_arm() -> None:
    """Which need not be the arm with the most goodput."""
    long = {**row("large", 40), "good_tokens_per_s": 80.0}
    found = judged("half", {}, [row("default", 20), row("small", 50), long, crashed("adaptive")], FIXED)
    assert found.oracle["overall"]["arm"] == "small"
    assert found.token_ratios == {"default": 0.25, "small": 0.625, "large": 1.0, "adaptive": None}
    assert found.cost_ratios == {
        "default": pytest.approx(75 / 60), "small": 1.0, "large": pytest.approx(75 / 70), "adaptive": None
    }  # fmt: skip


def ordered() -> list[Judged]:
    """Two cells with settings of a further oracle; in the second these crashed."""
    rows = [row("default", 45), row("small", 60), row("ordered_c1", 75), row("ordered_c2", 90)]
    lost = [*rows[:2], crashed("ordered_c1"), crashed("ordered_c2")]
    others = {"ordered": ["ordered_c1", "ordered_c2"]}
    return [judged(name, {"load": name}, found, ["small"], others) for name, found in (("half", rows), ("near", lost))]


def test_a_further_oracle_is_held_against_beside_the_first() -> None:
    half, near = ordered()
    assert half.ratios == {"default": 0.75, "small": 1.0, "ordered_c1": 1.25, "ordered_c2": 1.5}
    assert half.against["ordered"] == pytest.approx(
        {"default": 0.5, "small": 2 / 3, "ordered_c1": 5 / 6, "ordered_c2": 1}
    )
    assert half.others["ordered"]["overall"]["arm"] == "ordered_c2"
    assert near.against["ordered"] == dict.fromkeys(near.rows)
    shown = cell_result(half)
    assert shown["oracles"]["overall"]["arm"] == "small"
    assert shown["other_oracles"]["ordered"]["overall"]["arm"] == "ordered_c2"
    assert shown["arms"]["default"]["against"] == {"ordered": 0.5}
    default = summary([half, near], ["default"], 0.3)[0]
    assert (default["cells"], default["min"], default["max"]) == (2, 0.75, 0.75)
    spread = {"min": 0.5, "median": 0.5, "max": 0.5, "worst": "half", "cells": 1}
    assert default["against"] == {"ordered": spread}


def test_cells_are_grouped_by_a_value_of_an_axis() -> None:
    found = [
        judged(f"{traffic}, {load}", {"traffic": traffic, "load": load}, [row("small", 60)], ["small"])
        for load in ("half", "near") for traffic in ("chat", "code")
    ]  # fmt: skip
    assert {value: [cell.name for cell in group] for value, group in by_value(found, "traffic").items()} == {
        "chat": ["chat, half", "chat, near"], "code": ["code, half", "code, near"]
    }  # fmt: skip


def result() -> dict[str, Any]:
    """As the command makes it."""
    found = cells()
    about = {
        "requests": 100, "requests_clipped": 3, "offered_per_s": 10.0, "last_arrival_s": 10.0, "slo": "TTFT <= 2.0 s",
        "device": {"name": "H<1>", "count": 1, "model": "m"},
    }  # fmt: skip
    return {
        "name": "trial <1>", "axes": {"load": list(CELLS)}, "along": "load", "arms": ARMS, "fixed": FIXED,
        "oracles": {"fixed": FIXED}, "group_by": "load", "capacity": capacity(found),
        "least_attainment": 0.3, "least_ratio": 0.98, "cells_counted": 3,
        "shortfalls": shortfalls(found, ["adaptive"], 0.98, 0.3), "summary": summary(found, ARMS, 0.3),
        "groups": [{"value": "half", "cells": 1, "cells_counted": 1, "summary": summary(found[:1], ARMS, 0.3)}],
        "cells": [{**cell_result(cell), **about} for cell in found],
    }  # fmt: skip


def capacity(found: list[Judged]) -> dict[str, Any]:
    points = [
        Point(cell.place, scale, {arm: one["attainment"] for arm, one in cell.rows.items()})
        for scale, cell in enumerate(found, start=1)
    ]
    return capacities(points, ARMS, "load", 0.6, "default")


def printed(table: Shown) -> list[str]:
    console = Console(width=160)
    with console.capture() as capture:
        console.print(table.rich())
    return capture.get().splitlines()


def test_the_tables_say_so() -> None:
    whole, group, cost, capacities, behind = map(printed, tables(result()))
    assert "goodput / goodput of the best fixed setting, 3 of 5 cells" in whole[0]
    (adaptive,) = (line for line in whole if "adaptive" in line)
    assert adaptive.split()[1::2] == ["adaptive", *["0.50", "0.75", "1.25"] * 2, "3", "0", "edge"]
    assert any("small (fixed)" in line for line in whole)
    assert "at load = half: goodput / goodput of the best fixed setting, 1 of 1 cells" in group[0]
    (adaptive,) = (line for line in group if "adaptive" in line)
    assert adaptive.split()[1::2] == ["adaptive", *["1.25"] * 6, "1", "0", "half"]
    (default,) = (line for line in cost if "default" in line)
    assert default.split()[1::2] == ["default", "0.50", "0.75", "1.00", "1.12", "4.50"]
    (default,) = (line for line in capacities if "default" in line and "of default" not in line)
    assert default.split()[1::2] == ["default", "1.4", "1.00", "1.00", "1.00"]  # 80% at 1, 30% at 2
    (adaptive,) = (line for line in capacities if "adaptive" in line)
    assert adaptive.split()[1::2] == ["adaptive", "1.73", "1.23", "1.23", "1.23"]  # 100% at 1, 45% at 2
    assert "below 0.98 of the best fixed setting" in behind[0]
    lines = printed(cells_table(result()))
    (edge,) = (line for line in lines if "edge" in line)
    assert edge.split()[1::2] == ["edge", "small", "30.0", "crashed", "0.50"]
    (none,) = (line for line in lines if "none" in line)
    assert none.split()[1::2] == ["none", "small", "0.0", "–", "–"]


def test_the_tables_name_a_further_oracle() -> None:
    found = ordered()
    arms = list(found[0].rows)
    shown = {
        **result(), "arms": arms, "fixed": ["small"], "capacity": None, "groups": [], "cells_counted": 2,
        "oracles": {"fixed": ["small"], "ordered": ["ordered_c1", "ordered_c2"]}, "shortfalls": [],
        "summary": summary(found, arms, 0.3),
        "cells": [cell_result(cell) for cell in found],
    }  # fmt: skip
    table = cells_table(shown)
    assert table.columns == ("cell", "best fixed", "SLO met %", "best ordered", "default")
    assert table.rows == (
        ("half", "small", "60.0", "ordered_c2", "0.75 / 0.50"), ("near", "small", "60.0", "crashed", "0.75 / –")
    )  # fmt: skip
    whole, cost = tables(shown)
    assert whole.columns[7:10] == ("/ ordered min", "/ ordered median", "/ ordered max")
    assert whole.rows[0] == ("default", *["0.75"] * 6, *["0.50"] * 3, "2", "0", "half")
    assert (whole.bad, len(cost.rows)) == ({2, 3}, 4)


def test_the_table_of_cells_is_markdown_for_a_document() -> None:
    lines = cells_table(result()).markdown().splitlines()
    assert lines[:2] == ["| cell | best fixed | SLO met % | default | adaptive |", "| --- | --: | --: | --: | --: |"]
    assert [line.split(" | ")[0] for line in lines[2:]] == [f"| {cell['cell']}" for cell in result()["cells"]]
    assert "| edge | small | 30.0 | crashed | 0.50 |" in lines
    assert "| none | small | 0.0 | – | – |" in lines


def test_a_stroke_in_a_text_is_no_border_and_a_last_column_of_text_stands_on_the_left() -> None:
    shown = Shown("title", "", ("arm", "worst in"), (("a|b", "load|past"), ("c", "d")), last_wide=True)
    assert shown.markdown() == "| arm | worst in |\n| --- | --- |\n| a\\|b | load\\|past |\n| c | d |"


def test_the_result_is_json() -> None:
    assert json.loads(json.dumps(result())) == result()


def test_cells_below_the_least_ratio_are_listed_with_both_sides_the_worst_first() -> None:
    """Edge has 0.50 and near 0.75 of their best; half is above, past and none do not count."""
    listed = shortfalls(cells(), ["adaptive"], 0.98, 0.3)
    assert [(one["cell"], one["ratio"]) for one in listed] == [("edge", 0.5), ("near", 0.75)]
    both: dict[str, Any] = {
        "duration_s": 10.0,
        "missed": {"not_completed": 0, "ttft": 55, "gap": 0, "mean": 0, "e2e": 0},
    }
    assert listed[1]["ours"] == {"arm": "adaptive", "goodput_per_s": 4.5, "attainment": 0.45, **both}
    both["missed"]["ttft"] = 40
    assert listed[1]["best"] == {"arm": "small", "goodput_per_s": 6.0, "attainment": 0.6, **both}
    assert [one["cell"] for one in shortfalls(cells(), ["adaptive"], 0.75, 0.3)] == ["edge"]  # 0.75 is not below 0.75
    assert [one["cell"] for one in shortfalls(cells(), ["adaptive"], 1.26, 0.0)] == ["edge", "near", "past", "half"]


def test_a_crash_is_listed_whatever_the_ratio() -> None:
    (first, *_) = shortfalls(cells(), ["default"], 0.0, 0.3)
    assert (first["cell"], first["ratio"], first["ours"]["attainment"]) == ("edge", None, None)
    table = shortfalls_table({"least_ratio": 0.0, "shortfalls": [first]})
    assert table.rows[0][:5] == ("edge", "default", "crashed", "–", "10.00")


def test_the_list_says_what_was_missed() -> None:
    slow = {
        **row("adaptive", 90, seconds=12.5),
        "missed": {"not_completed": 1, "ttft": 4, "gap": 9, "mean": 0, "e2e": 2},
    }
    cell = judged("near", {}, [slow, row("small", 100)], ["small"])
    table = shortfalls_table({"least_ratio": 0.98, "shortfalls": shortfalls([cell], ["adaptive"], 0.98, 0.3)})
    assert table.rows == (
        ("near", "adaptive", "0.720", "90.0", "12.50", "small", "100.0", "10.00",
         "nothing; not completed 1, first token 4, gaps 9, whole answer 2"),
    )  # fmt: skip


def test_weights_have_ratios_of_their_own_and_columns_only_where_they_say_something() -> None:
    """By weight the larger setting is the best: 9 of its 40 requests a second count for 5 each."""
    heavy = {**row("large", 40), "weighted_goodput_per_s": 12.0, "weighted_good_tokens_per_s": 90.0}
    found = judged("half", {}, [row("default", 30), row("small", 50), heavy], FIXED)
    assert found.oracle["overall"]["arm"] == "small"
    assert found.weighted_ratios == {"default": 0.25, "small": pytest.approx(5 / 12), "large": 1.0}
    assert found.weighted_token_ratios == {"default": pytest.approx(1 / 3), "small": pytest.approx(5 / 9), "large": 1.0}
    shown = {**result(), "arms": ["default"], "cells": [cell_result(found)]}
    group = {"value": None, "cells": 1, "cells_counted": 1, "summary": summary([found], ["default"], 0.3)}
    columns = summary_table(shown, group).columns
    assert columns[7:13] == (*(f"weighted {one}" for one in ("min", "median", "max")),
                             *(f"weighted tokens {one}" for one in ("min", "median", "max")))  # fmt: skip
    assert summary_table(shown, group).rows[0][7:13] == (*["0.25"] * 3, *["0.33"] * 3)
    assert not any("weighted" in column for table in tables(result()) for column in table.columns)
