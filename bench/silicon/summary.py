"""What the predictions come to: predicted over measured by group and by device, and how concurrencies rank."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from bench.silicon.runs import MeasuredRun
from bench.sweep.tables import Shown

FIGURES = ("ttft", "tpot", "throughput")
ABSENT = "–"
FITTED, APART = "fitted", "kept apart"
TIE = 0.02
"""Two measured points closer than this are no ranking."""


def compared(run: MeasuredRun, row: Mapping[str, Any], front_s: float) -> dict[str, Any]:
    """A run's measured and predicted figures and their ratios, ready for JSON; only the run where it crashed.

    front_s: what a first token takes longer than its steps, see ``FittedCosts``.
    """
    told: dict[str, Any] = {
        "run": run.run, "group": run.group, "model": run.model, "device": run.device, "sglang": run.sglang,
        "input_tokens": run.input_tokens, "output_tokens": run.output_tokens, "concurrency": run.concurrency,
        "measured": _figures(run, run.ttft_s, run.tpot_s),
    }  # fmt: skip
    if row["status"] != "ok":
        return {**told, "crash": row["crash"]}
    predicted = _figures(run, row["ttft_s"] + front_s, row["tpot_s"])
    ratios = {name: predicted[name] / told["measured"][name] for name in FIGURES}
    kept = {key: row[key] for key in ("ttft_p50_s", "tpot_p50_s", "ttft_parts", "tpot_parts", "iterations", "requests")}
    return {**told, "predicted": predicted, "ratios": ratios, **kept}


def throughput(concurrency: int, output_tokens: int, ttft_s: float, tpot_s: float) -> float:
    """Output tokens/s of a closed loop with these latencies: each slot gives an answer in one request's time."""
    return concurrency * output_tokens / (ttft_s + (output_tokens - 1) * tpot_s)


def _figures(run: MeasuredRun, ttft_s: float, tpot_s: float) -> dict[str, float]:
    rate = throughput(run.concurrency, run.output_tokens, ttft_s, tpot_s)
    return {"ttft": ttft_s, "tpot": tpot_s, "throughput": rate}


def split(groups: Iterable[str]) -> dict[str, str]:
    """Which groups constants are fitted on: of each device's, in alphabetical order, the first, third, fifth ..."""
    by_device: dict[str, list[str]] = {}
    for group in sorted(set(groups)):
        by_device.setdefault(device_of(group), []).append(group)
    return {
        group: FITTED if place % 2 == 0 else APART for found in by_device.values() for place, group in enumerate(found)
    }


def device_of(group: str) -> str:
    return group.rpartition(", ")[2].partition(" ")[0]


def errors(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of each figure the median ratio and the median and P90 of its absolute error, over rows that have one."""
    found: dict[str, Any] = {"runs": len(rows)}
    for name in FIGURES:
        ratios = np.array([row["ratios"][name] for row in rows])
        if len(ratios):
            off = np.abs(ratios - 1)
            found[name] = {
                "ratio": float(np.median(ratios)), "median_error": float(np.median(off)),
                "p90_error": float(np.quantile(off, 0.9)),
            }  # fmt: skip
    return found


def ranking(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Pairs of points that differ in concurrency alone: how many, and how many the prediction puts in the same order.

    Points that were measured within TIE of each other are left out.
    """
    alike: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        alike.setdefault((row["group"], row["sglang"], row["input_tokens"], row["output_tokens"]), []).append(row)
    found = {}
    for name in FIGURES:
        pairs = right = 0
        for points in alike.values():
            for one, other in combinations(points, 2):
                measured = one["measured"][name] / other["measured"][name]
                if one["concurrency"] == other["concurrency"] or abs(measured - 1) < TIE:
                    continue
                pairs += 1
                right += (one["predicted"][name] > other["predicted"][name]) == (measured > 1)
        found[name] = {"pairs": pairs, "right": right}
    return found


def by(rows: Sequence[Mapping[str, Any]], of: Callable[[Mapping[str, Any]], str]) -> dict[str, dict[str, Any]]:
    """``errors`` of the rows that ``of`` calls alike, in alphabetical order."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(of(row), []).append(row)
    return {name: errors(found[name]) for name in sorted(found)}


def error_table(title: str, first: str, found: Mapping[str, Mapping[str, Any]], caption: str = "") -> Shown:
    """A row for each name: runs, and of each figure the median ratio and the errors."""
    columns = [first, "runs"]
    for name in ("TTFT", "TPOT", "tokens/s"):
        columns += [f"{name} ratio", "error", "P90"]
    rows = []
    for group, told in found.items():
        cells = [group, str(told["runs"])]
        for name in FIGURES:
            one = told.get(name)
            cells += [ABSENT] * 3 if one is None else [
                f"{one['ratio']:.2f}", f"{one['median_error']:.0%}", f"{one['p90_error']:.0%}"
            ]  # fmt: skip
        rows.append(tuple(cells))
    return Shown(title, caption, tuple(columns), tuple(rows))


def run_table(rows: Sequence[Mapping[str, Any]]) -> Shown:
    """Every run: measured, predicted, and the ratio of throughputs."""
    columns = ("run", "lengths", "in flight", "TTFT ms", "predicted", "TPOT ms", "predicted", "tokens/s ratio", "group")
    shown = []
    for row in rows:
        measured, predicted = row["measured"], row.get("predicted")
        cells = [row["run"], f"{row['input_tokens']}/{row['output_tokens']}", str(row["concurrency"])]
        for name in ("ttft", "tpot"):
            cells += [f"{measured[name] * 1e3:.1f}", ABSENT if predicted is None else f"{predicted[name] * 1e3:.1f}"]
        cells += [ABSENT if predicted is None else f"{row['ratios']['throughput']:.2f}", row["group"]]
        shown.append(tuple(cells))
    return Shown("Every run", "", columns, tuple(shown), last_wide=True)


def refused_table(refused: Sequence[Mapping[str, str]]) -> Shown:
    """Runs that were not predicted, by what they have in common: how many, which, and why."""
    alike: dict[tuple[str, str], list[str]] = {}
    for one in refused:
        alike.setdefault((one["group"], one["reason"].removeprefix(f"{one['run']}: ")), []).append(one["run"])
    rows = [(group, str(len(names)), f"{reason} ({_names(names)})") for (group, reason), names in alike.items()]
    return Shown("Not predicted", "", ("group", "runs", "why"), tuple(rows), last_wide=True)


def _names(names: Sequence[str]) -> str:
    return ", ".join(names)
