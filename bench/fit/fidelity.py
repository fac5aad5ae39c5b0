"""How far the virtual clock is from a live server: the same traffic under the same arms, side by side.

    python -m bench.live experiment=fidelity
    python -m bench.virtual experiment=fidelity_virtual steps=STEPS.yaml ceilings=CEILINGS.json
    python -m bench.fit.fidelity results/fidelity/result.json results/fidelity_virtual/result.json

Live figures are medians over the repeats, with their range. The virtual clock has one run, which repeats exactly.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.report.metrics import median_over_repeats
from roofline_policies.errors import EXIT_BAD_INPUT, InputError

SHARED = ("requests", "slo", "seed", "baseline")
"""Keys of both results that must agree: otherwise two different things would be compared."""

RANKED = "ttft_p50_s"
"""The arms are ranked by the metric in which they differ most on traffic that every arm serves."""


@dataclass(frozen=True, slots=True)
class Compared:
    """A metric that is compared, and how far apart the two may be. target: of the ratio, less one."""

    title: str
    metric: str
    target: float


# How near is near enough is a judgement: a tenth, and half as much again for TTFT, which hangs on who waits for whom.
METRICS = (
    Compared("output tok/s", "output_tokens_per_s", 0.10),
    Compared("mean TPOT", "tpot_mean_s", 0.10),
    Compared("TTFT P50", "ttft_p50_s", 0.15),
)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: 0, EXIT_BAD_INPUT for results that cannot be compared."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.fit.fidelity", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("live", type=Path, help="result.json of python -m bench.live")
    parser.add_argument("virtual", type=Path, help="result.json of python -m bench.virtual")
    arguments = parser.parse_args(argv)
    try:
        live, virtual = (_read(path) for path in (arguments.live, arguments.virtual))
        compared = compare(live, virtual)
    except InputError as error:
        print(error, file=sys.stderr)
        return EXIT_BAD_INPUT
    Console(width=None if sys.stdout.isatty() else 160).print(_table(compared))
    print(json.dumps(compared))
    return 0


def compare(live: Mapping[str, Any], virtual: Mapping[str, Any]) -> dict[str, Any]:
    """Every arm that both have: live median and range, virtual value, their ratio; and the ranking.

    ``ranking``: arms from lowest to highest TTFT P50, live and virtual; ``certain_pairs``: pairs of arms whose live
    ranges do not overlap; ``agreed_pairs``: how many of them the virtual clock orders alike.

    Raises:
        InputError: other traffic, another SLO, or no arm in common.
    """
    for key in SHARED:
        if live.get(key) != virtual.get(key):
            raise InputError(
                "differs between the two results", where="fidelity", key=key, value=virtual.get(key),
                allowed=f"{live.get(key)!r}, as in the live result",
            )  # fmt: skip
    arms = [arm for arm in live["arms"] if _lived(live, arm) and _lived(virtual, arm)]
    if not arms:
        raise InputError("have no arm in common that lived", where="fidelity", allowed="the same arms in both results")
    rows = []
    for arm in arms:
        row: dict[str, Any] = {"arm": arm}
        for one in METRICS:
            values = sorted(run[one.metric] for run in _lived(live, arm))
            here, there = median_over_repeats(live["runs"], arm, one.metric), _lived(virtual, arm)[0][one.metric]
            assert here is not None
            row[one.metric] = {
                "live": here, "live_min": values[0], "live_max": values[-1], "virtual": there, "ratio": there / here,
                "within_target": abs(there / here - 1) <= one.target,
            }  # fmt: skip
        rows.append(row)
    return {"arms": rows, "ranking": _ranking(rows), "targets": {one.metric: one.target for one in METRICS}}


def _ranking(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    def order(side: str) -> list[str]:
        return [row["arm"] for row in sorted(rows, key=lambda row: row[RANKED][side])]

    certain = agreed = 0
    for place, one in enumerate(rows):
        for other in rows[place + 1 :]:
            a, b = one[RANKED], other[RANKED]
            if a["live_max"] < b["live_min"] or b["live_max"] < a["live_min"]:
                certain += 1
                agreed += (a["live"] < b["live"]) == (a["virtual"] < b["virtual"])
    return {
        "by": RANKED,
        "live": order("live"),
        "virtual": order("virtual"),
        "certain_pairs": certain,
        "agreed_pairs": agreed,
    }


def _lived(result: Mapping[str, Any], arm: str) -> list[Mapping[str, Any]]:
    return [run for run in result["runs"] if run["arm"] == arm and run["status"] == "ok"]


def _read(path: Path) -> Mapping[str, Any]:
    allowed = "result.json of python -m bench.live or python -m bench.virtual"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=str(path), allowed=allowed) from None
    except ValueError:
        raise InputError("is not JSON", where=str(path), allowed=allowed) from None
    if not isinstance(found, dict) or not {"arms", "runs", *SHARED} <= found.keys():
        raise InputError("is not a result", where=str(path), allowed=allowed)
    return found


def _table(compared: Mapping[str, Any]) -> Table:
    ranking = compared["ranking"]
    live, virtual = " < ".join(ranking["live"]), " < ".join(ranking["virtual"])
    alike = f"{ranking['agreed_pairs']} of {ranking['certain_pairs']} pairs whose live ranges do not overlap"
    caption = f"by {ranking['by']}: live {live}; virtual {virtual}; {alike} are ordered alike"
    table = Table(title="virtual / live", caption=caption, caption_justify="left")
    table.add_column("arm")
    for one in METRICS:
        table.add_column(f"{one.title}\nvirtual", justify="right")
        table.add_column("live (range)", justify="right")
        table.add_column(f"ratio\n±{one.target:.0%}", justify="right")
    for row in compared["arms"]:
        cells = []
        for one in METRICS:
            found = row[one.metric]
            cells += [
                f"{found['virtual']:.4g}",
                f"{found['live']:.4g} ({found['live_min']:.4g}–{found['live_max']:.4g})",
                f"{found['ratio']:.3f}" + ("" if found["within_target"] else " !"),
            ]
        table.add_row(row["arm"], *cells)
    return table


if __name__ == "__main__":
    sys.exit(main())
