"""Matrix products of linear layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from bench.fit.efficiency.fitting import Kernel
from bench.fit.efficiency.tables import Table, all_positive, group, roofline, values, where
from roofline_policies.device.hardware import Ceilings
from roofline_policies.steps.kernels.coefficients import GemmEfficiency, Tile
from roofline_policies.steps.kernels.kernel_time import ELEMENT_BYTES, gemm_s
from roofline_policies.work import Precision

FILE = "gemm_perf.parquet"
COLUMNS = ("gemm_dtype", "m", "n", "k")

# Where each kernel starts: the tiles that its library has, and first guesses. Which of them it takes is in the times: a
# wave of an fp8 product takes another time per k up to 64, up to 128 and beyond 128 rows; cuBLAS and DeepGEMM choose.
# From half or twice the guesses (but overlap) the fits of ROBUST_AT end with medians within 0.4 points of these.
_SQUARES = (Tile(64, 64), Tile(128, 128))
_PAIRS = (Tile(128, 64), Tile(128, 128), Tile(256, 256))
"""Of SMs that multiply as much per clock as a B200's, two of which share a tile of 256."""

_ONE = (Tile(128, 128),)
"""Of the fp8 kernel for a Blackwell whose SMs do not share tiles: 3.3% at the median with it, 13.4% with _BANDS."""

PAIRED_FROM = 6000.0
"""Dense 16 bit FLOPs of one SM per clock from which two share a tile: 4,096 on Hopper, 8,192 on a B200."""

_BANDS = (Tile(64, 64, 0, 64), Tile(64, 128, 64, 128), Tile(128, 128, 128))
_GEMM = GemmEfficiency(
    Precision.BF16, _SQUARES, launch_s=3e-6, memory=0.9, compute=0.8, slowdown=0.3, slowdown_s=1e-3, sm=0.8, step_s=0.0,
    epilogue_s=5e-11, wave=0.5, overlap=2.0,
)  # fmt: skip
STARTS = {
    "bf16": replace(_GEMM, split_s=2e-6),
    "fp8": replace(_GEMM, precision=Precision.FP8, tiles=_BANDS, wave=1.0, quantise=0.5),
    "fp8_block": replace(_GEMM, precision=Precision.FP8, step_s=1e-9, wave=1.0, quantise=0.5),
    "nvfp4": replace(_GEMM, precision=Precision.FP4, step_s=5e-10, wave=1.0, quantise=0.5),
}


def kernels(table: Table, ceilings: Ceilings, sms: int) -> Iterator[Kernel]:
    """One kernel for each precision.

    Raises:
        InputError: an unknown precision.
    """
    columns = all_positive(table)
    for dtype in values(columns, "gemm_dtype", table.file, ("bfloat16", "fp8", "fp8_block", "nvfp4")):
        rows = where(columns, gemm_dtype=dtype)
        name = "bf16" if dtype == "bfloat16" else dtype
        start = STARTS[name]
        clock_hz = ceilings.clock_hz or float("inf")
        if ceilings.compute_ceiling(Precision.BF16) / (sms * clock_hz) > PAIRED_FROM:
            start = replace(start, tiles=_PAIRS)
        elif name == "fp8" and Precision.FP4 in ceilings.flops_per_s:
            start = replace(start, tiles=_ONE)
        shapes = list(zip(rows["m"].tolist(), rows["n"].tolist(), rows["k"].tolist(), strict=True))
        m, n, k = (rows[c].astype(float) for c in ("m", "n", "k"))
        element = ELEMENT_BYTES[start.precision]

        def predict(e: Any, row: int, shapes: list[tuple[int, int, int]] = shapes) -> float:  # bound now
            return gemm_s(e, *shapes[row], ceilings, sms)

        least = roofline(2 * m * n * k, element * k * (m + n) + 2 * m * n, start.precision, ceilings)
        groups = {"shapes": group(rows, "n", "k"), "batches": group(rows, "m"), "rows": np.arange(len(shapes))}
        yield Kernel("gemm", name, "gemm", start, predict, rows["latency"], least, groups)
