"""A grid of virtual experiments, each arm in each cell, on all cores; results on disk outlive it, tables, a JSON line.

    python -m bench.sweep axes=first_table azure_conv=FILE.csv azure_code=FILE.csv mooncake=FILE.jsonl

The same command again runs only what is missing. Any key of conf/bench/sweep.yaml can be overridden in hydra's syntax,
as percentiles=[50,99,99.9], the percentiles of the latencies that the page shows.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from bench.command import leave_when_asked, listed, overrides_of
from bench.composition import read_config, writable
from bench.report.headlines import sweep_lines
from bench.sweep.capacity import Point, capacities
from bench.sweep.page import write_page
from bench.sweep.run import run_missing, units_of
from bench.sweep.settings import SweepSettings
from bench.sweep.shortfalls import shortfalls
from bench.sweep.store import Outcome, ResultFile
from bench.sweep.summary import Judged, by_value, cell_result, judged, summary
from bench.sweep.tables import cells_table, shortfalls_table, tables
from bench.virtual.arms import FIXED
from roofline_policies.errors import EXIT_BAD_INPUT, InputError

GROUPS = ("axes", "arm")
CELL_GROUPS = ("traffic", "hardware", "model", "slo", "draft")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: 0, EXIT_BAD_INPUT before anything ran, 1 if every unit crashed."""
    overrides = overrides_of(
        argv,
        "sweep",
        __doc__,
        epilog=f"groups of conf/ (axes=first_table, arms=[default,fixed_grid]):\n{listed(GROUPS)}\n"
        f"for overrides, of all cells or of a value (overrides=['model=qwen3_8b']):\n{listed(CELL_GROUPS)}\n"
        "an axis of your own: axes=none \"+axes.load={x1: ['traffic.rate_scale=1'], x2: ['traffic.rate_scale=2']}\"\n"
        "without a value of an axis: ~axes.traffic.mooncake",
    )
    leave_when_asked()
    try:
        settings = SweepSettings.from_config(read_config("sweep", overrides))
        writable(settings.out_dir, "sweep")
        for told, cells in settings.notes.items():
            others = f" and {len(cells) - 1} more" if len(cells) > 1 else ""
            print(f"traffic of {cells[0]}{others}: {told}", file=sys.stderr)
        with ResultFile(settings.out_dir / "results.jsonl") as results:
            outcomes = _finish(settings, results)
    except InputError as error:
        print(error, file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted; what had finished is kept, the same command goes on from there", file=sys.stderr)
        return 130
    result = result_of(settings, outcomes)
    (settings.out_dir / "sweep.json").write_text(json.dumps(result) + "\n", encoding="utf-8")
    page = write_page(settings.out_dir / "sweep.html", result)
    console = Console(width=None if sys.stdout.isatty() else 200)
    for table in [*tables(result), cells_table(result)]:
        console.print(table.rich())
    if settings.markdown:
        print(cells_table(result).markdown())
        if result["shortfalls"]:
            print("\n" + shortfalls_table(result).markdown())
    for line in sweep_lines(result["cells"]):
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"every cell and arm: {page}", highlight=False, soft_wrap=True)
    print(json.dumps(result))
    return 1 if all(outcome.crashed for outcome in outcomes.values()) else 0


def result_of(settings: SweepSettings, outcomes: dict[str, Outcome]) -> dict[str, Any]:
    """Everything the sweep found, ready for JSON; nothing in it depends on when or where a unit ran."""
    arms, picked = [arm.name for arm in settings.arms], settings.oracles
    others = {label: names for label, names in picked.items() if label != FIXED}
    least = settings.least_attainment
    # A result is found by what decides it, which a name does not: the row is this sweep's arm, whatever it was called.
    cells = [
        judged(
            cell.name, cell.place, [{**outcomes[cell.keys[arm]].row, "arm": arm} for arm in arms], picked[FIXED], others
        )
        for cell in settings.cells
    ]  # fmt: skip
    groups = {} if settings.group_by is None else by_value(cells, settings.group_by)
    return {
        "name": settings.name,
        "executor": "virtual clock",
        "axes": {axis: list(values) for axis, values in settings.axes.items()},
        "along": settings.along,
        "arms": arms,
        "fixed": picked[FIXED],
        "oracles": picked,
        "least_attainment": least,
        "least_ratio": settings.least_ratio,
        "examined": list(settings.examined),
        "shortfalls": shortfalls(cells, settings.examined, settings.least_ratio, least),
        "percentiles": list(settings.percentiles),
        "cells_counted": sum(cell.counts(least) for cell in cells),
        "summary": summary(cells, arms, least),
        "group_by": settings.group_by,
        "groups": [
            {
                "value": value,
                "cells": len(group),
                "cells_counted": sum(cell.counts(least) for cell in group),
                "summary": summary(group, arms, least),
            }
            for value, group in groups.items()
        ],
        "capacity": _capacity(settings, cells, arms),
        "cells": [{**cell_result(one), **about.described()} for one, about in zip(cells, settings.cells, strict=True)],
    }


def _capacity(settings: SweepSettings, cells: Sequence[Judged], arms: Sequence[str]) -> dict[str, Any] | None:
    if settings.along is None:
        return None
    points = [
        Point(cell.place, cell.rate_scale, {arm: row["attainment"] for arm, row in one.rows.items()})
        for cell, one in zip(settings.cells, cells, strict=True)
    ]
    return capacities(points, arms, settings.along, settings.capacity_attainment, settings.capacity_baseline)


def _finish(settings: SweepSettings, results: ResultFile) -> dict[str, Outcome]:
    """Run what the file lacks; the outcomes of all units, by key."""
    units = units_of(settings)
    missing = [
        unit
        for unit in units
        if (found := results.outcomes.get(unit.key)) is None or (found.crashed and settings.retry_crashed)
    ]
    console = Console(stderr=True)
    if results.unreadable:
        console.print(f"{results.path}: {results.unreadable} lines are no results and are left out", soft_wrap=True)
    there, others = len(units) - len(missing), len(results.outcomes.keys() - {unit.key for unit in units})
    if results.outcomes:
        told = f", and {others} of other settings or other code" if others else ""
        console.print(f"{there} of {len(units)} results are in {results.path}{told}", soft_wrap=True)
    for outcome in run_missing(missing, len(units), settings.processes, console):
        results.add(outcome)
    return {unit.key: results.outcomes[unit.key] for unit in units}


if __name__ == "__main__":
    sys.exit(main())
