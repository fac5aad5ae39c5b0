"""Fit a device's kernel efficiencies to tables of measured kernel times, and say how far off they are.

    python -m bench.fit.efficiency --tables DIR [--out conf/efficiency/h200.yaml]

DIR holds gemm_perf.parquet, context_attention_perf.parquet and generation_attention_perf.parquet in the layout of
ai-dynamo/aiconfigurator, latencies in milliseconds. Each kernel is fitted three times, to what is left when a fifth is
held out: rows at random, whole shapes (n x k, or heads x KV heads), whole batch sizes (m, or requests). Errors are
those of the held-out rows. What is written is the fit without the held-out shapes, so that the errors shown for shapes
are its own. Deterministic but for the date. Needs numpy, scipy and pyarrow.

Exit code 0; 2 where a table is missing or unusable.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from roofline_policies.device.hardware import Ceilings, from_catalogue
from roofline_policies.errors import EXIT_BAD_INPUT, InputError
from roofline_policies.steps.efficiency import DecodeEfficiency, Efficiency, GemmEfficiency, PrefillEfficiency, Tile
from roofline_policies.steps.kernel_time import decode_attention_s, gemm_s, prefill_attention_s
from roofline_policies.work import BYTES_PER_ELEMENT, Precision

SOURCE = "ai-dynamo/aiconfigurator, Apache-2.0, H200 SXM, SGLang 0.5.14"
SMS = 132  # of an H200 and an H100 SXM. Source: NVIDIA H100 Tensor Core GPU Architecture whitepaper
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

Coefficients = GemmEfficiency | DecodeEfficiency | PrefillEfficiency
Floats = NDArray[np.float64]

_PRECISION = {"bfloat16": Precision.BF16, "float16": Precision.FP16, "fp8": Precision.FP8, "fp8_block": Precision.FP8}
_SHAPE = ("num_heads", "num_key_value_heads", "head_dim")
_ATTENTION = ("kernel_source", "kv_cache_dtype", "batch_size", "isl", "window_size", "latency", *_SHAPE)
_TABLES: Mapping[str, Sequence[str]] = {
    "gemm_perf.parquet": ("gemm_dtype", "m", "n", "k", "latency"),
    "generation_attention_perf.parquet": (*_ATTENTION, "step"),
    "context_attention_perf.parquet": (*_ATTENTION, "attn_dtype"),
}

# Where each kernel starts: the tiles that its library has, and first guesses. Which of them it takes is in the times: a
# wave of an fp8 product takes another time per k up to 64, up to 128 and beyond 128 rows; cuBLAS and DeepGEMM choose.
# From half or twice the guesses (but overlap) the fits of ROBUST_AT end with medians within 0.4 points of these.
_SQUARES = (Tile(64, 64), Tile(128, 128))
_BANDS = (Tile(64, 64, 0, 64), Tile(64, 128, 64, 128), Tile(128, 128, 128))
_GEMM = GemmEfficiency(
    Precision.BF16, _SQUARES, launch_s=3e-6, memory=0.9, compute=0.8, slowdown=0.3, slowdown_s=1e-3, sm=0.8, step_s=0.0,
    epilogue_s=5e-11, wave=0.5, overlap=2.0,
)  # fmt: skip
_GEMMS = {
    "bf16": replace(_GEMM, split_s=2e-6),
    "fp8": replace(_GEMM, precision=Precision.FP8, tiles=_BANDS, wave=1.0, quantise=0.5),
    "fp8_block": replace(_GEMM, precision=Precision.FP8, step_s=1e-9, wave=1.0, quantise=0.5),
}
_DECODE = DecodeEfficiency(
    "fa3", Precision.BF16, 256, rows=128, launch_s=9e-6, length_s=5e-7, block_s=2.5e-6, memory=0.85,
    compute=0.3, overlap=1.5, splits=64.0,
)  # fmt: skip
_PREFILL = PrefillEfficiency(
    "fa3", Precision.BF16, Precision.BF16, 256, rows=128, packed=True, launch_s=9e-6, block_s=2.5e-6, memory=0.6,
    compute=0.6, sm=0.7, key_pad=100.0, unskipped=0.05, overlap=1.2,
)  # fmt: skip

# What is fitted: the least and the largest value. Those that start at 0, and wave at 1, stay. The ends are what a share
# can be, and for times a range chosen wide. Shipped fits end at those of memory (fp8_block), of unskipped, block_s and
# overlap (FlashAttention-3's prefill) and of length_s (Triton's decode at 512): there the term adds nothing.
_FREE: Mapping[str, tuple[float, float]] = {
    "launch_s": (5e-7, 3e-5), "memory": (0.1, 1.0), "compute": (0.01, 1.0), "slowdown": (0.01, 2.0),
    "slowdown_s": (1e-5, 1.0), "sm": (0.01, 1.08), "step_s": (1e-11, 5e-9), "epilogue_s": (1e-13, 1e-9),
    "wave": (0.02, 1.0), "overlap": (1.0, 8.0), "split_s": (1e-8, 2e-5), "quantise": (0.05, 1.0),
    "length_s": (1e-10, 1e-5), "block_s": (1e-8, 1e-4), "splits": (1.0, 1e3),
    "key_pad": (1.0, 2e3), "unskipped": (1e-3, 1.0),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Kernel:
    """The measurements of one kernel.

    start: coefficients to begin with. predict: seconds of row i under coefficients. seconds, roofline_s: measured, and
    without efficiencies. groups: per split, the group of each row.
    """

    operation: str
    name: str
    start: Coefficients
    predict: Callable[[Any, int], float]
    seconds: Floats
    roofline_s: Floats
    groups: Mapping[str, NDArray[np.int64]]


@dataclass(frozen=True, slots=True)
class Error:
    """Absolute relative error of held-out rows: median and 90th percentile, and the plain roofline's."""

    operation: str
    kernel: str
    split: str
    rows: int
    median: float
    p90: float
    roofline_median: float
    roofline_p90: float


