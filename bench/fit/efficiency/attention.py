"""Softmax attention, of one and of many new tokens per request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.fit.efficiency.fitting import Kernel
from bench.fit.efficiency.tables import PRECISIONS, Columns, Groups, Table, all_positive, group, roofline, values, where
from roofline_policies.device.hardware import Ceilings
from roofline_policies.steps.kernels.coefficients import DecodeEfficiency, PrefillEfficiency
from roofline_policies.steps.kernels.kernel_time import decode_attention_s, prefill_attention_s
from roofline_policies.work import BYTES_PER_ELEMENT, Precision

_SHAPE = ("num_heads", "num_key_value_heads", "head_dim")
_COLUMNS = ("kernel_source", "kv_cache_dtype", "batch_size", "isl", *_SHAPE)
DECODE_FILE, DECODE_COLUMNS = "generation_attention_perf.parquet", (*_COLUMNS, "step")
PREFILL_FILE, PREFILL_COLUMNS = "context_attention_perf.parquet", (*_COLUMNS, "attn_dtype")
OPTIONAL = {"window_size": 0}  # older tables have no windows

SOURCES: Mapping[str, str] = {
    "fa3": "fa3", "flash_attention": "fa3", "triton": "triton", "flashinfer": "flashinfer", "trtllm_mha": "trtllm_mha",
}  # fmt: skip
"""SGLang's names of its backends by the tables' own. Its FlashAttention backend is ``fa3`` on an A100 too."""

DECODE = DecodeEfficiency(
    "fa3", Precision.BF16, 256, rows=128, launch_s=9e-6, length_s=5e-7, block_s=2.5e-6, memory=0.85,
    compute=0.3, overlap=1.5, splits=64.0,
)  # fmt: skip
PREFILL = PrefillEfficiency(
    "fa3", Precision.BF16, Precision.BF16, 256, rows=128, packed=True, launch_s=9e-6, block_s=2.5e-6, memory=0.6,
    compute=0.6, sm=0.7, key_pad=100.0, unskipped=0.05, overlap=1.2,
)  # fmt: skip
# Beside FlashAttention-3: query rows of a block, whether the heads of a KV head share it, and other first guesses.
_DECODE_STARTS: Mapping[str, Mapping[str, Any]] = {
    "triton": {"rows": 16, "compute": 0.1, "memory": 0.5, "splits": 6.0, "launch_s": 6e-6},
    "flashinfer": {"rows": 64, "compute": 0.1, "memory": 0.7, "splits": 32.0, "launch_s": 6e-6},
    "trtllm_mha": {"rows": 64, "compute": 0.3, "memory": 0.7, "splits": 32.0, "launch_s": 6e-6},
}
_TRITON: Mapping[str, Any] = {"packed": False, "compute": 0.1, "sm": 0.1, "unskipped": 0.3}
_PREFILL_STARTS: Mapping[str, Mapping[str, Any]] = {
    "flashinfer": {"rows": 64, "compute": 0.4, "sm": 0.5},
    "trtllm_mha": {"rows": 128, "packed": False, "compute": 0.4, "sm": 0.5},
}


def kernels(decode: Table, prefill: Table, ceilings: Ceilings, sms: int) -> Iterator[Kernel]:
    """One kernel for each library, head dimension and precisions, those of one new token first; the library with most
    rows first.

    Raises:
        InputError: an unknown library or precision.
    """
    for table, make in ((decode, _decode), (prefill, _prefill)):
        columns = all_positive(table)
        if table is prefill:
            values(columns, "attn_dtype", table.file, ("bfloat16", "fp8"))
        for source in by_rows(columns, table.file):
            of_kernel = where(columns, kernel_source=source)
            # Libraries compile a kernel, with tiles of its own, for each head dimension.
            for dim in sorted(set(of_kernel["head_dim"].tolist())):
                part = where(of_kernel, head_dim=dim)
                for kv in values(part, "kv_cache_dtype", table.file, ("bfloat16", "fp8")):
                    yield from make(SOURCES[source], kv, dim, where(part, kv_cache_dtype=kv), ceilings, sms)


def by_rows(columns: Columns, file: Path) -> list[str]:
    """The libraries of a table, those with most rows first."""
    values(columns, "kernel_source", file, list(SOURCES))
    return [source for source, _ in sorted(Counter(columns["kernel_source"].tolist()).items(), key=lambda one: -one[1])]


def _decode(source: str, kv: str, dim: int, rows: Columns, ceilings: Ceilings, sms: int) -> Iterator[Kernel]:
    start = replace(DECODE, kernel=source, kv_precision=PRECISIONS[kv], max_head_dim=dim)
    start = replace(start, **_DECODE_STARTS.get(source, {}))
    length = rows["isl"] + rows["step"]
    visible = np.where(rows["window_size"] > 0, np.minimum(length, rows["window_size"]), length)
    requests, heads, kv_heads, head_dim = (rows[c] for c in ("batch_size", *_SHAPE))
    context = requests * visible
    moved = 2 * context * kv_heads * head_dim * BYTES_PER_ELEMENT[start.kv_precision] + 4 * requests * heads * head_dim
    least = roofline(4.0 * context * heads * head_dim, moved, Precision.BF16, ceilings)
    shapes = [c.tolist() for c in (requests, context, heads, kv_heads, head_dim)]

    def predict(e: Any, row: int) -> float:
        tokens, context_tokens, h, kv_h, d = (column[row] for column in shapes)
        return decode_attention_s(e, tokens, context_tokens, h, kv_h, d, ceilings, sms)

    name = f"{source}, {start.kv_precision} KV, head dim {dim}"
    yield Kernel("decode attention", name, "decode", start, predict, rows["latency"], least, _groups(rows))


def _prefill(source: str, kv: str, dim: int, table: Columns, ceilings: Ceilings, sms: int) -> Iterator[Kernel]:
    for precision in sorted(set(table["attn_dtype"].tolist())):
        rows = where(table, attn_dtype=precision)
        start = replace(PREFILL, kernel=source, max_head_dim=dim, precision=PRECISIONS[precision])
        start = replace(start, kv_precision=PRECISIONS[kv], **_PREFILL_STARTS.get(source, {}))
        if source == "triton":
            start = replace(start, rows=64 if dim <= 256 else 32, **_TRITON)
        requests, heads, kv_heads, head_dim = (rows[c] for c in ("batch_size", *_SHAPE))
        length = rows["isl"]
        visible = np.where(rows["window_size"] > 0, np.minimum(length, rows["window_size"]), length)
        causal = requests * (visible * (visible + 1) // 2 + (length - visible) * visible)
        masked = requests * (length * (length + 1) // 2) - causal
        new = requests * length
        moved = 2 * new * kv_heads * head_dim * BYTES_PER_ELEMENT[start.kv_precision] + 4 * new * heads * head_dim
        least = roofline(4.0 * causal * heads * head_dim, moved, start.precision, ceilings)
        columns = (requests, new, new * visible, causal, heads, kv_heads, head_dim, masked)
        shapes = [column.tolist() for column in columns]

        def predict(e: Any, row: int, shapes: list[list[int]] = shapes) -> float:  # bound now: the loop goes on
            b, tokens, pairs, visible_pairs, h, kv_h, d, outside = (column[row] for column in shapes)
            return prefill_attention_s(e, b, tokens, tokens, pairs, visible_pairs, h, kv_h, d, ceilings, sms, outside)

        name = f"{source}, {start.precision}, {start.kv_precision} KV, head dim {dim}"
        yield Kernel("prefill attention", name, "prefill", start, predict, rows["latency"], least, _groups(rows))


def _groups(rows: Columns) -> Mapping[str, Groups]:
    return {
        "shapes": group(rows, *_SHAPE), "batches": group(rows, "batch_size"), "rows": np.arange(len(rows["latency"]))
    }  # fmt: skip
