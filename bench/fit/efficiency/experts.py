"""Routed experts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from bench.fit.efficiency.fitting import Kernel
from bench.fit.efficiency.tables import Table, all_positive, group, pick, roofline, values, where
from roofline_policies.device.hardware import Ceilings
from roofline_policies.errors import InputError
from roofline_policies.steps.kernels.coefficients import ExpertEfficiency
from roofline_policies.steps.kernels.expert_time import Loads, balanced_loads, experts_s, skewed_loads
from roofline_policies.work import Precision

FILE = "moe_perf.parquet"
COLUMNS = (
    "kernel_source", "moe_dtype", "num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size",
    "moe_ep_size", "distribution",
)  # fmt: skip
ROWS = 1500  # of a fit. More change the errors of held-out shapes by less than half a point
POWER_LAW = "power_law_"


class Stored(NamedTuple):
    """name: of the coefficients. precision: multiplied in. element_bytes: of a weight, with its scales."""

    name: str
    precision: Precision
    element_bytes: float


STORED: Mapping[str, Stored] = {
    "bfloat16": Stored("bf16", Precision.BF16, 2),
    "fp8_block": Stored("fp8_block", Precision.FP8, 1 + 4 / (128 * 128)),
    "int4_wo": Stored("int4_wo", Precision.BF16, 0.5 + 2 / 128),
    "w4a16_mxfp4": Stored("w4a16_mxfp4", Precision.BF16, 0.5 + 1 / 32),
    "w4a8_mxfp4_mxfp8": Stored("w4a8_mxfp4_mxfp8", Precision.FP8, 0.5 + 1 / 32),
    "nvfp4": Stored("nvfp4", Precision.FP4, 0.5 + 1 / 16),
}
SOURCES = (
    "sglang_fused_moe_triton", "sglang_triton_kernel_moe", "sglang_marlin_moe", "sglang_flashinfer_cutlass_moe",
    "sglang_flashinfer_trtllm_moe", "sglang_mxfp4_flashinfer_trtllm_moe",
)  # fmt: skip
WHOLE_ONLY = ("sglang_fused_moe_triton", "sglang_triton_kernel_moe", "sglang_marlin_moe")
"""Kernels whose rows of a rank that holds some of the experts are of no use: what a token chose elsewhere the raw
Triton kernel is given too, all on its first expert. Source: ai-dynamo/aiconfigurator,
``collector/sglang/collect_moe.py``. Of Marlin the A100's, of an older version, do not follow the others'."""

MOST_RANKS = 8
"""That hold a part of the experts each. More of them are not in one node, and would be most rows of the tables."""

_OTHER_ACTIVATION = "_situ_as_silu"
"""Ends the name of a kernel whose activation is another, in rows of few shapes: they are left out."""

_START = ExpertEfficiency(
    "", "", Precision.BF16, align=1, launch_s=2e-5, length_s=5e-7, row_s=1e-8, memory=0.7, compute=0.6, tile_rows=30.0,
    cols=64.0, step_s=5e-10, overlap=1.5,
)  # fmt: skip
_ALIGN = {"flashinfer_trtllm": 128}
"""Widths are padded to a multiple of it. Source: the times: of widths between two multiples those of the larger."""

_FREE = {
    "launch_s": (2e-6, 3e-4), "length_s": (1e-9, 3e-5), "row_s": (1e-12, 1e-6), "tile_rows": (0.1, 1000.0),
    "cols": (1.0, 8000.0), "step_s": (1e-12, 2e-8),
}  # fmt: skip


def kernels(table: Table, ceilings: Ceilings, sms: int) -> Iterator[Kernel]:
    """One kernel for each library and way to store weights; of libraries the one with most rows first.

    Rows of a rank that holds some of the experts are those of its share of the choices, but for the kernels of
    WHOLE_ONLY, of which they are left out.

    Raises:
        InputError: an unknown way to store weights, or an unknown distribution.
    """
    columns = all_positive(table)
    values(columns, "moe_dtype", table.file, list(STORED))
    values(columns, "kernel_source", table.file, [*SOURCES, *(f"{one}{_OTHER_ACTIVATION}" for one in SOURCES)])
    _check_distributions(table, set(columns["distribution"].tolist()))
    kinds = Counter(zip(columns["moe_dtype"].tolist(), columns["kernel_source"].tolist(), strict=True))
    for (dtype, source), _ in sorted(kinds.items(), key=lambda one: (one[0][0], -one[1])):
        if source.endswith(_OTHER_ACTIVATION):
            continue
        rows = where(columns, moe_dtype=dtype, kernel_source=source)
        rows = pick(rows, rows["moe_ep_size"] <= (1 if source in WHOLE_ONLY else MOST_RANKS))
        stored = STORED[dtype]
        if stored.precision not in ceilings.flops_per_s:
            continue
        rows = pick(
            rows, (rows["inter_size"] % rows["moe_tp_size"] == 0) & (rows["num_experts"] % rows["moe_ep_size"] == 0)
        )
        if not len(rows["latency"]):
            continue
        width = rows["inter_size"] // rows["moe_tp_size"]
        tokens, hidden, chosen, count = (rows[c] for c in ("num_tokens", "hidden_size", "topk", "num_experts"))
        sizes = (tokens, count, chosen, rows["distribution"], rows["moe_ep_size"])
        loads = [loads_of(*shape) for shape in zip(*(c.tolist() for c in sizes), strict=True)]
        expert_bytes = 3 * hidden * width * stored.element_bytes
        active = np.array([sum(n for n, _ in one) for one in loads])
        moved = active * expert_bytes + 4.0 * tokens * hidden
        pairs = np.array([sum(n * each for n, each in one) for one in loads])
        least = roofline(6.0 * pairs * hidden * width, moved, stored.precision, ceilings)
        shapes = [c.tolist() for c in (tokens, hidden, width, expert_bytes)]

        def predict(
            e: Any, row: int, shapes: list[list[Any]] = shapes, loads: list[Loads] = loads
        ) -> float:  # bound now: the loop goes on
            m, h, w, held = (column[row] for column in shapes)
            return experts_s(e, m, loads[row], h, 2 * w, w, held, ceilings, sms)

        start = replace(_START, name=stored.name, kernel=source, precision=stored.precision)
        start = replace(start, align=next((pad for part, pad in _ALIGN.items() if part in source), 1))
        groups = {
            "shapes": group(rows, "hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size", "moe_ep_size"),
            "batches": group(rows, "num_tokens"),
            "rows": np.arange(len(tokens)),
        }
        name = f"{stored.name}, {source.removeprefix('sglang_')}"
        yield Kernel("experts", name, "experts", start, predict, rows["latency"], least, groups, _FREE, ROWS)


def loads_of(rows: int, count: int, chosen: int, distribution: str, ranks: int = 1) -> Loads:
    """The loads of a table's distribution on the experts of one of ``ranks``: its share of all of them."""
    if distribution.startswith(POWER_LAW):
        loads = skewed_loads(rows, count, chosen, float(distribution.removeprefix(POWER_LAW)))
    else:
        loads = balanced_loads(rows, count, chosen)
    return tuple((experts / ranks, each) for experts, each in loads)


def _check_distributions(table: Table, found: set[str]) -> None:
    for name in sorted(found):
        if name != "balanced" and not name.removeprefix(POWER_LAW).replace(".", "", 1).isdigit():
            allowed = ("balanced", f"{POWER_LAW}ALPHA")
            raise InputError("unknown value", where=str(table.file), key="distribution", value=name, allowed=allowed)
