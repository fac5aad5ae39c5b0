"""Collectives between the ranks of one node, and turning activations into 8 bits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from bench.fit.efficiency.fitting import Kernel
from bench.fit.efficiency.tables import Table, all_positive, group, measured_only, pick, roofline, values, where
from roofline_policies.device.hardware import Ceilings
from roofline_policies.errors import InputError
from roofline_policies.steps.kernels.coefficients import CollectiveEfficiency, QuantiseEfficiency
from roofline_policies.steps.kernels.collective_time import (
    ALL_GATHER,
    ALL_REDUCE,
    ALL_TO_ALL,
    REDUCE_SCATTER,
    SENT,
    collective_s,
    quantise_s,
)
from roofline_policies.work import Precision

SGLANG_FILE = "custom_allreduce_perf.parquet"
SGLANG_COLUMNS = ("allreduce_dtype", "num_gpus", "message_size", "backend")
NCCL_FILE = "nccl_perf.parquet"
NCCL_COLUMNS = ("op_name", "nccl_dtype", "num_gpus", "message_size")
QUANTISE_FILES: Mapping[str, str] = {"scale_matrix_perf.parquet": "static"}
QUANTISE_COLUMNS = ("m", "k", "quant_dtype")

OPERATIONS = {
    "all_reduce": ALL_REDUCE, "all_gather": ALL_GATHER, "reduce_scatter": REDUCE_SCATTER, "alltoall": ALL_TO_ALL,
}  # fmt: skip
ELEMENT = {"bfloat16": 2, "half": 2, "int8": 1}
"""Bytes of an element: the tables count messages in elements."""

OWN_UP_TO = 16 << 20
"""Bytes up to which SGLang's all-reduce runs in its own kernel; above, its times are those of NCCL. On an H200 the time
more than doubles from this size to twice of it."""

_START = CollectiveEfficiency("", "", 2, launch_s=5e-6, step_s=2e-7, bytes_per_s=1e11, overlap=2.0)
_FREE = {"launch_s": (5e-7, 2e-3), "step_s": (1e-10, 1e-4), "bytes_per_s": (1e8, 2e12)}
_QUANTISE = QuantiseEfficiency("", launch_s=5e-6, memory=0.5, overlap=2.0)
_WIDE_MEMORY = {"memory": (0.01, 1.0)}


def sglang_kernels(table: Table, ceilings: Ceilings, sms: int) -> Iterator[Kernel]:
    """SGLang's own all-reduce inside graphs, for each number of ranks."""
    columns = all_positive(table)
    values(columns, "backend", table.file, ("sglang_graph", "sglang_eager"))
    rows = where(columns, backend="sglang_graph")
    values(rows, "allreduce_dtype", table.file, list(ELEMENT))
    bytes_ = rows["message_size"] * np.array([ELEMENT[name] for name in rows["allreduce_dtype"].tolist()])
    own = pick({**rows, "bytes": bytes_}, bytes_ <= OWN_UP_TO)
    yield from _of_ranks(own, ALL_REDUCE, "sglang", table, ceilings)


def nccl_kernels(table: Table, ceilings: Ceilings, sms: int) -> Iterator[Kernel]:
    """NCCL's collectives on elements of 16 bits, for each number of ranks."""
    columns = all_positive(table)
    values(columns, "nccl_dtype", table.file, list(ELEMENT))
    columns = where(columns, nccl_dtype="half")
    for name in values(columns, "op_name", table.file, list(OPERATIONS)):
        rows = where(columns, op_name=name)
        sized = {**rows, "bytes": 2 * rows["message_size"]}
        yield from _of_ranks(sized, OPERATIONS[name], "nccl", table, ceilings)


def quantise_kernels(table: Table, ceilings: Ceilings, sms: int) -> Iterator[Kernel]:
    """One kernel. Times of 0 are left out: they are a difference of two that did not differ."""
    rows = measured_only(table)
    values(rows, "quant_dtype", table.file, ("fp8",))
    shapes = list(zip(rows["m"].tolist(), rows["k"].tolist(), strict=True))

    def predict(e: Any, row: int) -> float:
        return quantise_s(e, *shapes[row], ceilings)

    name = QUANTISE_FILES[table.file.name]
    m, k = (rows[c].astype(float) for c in ("m", "k"))
    least = roofline(0 * m, 3 * m * k, Precision.BF16, ceilings)
    groups = {"shapes": group(rows, "k"), "batches": group(rows, "m"), "rows": np.arange(len(shapes))}
    start = replace(_QUANTISE, name=name)
    yield Kernel("quantising", name, "quantise", start, predict, rows["latency"], least, groups, _WIDE_MEMORY)


def _of_ranks(
    rows: Mapping[str, Any], operation: str, library: str, table: Table, ceilings: Ceilings
) -> Iterator[Kernel]:
    """Of a rank's messages every fifth size is held out of a fit, whatever the split: a size is all that differs."""
    for ranks in sorted(set(rows["num_gpus"].tolist())):
        if ranks < 2:  # one rank has nobody to talk to
            raise InputError("must be two or more", where=str(table.file), key="num_gpus", value=ranks)
        part = where(rows, num_gpus=ranks)
        sizes = part["bytes"].tolist()

        def predict(e: Any, row: int, sizes: list[int] = sizes) -> float:  # bound now: the loop goes on
            return collective_s(e, sizes[row])

        start = replace(_START, operation=operation, library=library, ranks=ranks)
        if library == "sglang":
            start = replace(start, up_to_bytes=OWN_UP_TO)
        least = SENT[operation] * part["bytes"] * (ranks - 1) / ranks / ceilings.bytes_per_s
        places = group(part, "bytes")
        groups = dict.fromkeys(("shapes", "batches", "rows"), places)
        name = f"{operation}, {library}, {ranks} ranks"
        yield Kernel("collectives", name, "collectives", start, predict, part["latency"], least, groups, _FREE)
