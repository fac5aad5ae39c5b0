"""Ratios to the best fixed setting, against values worked out by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest
from rich.console import Console
from sweep_cells import crashed, row

from bench.sweep.page import unit_rows
from bench.sweep.summary import Judged, cell_result, judged, summary
from bench.sweep.tables import cells_table, summary_table

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
    assert default == {
        "arm": "default", "min": 0.5, "median": 0.75, "max": 1.0, "worst": "near", "cells": 2, "crashes": 1
    }  # fmt: skip
    assert adaptive == {
        "arm": "adaptive", "min": 0.5, "median": 0.75, "max": 1.25, "worst": "edge", "cells": 3, "crashes": 0
    }  # fmt: skip
    assert (small["min"], small["median"], small["max"]) == (0.625, 1.0, 1.0)
    assert (large["min"], large["median"], large["max"]) == (pytest.approx(1 / 3), 1.0, 1.0)


def test_an_arm_that_always_crashed_has_no_ratio_and_keeps_its_row() -> None:
    lost = [judged("half", {}, [crashed("default"), row("small", 90)], ["small"])]
    assert summary(lost, ["default"], 0.3) == [
        {"arm": "default", "min": None, "median": None, "max": None, "worst": None, "cells": 0, "crashes": 1}
    ]
    assert unit_rows(cell_result(lost[0]))[0]["status"] == "crashed: ValueError: <no> such flag"


def test_a_cell_without_a_fixed_arm_that_lived_has_no_oracle() -> None:
    lost = judged("half", {}, [row("default", 90), crashed("small")], ["small"])
    assert (lost.oracle_attainment, lost.ratios) == (None, {"default": None, "small": None})
    assert not lost.counts(0.0)


def result() -> dict[str, Any]:
    """As the command makes it."""
    found = cells()
    about = {
        "requests": 100, "requests_clipped": 3, "offered_per_s": 10.0, "last_arrival_s": 10.0, "slo": "TTFT <= 2.0 s",
        "device": {"name": "H<1>", "count": 1, "model": "m"},
    }  # fmt: skip
    return {
        "name": "trial <1>", "axes": {"load": list(CELLS)}, "along": "load", "arms": ARMS, "fixed": FIXED,
        "least_attainment": 0.3, "cells_counted": 3, "summary": summary(found, ARMS, 0.3),
        "cells": [{**cell_result(cell), **about} for cell in found],
    }  # fmt: skip


def printed(table: object) -> list[str]:
    console = Console(width=160)
    with console.capture() as capture:
        console.print(table)
    return capture.get().splitlines()


def test_the_tables_say_so() -> None:
    lines = printed(summary_table(result()))
    assert "goodput / goodput of the best fixed setting, 3 of 5 cells" in lines[0]
    (adaptive,) = (line for line in lines if "adaptive" in line)
    assert adaptive.split()[1::2] == ["adaptive", "0.50", "0.75", "1.25", "3", "0", "edge"]
    assert any("small (fixed)" in line for line in lines)
    lines = printed(cells_table(result()))
    (edge,) = (line for line in lines if "edge" in line)
    assert edge.split()[1::2] == ["edge", "small", "30.0", "crashed", "0.50"]
    (none,) = (line for line in lines if "none" in line)
    assert none.split()[1::2] == ["none", "small", "0.0", "–", "–"]


def test_the_result_is_json() -> None:
    assert json.loads(json.dumps(result())) == result()
