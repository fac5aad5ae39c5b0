"""Tables of measured kernel times in the layout of ai-dynamo/aiconfigurator, as columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roofline_policies.device.hardware import Ceilings, match_device
from roofline_policies.errors import InputError
from roofline_policies.work import Precision

Columns = Mapping[str, NDArray[Any]]
Floats = NDArray[np.float64]
Groups = NDArray[np.int64]

WHO = ("framework", "version", "device")
"""Columns that say who measured where."""

SLOWEST_LEAST_S = 5e-4
"""No kernel is so slow that its shortest time is longer than this. A table whose least is has another unit."""

FASTER_ROWS = 0.5
"""Share of rows that may beat the roofline, out of the cache. More are of another device, or in another unit."""

PRECISIONS: Mapping[str, Precision] = {
    "bfloat16": Precision.BF16,
    "float16": Precision.FP16,
    "fp8": Precision.FP8,
    "fp8_block": Precision.FP8,
    "nvfp4": Precision.FP4,
}


@dataclass(frozen=True, slots=True)
class Table:
    """One file: its columns, latency in seconds. who: what WHO says, one text for each that occurs."""

    file: Path
    columns: Columns
    who: frozenset[tuple[str, str]]


def read_table(file: Path, needed: Sequence[str], optional: Mapping[str, Any] | None = None) -> Table:
    """A table. needed: columns it must have. optional: those that it may lack, with what they are then.

    Raises:
        InputError: the file cannot be read, a column is missing, or latencies are no positive numbers of milliseconds.
    """
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet as parquet  # type: ignore[import-untyped]

    optional = optional or {}
    try:
        held = parquet.read_schema(file).names
        missing = [name for name in (*needed, "latency", *WHO) if name not in held]
        if missing:
            raise InputError("missing columns", where=str(file), key=", ".join(missing), allowed=held)
        wanted = [*needed, "latency", *WHO, *(name for name in optional if name in held)]
        table = parquet.read_table(file, columns=wanted)
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"cannot be read: {' '.join(str(error).split())}", where=str(file)) from None
    found: dict[str, NDArray[Any]] = {name: table[name].to_numpy() for name in wanted}
    latency = found["latency"]
    rows = len(latency)
    if not rows or latency.dtype.kind not in "if" or not np.all(np.isfinite(latency) & (latency >= 0)):
        raise InputError("must hold rows with latencies above 0", where=str(file), key="latency")
    for name in needed:
        if found[name].dtype.kind == "f" and not np.all(np.isfinite(found[name])):
            raise InputError("must hold numbers", where=str(file), key=name)
    found |= {name: np.full(rows, value) for name, value in optional.items() if name not in found}
    who = {(f"{one} {two}", three) for one, two, three in zip(*(found.pop(name) for name in WHO), strict=True)}
    return Table(file, found | {"latency": latency.astype(float) / 1e3}, frozenset(who))


def measured_only(table: Table) -> Columns:
    """The rows with a time above 0.

    Raises:
        InputError: there are none, or the least of them shows that the unit is not milliseconds.
    """
    rows = pick(table.columns, table.columns["latency"] > 0)
    if not len(rows["latency"]):
        raise InputError("must hold rows with latencies above 0", where=str(table.file), key="latency")
    least = float(rows["latency"].min())
    if least > SLOWEST_LEAST_S:
        problem = f"no time is below {SLOWEST_LEAST_S * 1e3:g}: is that in milliseconds"
        raise InputError(problem, where=str(table.file), key="latency", value=least * 1e3)
    return rows


def all_positive(table: Table) -> Columns:
    """All rows.

    Raises:
        InputError: a time is 0, or see ``measured_only``.
    """
    if not np.all(table.columns["latency"] > 0):
        raise InputError("must hold rows with latencies above 0", where=str(table.file), key="latency")
    return measured_only(table)


def check_device(table: Table, name: str, ceilings: Ceilings) -> None:
    """The table was measured on that device of the catalogue.

    Raises:
        InputError: it names another.
    """
    for _, device in table.who:
        if match_device(device) != name:
            allowed = f"tables of {ceilings.device}, or --device {match_device(device) or '(not in the catalogue)'}"
            raise InputError("is of another device", where=str(table.file), key="device", value=device, allowed=allowed)


def pick(table: Columns, mask: NDArray[Any]) -> Columns:
    """The rows of a mask."""
    return {name: values[mask] for name, values in table.items()}


def where(table: Columns, **wanted: object) -> Columns:
    """The rows whose columns have these values."""
    mask = np.ones(len(next(iter(table.values()))), dtype=bool)
    for column, value in wanted.items():
        mask &= table[column] == value
    return pick(table, mask)


def values(table: Columns, column: str, file: Path, allowed: Sequence[str]) -> list[str]:
    """What occurs in a column, sorted.

    Raises:
        InputError: a value that is not allowed.
    """
    found = sorted(set(table[column].tolist()))
    for value in found:
        if value not in allowed:
            raise InputError("unknown value", where=str(file), key=column, value=value, allowed=allowed)
    return found


def group(rows: Columns, *columns: str) -> Groups:
    """The number of each row's group: rows that are alike in these columns."""
    _, groups = np.unique(np.stack([rows[c] for c in columns]), axis=1, return_inverse=True)
    return groups.reshape(-1)


def roofline(flops: Floats, moved: Floats, precision: Precision, ceilings: Ceilings) -> Floats:
    """Seconds at the ceilings."""
    return np.maximum(flops / ceilings.compute_ceiling(precision), moved / ceilings.bytes_per_s)