Columns = Mapping[str, NDArray[Any]]


def read_table(file: Path, columns: Sequence[str]) -> Columns:
    """Columns of a table, latency in seconds.

    Raises:
        InputError: the file cannot be read, a column is missing, or a latency is no positive number.
    """
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet as parquet  # type: ignore[import-untyped]

    try:
        held = parquet.read_schema(file).names
        missing = [name for name in columns if name not in held]
        if missing:
            raise InputError("missing columns", where=str(file), key=", ".join(missing), allowed=held)
        table = parquet.read_table(file, columns=list(columns))
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"cannot be read: {' '.join(str(error).split())}", where=str(file)) from None
    found = {name: table[name].to_numpy() for name in columns}
    latency = found["latency"]
    if not len(latency) or latency.dtype.kind not in "if" or not np.all(np.isfinite(latency) & (latency > 0)):
        raise InputError("must hold rows with latencies above 0", where=str(file), key="latency")
    return found | {"latency": latency.astype(float) / 1e3}


def kernels(folder: Path, ceilings: Ceilings) -> Iterator[Kernel]:
    """Every kernel that the three tables hold.

    Raises:
        InputError: a table is missing or unusable.
    """
    gemm, decode, prefill = (read_table(folder / name, columns) for name, columns in _TABLES.items())
    _values(prefill, "attn_dtype", folder / "context_attention_perf.parquet", ("bfloat16", "fp8"))
    for name in _values(gemm, "gemm_dtype", folder / "gemm_perf.parquet", ("bfloat16", "fp8", "fp8_block")):
        yield _gemm_kernel(name, _where(gemm, gemm_dtype=name), ceilings)
    for table, file, make in (
        (decode, "generation_attention_perf.parquet", _decode_kernel),
        (prefill, "context_attention_perf.parquet", _prefill_kernel),
    ):
        for source in _values(table, "kernel_source", folder / file, ("fa3", "triton")):
            of_kernel = _where(table, kernel_source=source)
            # Both libraries compile a kernel, with tiles of its own, for each head dimension.
            for dim in sorted(set(of_kernel["head_dim"].tolist())):
                part = _where(of_kernel, head_dim=dim)
                for kv in _values(part, "kv_cache_dtype", folder / file, ("bfloat16", "fp8")):
                    yield from make(source, kv, dim, _where(part, kv_cache_dtype=kv), ceilings)


