"""Fitting a kernel's coefficients to its rows, and judging them by rows that the fit never saw."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from bench.fit.efficiency.tables import FASTER_ROWS, Floats, Groups
from roofline_policies.errors import InputError

SPLITS = ("rows", "shapes", "batches")
SHIPPED = "shapes"  # the fit that is written: its errors are those of models that nobody measured
HELD_OUT = 0.2  # share of the groups. More leaves fewer shapes to fit to, less fewer to judge by; a judgement
FITTED_ROWS = 3000  # more change the errors by less than 0.2 points
STEP = 3e-3  # relative, of the differences that lead a fit: they see across the stairs that tiles make of its form
MOST_EVALUATIONS = 50  # of a fit; those looked at for ROBUST_AT ended by themselves after 17 to 32

ROBUST_AT = 0.08
"""Relative errors beyond this count linearly: the tables hold outliers of several hundred percent. About the median
error that is aimed at. Half of it or twice as much moves the median and the 90th percentile of held-out shapes by 0.3
points at most (bf16 and fp8 products, FlashAttention-3 of head dimension 128 in bf16; 2026-11-30)."""

FREE: Mapping[str, tuple[float, float]] = MappingProxyType({
    "launch_s": (5e-7, 3e-5), "memory": (0.1, 1.0), "compute": (0.01, 1.0), "slowdown": (0.01, 2.0),
    "slowdown_s": (1e-5, 1.0), "sm": (0.01, 1.08), "step_s": (1e-11, 5e-9), "epilogue_s": (1e-13, 1e-9),
    "wave": (0.02, 1.0), "overlap": (1.0, 8.0), "split_s": (1e-8, 2e-5), "quantise": (0.05, 1.0),
    "length_s": (1e-10, 1e-5), "block_s": (1e-8, 1e-4), "splits": (1.0, 1e3),
    "key_pad": (1.0, 2e3), "unskipped": (1e-3, 1.0),
})  # fmt: skip
"""What is fitted: the least and the largest value. Those that start at 0, and wave at 1, stay. The ends are what a
share can be, and for times a range chosen wide. Shipped fits end at those of memory (fp8_block), of unskipped, block_s
and overlap (FlashAttention-3's prefill) and of length_s (Triton's decode at 512): there the term adds nothing."""


NEVER_CACHED = ("gemm", "decode", "prefill")
"""Keys of kernels most of whose rows move more than any cache holds. A state of linear attention fits into one."""

PROOF, SHARE = 0.02, 0.3
"""Share of rows that beat the roofline, and of a row's time that its roofline is, from which a cache shows. On an L40S
the median error of bf16 products on held-out shapes is 8.4% without such rows and 11.9% with them; 7.5% also without
those of SHARE."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """The measurements of one kernel.

    start: coefficients to begin with. predict: seconds of row i under coefficients. seconds, roofline_s: measured, and
    without efficiencies. groups: per split, the group of each row. key: of the file, where the fit is written.
    free: ranges other than FREE's. most_rows: see FITTED_ROWS.
    """

    operation: str
    name: str
    key: str
    start: Any
    predict: Callable[[Any, int], float]
    seconds: Floats
    roofline_s: Floats
    groups: Mapping[str, Groups]
    free: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    most_rows: int = FITTED_ROWS


@dataclass(frozen=True, slots=True)
class Error:
    """Absolute relative error of held-out rows: median and 90th percentile, and the plain roofline's.

    cached: rows of the kernel that were left out (``from_memory``): what they read stayed in the cache from one
    repetition to the next, which in a model it does not.
    """

    operation: str
    kernel: str
    split: str
    rows: int
    median: float
    p90: float
    roofline_median: float
    roofline_p90: float
    cached: int = 0


def from_memory(kernel: Kernel) -> tuple[Kernel, int]:
    """The kernel with the rows that read from memory, and how many others it has.

    No row beats the roofline but out of a cache. Of NEVER_CACHED kernels that have PROOF of it, rows no larger than
    nine in ten of those are left out too where reading is a good part of their time (SHARE): they were cached in part.

    Raises:
        InputError: most are, of products or softmax attention, whose larger rows no cache holds.
    """
    beyond = kernel.seconds < kernel.roofline_s
    count = int(beyond.sum())
    if not count:
        return kernel, 0
    if count == len(beyond) or (count > FASTER_ROWS * len(beyond) and kernel.key in NEVER_CACHED):
        problem = f"{count} of {len(beyond)} rows are faster than the device can be: is the latency in milliseconds"
        raise InputError(problem, where=f"{kernel.operation}, {kernel.name}", key="latency")
    if kernel.key in NEVER_CACHED and count >= PROOF * len(beyond):
        least = float(np.quantile(kernel.roofline_s[beyond], 0.9))
        partly = beyond | ((kernel.roofline_s <= least) & (kernel.roofline_s > SHARE * kernel.seconds))
        beyond = partly if 2 * int(partly.sum()) < len(partly) else beyond
    kept = np.flatnonzero(~beyond)
    predict, places = kernel.predict, kept.tolist()
    return replace(
        kernel,
        predict=lambda e, row: predict(e, places[row]),
        seconds=kernel.seconds[kept],
        roofline_s=kernel.roofline_s[kept],
        groups={split: np.unique(groups[kept], return_inverse=True)[1] for split, groups in kernel.groups.items()},
    ), int(beyond.sum())


def fit(kernel: Kernel, chosen: Groups) -> Any:
    """Coefficients by least squares on log time with a robust loss, over at most ``most_rows`` of the chosen rows."""
    from scipy.optimize import least_squares  # type: ignore[import-untyped]

    if len(chosen) > kernel.most_rows:
        chosen = np.sort(np.random.default_rng(0).choice(chosen, kernel.most_rows, replace=False))
    wanted = np.log(kernel.seconds[chosen])
    rows = chosen.tolist()
    free = {**FREE, **kernel.free}
    started = {f.name: getattr(kernel.start, f.name) for f in fields(kernel.start)}
    names = [n for n in free if started.get(n) and not (n == "wave" and started[n] == 1.0)]
    low, high = np.log([free[n] for n in names]).T

    def coefficients(logs: Floats) -> Any:
        # Four digits, as they are written: the errors are those of the file.
        found: dict[str, Any] = {n: float(f"{v:.4g}") for n, v in zip(names, np.exp(logs), strict=True)}
        return replace(kernel.start, **found)

    def residuals(logs: Floats) -> Floats:
        tried = replace(kernel.start, **dict(zip(names, np.exp(logs).tolist(), strict=True)))
        return np.asarray(np.log([kernel.predict(tried, row) for row in rows]) - wanted)

    first = np.clip(np.log([started[n] for n in names]), low + 1e-3, high - 1e-3)
    how = {"loss": "soft_l1", "f_scale": ROBUST_AT, "diff_step": STEP, "max_nfev": MOST_EVALUATIONS}
    found = least_squares(residuals, first, bounds=(low, high), **how)
    return coefficients(np.asarray(found.x))


def held_out(groups: Groups) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """A fifth of the groups, at least one; all rows of a group go together."""
    count = int(groups.max()) + 1
    return np.isin(groups, np.random.default_rng(1).permutation(count)[: max(1, round(HELD_OUT * count))])


def measure(kernel: Kernel, split: str) -> tuple[Any, list[Floats]]:
    """The fit to the rest; absolute relative errors on what was held out, ours and the plain roofline's.

    Raises:
        InputError: there are too few groups to hold one out.
    """
    out = held_out(kernel.groups[split])
    if out.all():
        raise InputError("too few groups to hold one out", where=kernel.name, key=split)
    found = fit(kernel, np.flatnonzero(~out))
    rows = np.flatnonzero(out)
    ours = np.array([kernel.predict(found, row) for row in rows.tolist()])
    errors = [np.abs(s / kernel.seconds[rows] - 1) for s in (ours, kernel.roofline_s[rows])]
    median, p90 = (round(float(np.quantile(errors[0], q)), 4) for q in (0.5, 0.9))
    return replace(found, median_error=median, p90_error=p90), errors


def summary(operation: str, kernel: str, split: str, errors: Sequence[Floats], cached: int = 0) -> Error:
    """Median and 90th percentile of our errors, then of the roofline's."""
    median, p90, least_median, least_p90 = (round(float(np.quantile(of, q)), 4) for of in errors for q in (0.5, 0.9))
    return Error(operation, kernel, split, len(errors[0]), median, p90, least_median, least_p90, cached)
