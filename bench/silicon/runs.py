"""Measured end-to-end runs of servers, one to a line of a CSV file, and what is wrong with such a file."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from roofline_policies.errors import InputError

TEXTS = ("run", "model", "device")
"""Columns whose texts may not be empty."""
OPTIONAL_TEXTS = ("precision", "gemm_quant", "moe_quant", "sglang", "measured")
COUNTS = ("tp", "moe_tp", "moe_ep", "input_tokens", "output_tokens", "concurrency")
OPTIONAL_COUNTS = ("dp_attention",)
TIMES = ("ttft_ms", "tpot_ms")
REQUIRED = (*TEXTS, *COUNTS, *TIMES)
MOST_NAMED = 12
"""Faults of a file that an error spells out."""


@dataclass(frozen=True, slots=True)
class MeasuredRun:
    """One run of a server under closed-loop traffic.

    run: its name. precision, gemm_quant, moe_quant: as published, may be empty. sglang: the version, where it is known.
    tp, moe_tp, moe_ep, dp_attention: ranks. input_tokens, output_tokens: lengths asked for. concurrency: requests in
    flight. ttft_s, tpot_s: over the run's requests.
    """

    run: str
    model: str
    device: str
    precision: str
    gemm_quant: str
    moe_quant: str
    sglang: str
    tp: int
    dp_attention: int
    moe_tp: int
    moe_ep: int
    input_tokens: int
    output_tokens: int
    concurrency: int
    ttft_s: float
    tpot_s: float

    @property
    def group(self) -> str:
        """Model, device and layout: what is fitted or kept apart as a whole."""
        precision = self.precision or "own precision"
        layout = f"tp{self.tp}" + (f" ep{self.moe_ep}" if self.moe_ep > 1 else "")
        return f"{self.model} {precision}, {self.device} {layout}"


def read_runs(file: str | Path) -> list[MeasuredRun]:
    """The runs of a CSV file with a header, in its order. Columns that are not known are left alone.

    Raises:
        InputError: it cannot be read, lacks a column, or has lines that cannot be true; every fault is named.
    """
    where = str(file)
    try:
        with Path(file).open(newline="", encoding="utf-8") as opened:
            reader = csv.DictReader(opened)
            columns: Sequence[str] = reader.fieldnames or ()
            lines = [(reader.line_num, line) for line in reader]
    except OSError as error:
        allowed = f"a CSV file with the columns {', '.join(REQUIRED)}"
        problem = f"cannot be read ({error.strerror})"
        raise InputError(problem, where="silicon", key="runs", value=where, allowed=allowed) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"is not CSV ({error})", where=where) from None
    missing = [name for name in REQUIRED if name not in columns]
    if missing:
        raise InputError(f"has no column {', '.join(missing)}", where=where, allowed=REQUIRED)
    if not lines:
        raise InputError("has no run", where=where, allowed="a line for each run below the header")
    faults: list[str] = []
    runs: list[MeasuredRun] = []
    seen: dict[str, int] = {}
    for number, line in lines:
        name = (line.get("run") or "").strip()
        if name in seen:
            faults.append(f"line {number}: run {name!r} is that of line {seen[name]} as well")
        seen.setdefault(name, number)
        found, wrong = _run(line)
        faults += [f"line {number} ({name or 'no name'}): {one}" for one in wrong]
        if found is not None:
            runs.append(found)
    if faults:
        more = f"; and {len(faults) - MOST_NAMED} more" if len(faults) > MOST_NAMED else ""
        raise InputError(f"has values that cannot be: {'; '.join(faults[:MOST_NAMED])}{more}", where=where)
    return runs


def _run(line: Mapping[str, str | None]) -> tuple[MeasuredRun | None, list[str]]:
    """The run of a line, None where something is wrong with it, and what that is."""
    values: dict[str, str | int | float] = {}
    wrong = []
    for key in (*TEXTS, *OPTIONAL_TEXTS):
        values[key] = (line.get(key) or "").strip()
        if key in TEXTS and not values[key]:
            wrong.append(f"{key} is empty")
    for key in (*COUNTS, *OPTIONAL_COUNTS, *TIMES):
        told = (line.get(key) or "").strip()
        if not told and key in OPTIONAL_COUNTS:
            values[key] = 1
            continue
        try:
            value = float(told)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value > 0):
            wrong.append(f"{key} is {told or 'empty'}, not a number above 0")
        elif key not in TIMES and value != int(value):
            wrong.append(f"{key} is {told}, not a whole number")
        else:
            values[key] = value if key in TIMES else int(value)
    if wrong:
        return None, wrong
    values["ttft_s"], values["tpot_s"] = (float(values.pop(key)) / 1e3 for key in TIMES)
    values.pop("measured")
    return MeasuredRun(**values), []  # type: ignore[arg-type]
