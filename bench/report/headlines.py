"""What a reader must know of a result before its table: how arms compare, what did not end well, what came last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.report.metrics import median_over_repeats
from bench.report.tail import left_out

Row = Mapping[str, Any]

NOT_COMPLETED = {"short": "short", "empty": "empty", "aborted": "aborted", "errors": "ended by an error"}
"""Per key of a run, how a sentence says it."""

LONG_TAIL = 0.1
"""Share of a run's duration that its last requests may add before the headline says so."""


def verdict_lines(result: Mapping[str, Any]) -> list[str]:
    """Sentences: one per arm compared, then what was not completed, then the runs that a few requests made long."""
    return [*_compared(result), *_not_completed(result["runs"]), *_long_tails(result["runs"])]


def note_lines(result: Mapping[str, Any]) -> list[str]:
    """A line for each thing that was done to the traffic before it was replayed, and that qualifies the figures."""
    traffic = [f"traffic: {note['text']}" for note in result.get("traffic_notes", ())]
    return traffic + [f"note: {note}" for note in result.get("notes", ())]


def _compared(result: Mapping[str, Any]) -> list[str]:
    """One per arm compared: its goodput over the baseline's, median and range of the paired ratios.

    Attainment stands beside it: a large ratio of two arms that hardly meet the SLO is no gain.
    """
    lines = []
    for pair, table in result["ratios"].items():
        ratio = table.get("goodput_per_s")
        arm, baseline = pair.split("/")
        if ratio is None:
            lines.append(f"{arm} against {baseline}: no pair of runs to compare.")
            continue
        pairs = f"{ratio['pairs']} pair" + ("s" if ratio["pairs"] != 1 else "")
        span = f"min {ratio['min']:.2f}, max {ratio['max']:.2f}, {pairs}"
        text = f"{arm} against {baseline}: goodput × {ratio['median']:.2f} ({span})"
        met = [median_over_repeats(result["runs"], one, "attainment") for one in (arm, baseline)]
        tail = [
            f"{label} × {table[metric]['median']:.2f}"
            for label, metric in (("TTFT P99", "ttft_p99_s"), ("ITL P99", "itl_p99_s"))
            if metric in table
        ]
        lines.append(", ".join([text, *tail]) + f"; SLO met by {met[0]:.1%} against {met[1]:.1%} of requests.")
    return lines


def _not_completed(runs: Sequence[Row]) -> list[str]:
    """One per arm with requests that were not completed, over all its runs that lived."""
    lines = []
    for arm, lived in _by_arm(runs).items():
        counts = {name: sum(run[name] for run in lived) for name in NOT_COMPLETED}
        told = [f"{count} {NOT_COMPLETED[name]}" for name, count in counts.items() if count]
        if counts["short"]:
            least = min(run["short_share"] for run in lived if run["short"])
            told[0] += f" (with {least:.0%} of the tokens that they were to have)"
        if told:
            total = sum(run["requests"] for run in lived)
            lines.append(f"{arm}: {sum(counts.values())} of {total} requests were not completed: {', '.join(told)}.")
    return lines


def _long_tails(runs: Sequence[Row]) -> list[str]:
    """One per arm whose last requests made a run much longer: of its runs, the one they added the most to."""
    lines = []
    for arm, lived in _by_arm(runs).items():
        run = max(lived, key=_tail_s)
        if not _long(run):
            continue
        of_arrivals = run["goodput_arrivals_per_s"]
        figures = f"{run['goodput_per_s']:.3g} req/s over the whole run"
        if of_arrivals is not None:
            figures += f", {of_arrivals:.3g} over the time in which requests arrived"
        most = f"all but {left_out(run['requests'])}"
        lines.append(
            f"{arm}: the last request arrived at {run['last_arrival_s']:.1f} s, {most} were over at "
            f"{run['ended_99_s']:.1f} s, the last at {run['duration_s']:.1f} s; goodput {figures}."
        )
    return lines


def sweep_lines(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """Sentences on the units of a sweep: how many have requests that were not completed, or were made long by a few."""
    units = [unit for cell in cells for unit in cell["arms"].values() if unit["status"] == "ok"]
    lines = []
    counts = {name: sum(unit.get(name) or 0 for unit in units) for name in NOT_COMPLETED}
    hit = sum(any(unit.get(name) for name in NOT_COMPLETED) for unit in units)
    if hit:
        told = ", ".join(f"{count} {NOT_COMPLETED[name]}" for name, count in counts.items() if count)
        lines.append(f"In {hit} of {len(units)} runs requests were not completed: {told}.")
    long = sum(_long(unit) for unit in units)
    if long:
        lines.append(
            f"In {long} of {len(units)} runs the last hundredth of the requests added more than a tenth to the "
            "duration, and with it to what goodput is divided by; attainment is not divided by it."
        )
    return lines


def _long(run: Row) -> bool:
    return _tail_s(run) > LONG_TAIL * (run.get("duration_s") or 0.0)


def _tail_s(run: Row) -> float:
    """Seconds that the last of the requests add after arrivals and all others are over."""
    if run.get("ended_99_s") is None:
        return 0.0
    return float(run["duration_s"] - max(run["ended_99_s"], run["last_arrival_s"]))


def _by_arm(runs: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for run in runs:
        if run["status"] == "ok":
            found.setdefault(run["arm"], []).append(run)
    return found
