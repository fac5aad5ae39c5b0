"""Fits what a server takes longer than its kernels to measured runs: a handful of constants for each device.

    python -m bench.silicon.fit results/silicon/silicon.json --write

Latencies of a closed loop are sums over steps, so a predicted run says at once what other constants would have given.
Only groups of the first half are fitted (``split`` in summary.py); the table shows the others apart. With --write the
constants go to conf/costs, where a server with a policy and the virtual clock both find them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml
from rich.console import Console
from scipy.optimize import nnls  # type: ignore[import-untyped]

from bench.silicon.summary import APART, FITTED, by, error_table, throughput
from bench.sweep.tables import Shown
from roofline_policies.errors import EXIT_BAD_INPUT, InputError
from roofline_policies.steps.costs import FRONT, fitted_costs

Floats = npt.NDArray[np.float64]

CONSTANTS = ("host_request_s", "decode_attention", "eager_gap_s", FRONT)
"""What is fitted; see ``StepCosts`` and ``FittedCosts``."""
TTFT_WEIGHT = 0.5
"""Of a TTFT's relative error beside a TPOT's: what else is in a TTFT (compilation, the client) is not all modelled."""
ROUNDS = 30
LEAST_ERROR = 0.03
"""Relative errors below it weigh alike; above it a run weighs less, so that a few odd ones do not decide."""
FOLDER = Path(__file__).parents[2] / "conf" / "costs"
HEAD = "# Written by `python -m bench.silicon.fit`; what the constants mean: roofline_policies/steps/costs.py.\n"


@dataclass(frozen=True, slots=True)
class Fitted:
    """A device's constants, in the order of CONSTANTS. runs: it was fitted to."""

    device: str
    values: tuple[float, ...]
    runs: int


def amounts(parts: Mapping[str, float], first: bool, used: Sequence[float]) -> list[float]:
    """How much longer a latency takes with each constant, per unit of it; its parts as in ``StepJournal.between``.

    first: the latency is a TTFT, which the way through the front ends is a part of. used: the constants in its parts.
    """
    return [
        parts["decode_requests"],
        parts["decode_attention"] / (1 + used[CONSTANTS.index("decode_attention")]),
        parts["prefill_eager_kernels"] + parts["decode_eager_kernels"],
        1.0 if first else 0.0,
    ]


def fit(rows: Sequence[Mapping[str, Any]], used: Sequence[float]) -> tuple[float, ...]:
    """Constants of at least 0 with which relative errors are small. used: those that the rows were predicted with."""
    told, wanted, weights = [], [], []
    for row in rows:
        for name, counts in (("ttft", TTFT_WEIGHT), ("tpot", 1.0)):
            measured = row["measured"][name]
            share = np.array(amounts(row[f"{name}_parts"], name == "ttft", used)) / measured
            told.append(share)
            wanted.append(1 - row["predicted"][name] / measured + share @ np.array(used))
            weights.append(counts)
    matrix, target, weight = np.array(told), np.array(wanted), np.array(weights)
    scale = np.abs(matrix).max(axis=0)
    scale[scale == 0] = 1.0
    matrix, now = matrix / scale, weight
    for _ in range(ROUNDS):
        found, _ = nnls(matrix * now[:, None], target * now)
        # Least absolute errors, by weights that shrink with the error.
        now = weight / np.sqrt(np.maximum(LEAST_ERROR, np.abs(matrix @ found - target)))
    return tuple(float(f"{value:.3g}") for value in found / scale)


def repriced(row: Mapping[str, Any], used: Sequence[float], values: Sequence[float]) -> dict[str, Any]:
    """The row as it would be predicted with other constants, if the same steps ran."""
    more = np.array(values) - np.array(used)
    predicted = {
        name: row["predicted"][name] + float(np.array(amounts(row[f"{name}_parts"], name == "ttft", used)) @ more)
        for name in ("ttft", "tpot")
    }
    predicted["throughput"] = throughput(row["concurrency"], row["output_tokens"], predicted["ttft"], predicted["tpot"])
    return {**row, "predicted": predicted, "ratios": {key: predicted[key] / row["measured"][key] for key in predicted}}