def _gemm_kernel(name: str, rows: Columns, ceilings: Ceilings) -> Kernel:
    start = _GEMMS["bf16" if name == "bfloat16" else name]
    shapes = list(zip(rows["m"].tolist(), rows["n"].tolist(), rows["k"].tolist(), strict=True))

    def predict(e: Any, row: int) -> float:
        m, n, k = shapes[row]
        return gemm_s(e, m, n, k, ceilings, SMS)

    m, n, k = (rows[c].astype(float) for c in ("m", "n", "k"))
    element = BYTES_PER_ELEMENT[start.precision]
    roofline = _roofline(2 * m * n * k, element * k * (m + n) + 2 * m * n, start.precision, ceilings)
    groups = {"shapes": _group(rows, "n", "k"), "batches": _group(rows, "m"), "rows": np.arange(len(shapes))}
    label = "bf16" if name == "bfloat16" else name
    return Kernel("gemm", label, start, predict, rows["latency"], roofline, groups)


def _decode_kernel(source: str, kv: str, dim: int, rows: Columns, ceilings: Ceilings) -> Iterator[Kernel]:
    start = replace(_DECODE, kernel=source, kv_precision=_PRECISION[kv], max_head_dim=dim)
    if source == "triton":
        start = replace(start, rows=16, compute=0.1, memory=0.5, splits=6.0, launch_s=6e-6)
    length = rows["isl"] + rows["step"]
    visible = np.where(rows["window_size"] > 0, np.minimum(length, rows["window_size"]), length)
    requests, heads, kv_heads, head_dim = (rows[c] for c in ("batch_size", *_SHAPE))
    context = requests * visible
    moved = 2 * context * kv_heads * head_dim * BYTES_PER_ELEMENT[start.kv_precision] + 4 * requests * heads * head_dim
    roofline = _roofline(4.0 * context * heads * head_dim, moved, Precision.BF16, ceilings)
    shapes = [c.tolist() for c in (requests, context, heads, kv_heads, head_dim)]

    def predict(e: Any, row: int) -> float:
        tokens, context_tokens, h, kv_h, d = (column[row] for column in shapes)
        return decode_attention_s(e, tokens, context_tokens, h, kv_h, d, ceilings, SMS)

    name = f"{source}, {start.kv_precision} KV, head dim {dim}"
    yield Kernel("decode attention", name, start, predict, rows["latency"], roofline, _attention_groups(rows))


def _prefill_kernel(source: str, kv: str, dim: int, table: Columns, ceilings: Ceilings) -> Iterator[Kernel]:
    for precision in sorted(set(table["attn_dtype"].tolist())):
        rows = _where(table, attn_dtype=precision)
        start = replace(_PREFILL, kernel=source, max_head_dim=dim, precision=_PRECISION[precision])
        start = replace(start, kv_precision=_PRECISION[kv])
        if source == "triton":
            start = replace(start, rows=64 if dim <= 256 else 32, packed=False, compute=0.1, sm=0.1, unskipped=0.3)
        requests, heads, kv_heads, head_dim = (rows[c] for c in ("batch_size", *_SHAPE))
        length = rows["isl"]
        visible = np.where(rows["window_size"] > 0, np.minimum(length, rows["window_size"]), length)
        causal = requests * (visible * (visible + 1) // 2 + (length - visible) * visible)
        masked = requests * (length * (length + 1) // 2) - causal
        new = requests * length
        moved = 2 * new * kv_heads * head_dim * BYTES_PER_ELEMENT[start.kv_precision] + 4 * new * heads * head_dim
        roofline = _roofline(4.0 * causal * heads * head_dim, moved, start.precision, ceilings)
        columns = (requests, new, new * visible, causal, heads, kv_heads, head_dim, masked)
        shapes = [column.tolist() for column in columns]

        def predict(e: Any, row: int, shapes: list[list[int]] = shapes) -> float:  # bound now: the loop goes on
            b, tokens, pairs, visible_pairs, h, kv_h, d, outside = (column[row] for column in shapes)
            return prefill_attention_s(e, b, tokens, tokens, pairs, visible_pairs, h, kv_h, d, ceilings, SMS, outside)

        name = f"{source}, {start.precision}, {start.kv_precision} KV, head dim {dim}"
        groups = _attention_groups(rows)
        yield Kernel("prefill attention", name, start, predict, rows["latency"], roofline, groups)


def fit(kernel: Kernel, chosen: NDArray[np.int64]) -> Coefficients:
    """Coefficients by least squares on log time with a robust loss, over at most FITTED_ROWS of the chosen rows."""
    from scipy.optimize import least_squares  # type: ignore[import-untyped]

    if len(chosen) > FITTED_ROWS:
        chosen = np.sort(np.random.default_rng(0).choice(chosen, FITTED_ROWS, replace=False))
    wanted = np.log(kernel.seconds[chosen])
    rows = chosen.tolist()
    started = {f.name: getattr(kernel.start, f.name) for f in fields(kernel.start)}
    names = [n for n in _FREE if started.get(n) and not (n == "wave" and started[n] == 1.0)]
    low, high = np.log([_FREE[n] for n in names]).T

    def coefficients(logs: Floats) -> Coefficients:
        # Four digits, as they are written: the errors are those of the file.
        values: dict[str, Any] = {n: float(f"{v:.4g}") for n, v in zip(names, np.exp(logs), strict=True)}
        return replace(kernel.start, **values)

    def residuals(logs: Floats) -> Floats:
        values: dict[str, Any] = dict(zip(names, np.exp(logs).tolist(), strict=True))
        tried = replace(kernel.start, **values)
        return np.asarray(np.log([kernel.predict(tried, row) for row in rows]) - wanted)

    first = np.clip(np.log([started[n] for n in names]), low + 1e-3, high - 1e-3)
    how = {"loss": "soft_l1", "f_scale": ROBUST_AT, "diff_step": STEP, "max_nfev": MOST_EVALUATIONS}
    found = least_squares(residuals, first, bounds=(low, high), **how)
    return coefficients(np.asarray(found.x))


def held_out(groups: NDArray[np.int64]) -> NDArray[np.bool_]:
    """A fifth of the groups, at least one; all rows of a group go together."""
    count = int(groups.max()) + 1
    return np.isin(groups, np.random.default_rng(1).permutation(count)[: max(1, round(HELD_OUT * count))])


def measure(kernel: Kernel, split: str) -> tuple[Coefficients, list[Floats]]:
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


def summary(operation: str, kernel: str, split: str, errors: Sequence[Floats]) -> Error:
    """Median and 90th percentile of our errors, then of the roofline's."""
    figures = (round(float(np.quantile(of, q)), 4) for of in errors for q in (0.5, 0.9))
    return Error(operation, kernel, split, len(errors[0]), *figures)


def fit_all(folder: Path, ceilings: Ceilings, device: str, day: str) -> tuple[dict[str, Any], list[Error]]:
    """The file's content, and the errors of every kernel and of each operation's kernels together.

    Raises:
        InputError: a table is missing or unusable.
    """
    shipped: dict[str, Any] = {"gemm": {}, "decode attention": [], "prefill attention": []}
    errors = []
    pooled: dict[tuple[str, str], list[list[Floats]]] = {}
    for kernel in kernels(folder, ceilings):
        for split in SPLITS:
            found, held = measure(kernel, split)
            errors.append(summary(kernel.operation, kernel.name, split, held))
            pooled.setdefault((kernel.operation, split), []).append(held)
            done = f"{kernel.operation}, {kernel.name}, {split}: median {errors[-1].median:.1%}"
            print(done, file=sys.stderr, flush=True)
            if split == SHIPPED and isinstance(found, GemmEfficiency):
                shipped["gemm"][kernel.name] = _plain(found)
            elif split == SHIPPED:
                shipped[kernel.operation].append(_plain(found))
    for (operation, split), parts in pooled.items():
        together = [np.concatenate(of) for of in zip(*parts, strict=True)]
        errors.append(summary(operation, "all", split, together))
    content = {"device": device, "sms": SMS, "source": SOURCE, "date": day, "gemm": shipped["gemm"]}
    content |= {"decode": shipped["decode attention"], "prefill": shipped["prefill attention"]}
    Efficiency.from_dict(content, "the fit")
    return content, errors


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m bench.fit.efficiency", description=__doc__, formatter_class=raw)
    parser.add_argument("--tables", type=Path, required=True, help="folder of the three tables")
    parser.add_argument("--out", type=Path, help="file to write the coefficients to")
    parser.add_argument("--device", default="h200", help="catalogue name of the device they were measured on")
    parser.add_argument("--date", default=date.today().isoformat(), help="what to date the fit with")
    args = parser.parse_args(argv)
    try:
        content, errors = fit_all(args.tables, from_catalogue(args.device), args.device, args.date)
        if args.out:
            _write(args.out, content)
    except InputError as error:
        print(error, file=sys.stderr)
        return EXIT_BAD_INPUT
    print(f"{'operation':<18} {'kernel':<34} {'held out':<8} {'rows':>6} {'median':>7} {'P90':>7}   plain roofline")
    for e in errors:
        figures = f"{e.rows:6d} {e.median:7.1%} {e.p90:7.1%}  {e.roofline_median:7.1%} {e.roofline_p90:7.1%}"
        print(f"{e.operation:<18} {e.kernel:<34} {e.split:<8} {figures}")
    print(json.dumps({"device": args.device, "source": SOURCE, "errors": [asdict(e) for e in errors]}))
    return 0


def _write(file: Path, content: Mapping[str, Any]) -> None:
    head = (
        "# Written by `python -m bench.fit.efficiency`; "
        "what the coefficients mean: roofline_policies/steps/efficiency.py.\n"
    )
    text = yaml.safe_dump(dict(content), sort_keys=False, default_flow_style=None, width=118)
    try:
        file.write_text(head + text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror}", where=str(file)) from None


def _plain(found: Coefficients) -> dict[str, Any]:
    values = {key: value for key, value in asdict(found).items() if value is not None}
    if "tiles" in values:
        values["tiles"] = [{k: v for k, v in tile.items() if v} for tile in values["tiles"]]
    return {key: value.value if isinstance(value, Precision) else value for key, value in values.items()}


def _values(table: Columns, column: str, file: Path, allowed: Sequence[str]) -> list[str]:
    found = sorted(set(table[column].tolist()))
    for value in found:
        if value not in allowed:
            raise InputError("unknown value", where=str(file), key=column, value=value, allowed=allowed)
    return found


def _where(table: Columns, **wanted: object) -> Columns:
    ((column, value),) = wanted.items()
    mask = table[column] == value
    return {name: values[mask] for name, values in table.items()}


def _group(rows: Columns, *columns: str) -> NDArray[np.int64]:
    _, groups = np.unique(np.stack([rows[c] for c in columns]), axis=1, return_inverse=True)
    return groups.reshape(-1)


def _attention_groups(rows: Columns) -> Mapping[str, NDArray[np.int64]]:
    return {
        "shapes": _group(rows, *_SHAPE), "batches": _group(rows, "batch_size"), "rows": np.arange(len(rows["latency"]))
    }  # fmt: skip


def _roofline(flops: Floats, moved: Floats, precision: Precision, ceilings: Ceilings) -> Floats:
    return np.maximum(flops / ceilings.compute_ceiling(precision), moved / ceilings.bytes_per_s)


if __name__ == "__main__":
    sys.exit(main())