def fit_devices(rows: Sequence[Mapping[str, Any]], used: Mapping[str, Sequence[float]]) -> list[Fitted]:
    """Every device that has a run in the half that is fitted."""
    found = []
    for device in sorted({row["catalogue"] for row in rows}):
        mine = [row for row in rows if row["catalogue"] == device and row["half"] == FITTED]
        if mine:
            found.append(Fitted(device, fit(mine, used[device]), len(mine)))
    return found


def write(fitted: Fitted, source: str, date: str, folder: Path = FOLDER) -> Path:
    """The device's file of conf/costs."""
    told = {"source": source, "date": date, **dict(zip(CONSTANTS, fitted.values, strict=True))}
    file = folder / f"{fitted.device}.yaml"
    file.write_text(HEAD + yaml.safe_dump(told, sort_keys=False, width=118), encoding="utf-8")
    return file


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: 0, EXIT_BAD_INPUT."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.silicon.fit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("result", type=Path, help="silicon.json of bench.silicon")
    parser.add_argument("--source", default="public runs of SGLang servers in ai-dynamo/aiconfigurator, Apache-2.0",
                        help="of the measured runs, for the files")  # fmt: skip
    parser.add_argument("--date", default=f"{datetime.now(UTC):%Y-%m-%d}", help="of the fit, for the files")
    parser.add_argument("--write", action="store_true", help="write conf/costs; else the table alone")
    arguments = parser.parse_args(argv)
    try:
        rows, used = read(arguments.result)
    except InputError as error:
        print(error, file=sys.stderr)
        return EXIT_BAD_INPUT
    fitted = fit_devices(rows, used)
    if not fitted:
        print(f"{arguments.result}: no run of a group that is fitted was predicted", file=sys.stderr)
        return EXIT_BAD_INPUT
    values = {one.device: one.values for one in fitted}
    after = [
        repriced(row, used[row["catalogue"]], values.get(row["catalogue"], used[row["catalogue"]])) for row in rows
    ]
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(constants_table(fitted).rich())
    halves = {f"{half}, {when}": told for when, these in (("before", rows), ("after", after))
              for half, told in by(these, lambda row: str(row["half"])).items()}  # fmt: skip
    console.print(error_table("What they change", "half", halves, f"{FITTED}: by them; {APART}: not").rich())
    for one in fitted if arguments.write else ():
        print(f"written: {write(one, arguments.source, arguments.date)}")
    told = {one.device: dict(zip(CONSTANTS, one.values, strict=True)) for one in fitted}
    print(json.dumps({"constants": told, "halves": halves}))
    return 0


def constants_table(fitted: Sequence[Fitted]) -> Shown:
    """A row for each device."""
    columns = ("device", "runs", "us a request", "decode attention", "us a kernel without a graph", "ms of front ends")
    rows = []
    for one in fitted:
        request, attention, gap, front = one.values
        cells = (f"{request * 1e6:.1f}", f"+{attention:.0%}", f"{gap * 1e6:.1f}", f"{front * 1e3:.0f}")
        rows.append((one.device, str(one.runs), *cells))
    return Shown("Fitted constants", "", columns, tuple(rows))


def read(file: Path) -> tuple[list[dict[str, Any]], dict[str, tuple[float, ...]]]:
    """The predicted runs of a result, and the constants by device that they were predicted with.

    Raises:
        InputError: it cannot be read, or is no result of bench.silicon.
    """
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
        rows = [row for row in result["rows"] if "predicted" in row]
        used = {
            row["catalogue"]: tuple(result["constants"][row["catalogue"]][name] for name in CONSTANTS) for row in rows
        }
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=str(file)) from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"is no result of bench.silicon ({type(error).__name__}: {error})", where=str(file)) from None
    return rows, used


def constants_of(device: str) -> dict[str, float]:
    """What runs on a device of the catalogue are predicted with now; 0 where nothing was fitted."""
    fitted = fitted_costs(device)
    if fitted is None:
        return dict.fromkeys(CONSTANTS, 0.0)
    return {name: fitted.front_s if name == FRONT else float(getattr(fitted.costs, name)) for name in CONSTANTS}


if __name__ == "__main__":
    sys.exit(main())
