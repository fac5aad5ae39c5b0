"""Attention to latents in both forms, and the products between latents and heads.

The tables have DeepSeek's sizes alone: a latent of 512, a rotated key of 64, heads of 128.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from bench.fit.efficiency.attention import DECODE, PREFILL
from bench.fit.efficiency.fitting import Kernel
from bench.fit.efficiency.tables import (
    PRECISIONS,
    Columns,
    Groups,
    Table,
    all_positive,
    group,
    pick,
    roofline,
    values,
    where,
)
from roofline_policies.device.hardware import Ceilings
from roofline_policies.steps.kernels.coefficients import DecodeEfficiency, LatentProductEfficiency, PrefillEfficiency
from roofline_policies.steps.kernels.kernel_time import latent_decode_s, latent_prefill_s
from roofline_policies.steps.kernels.latent_time import latent_product_s
from roofline_policies.work import BYTES_PER_ELEMENT, Precision

DECODE_FILE, PREFILL_FILE = "generation_mla_perf.parquet", "context_mla_perf.parquet"
COLUMNS = ("kernel_source", "mla_dtype", "kv_cache_dtype", "num_heads", "batch_size", "isl", "step")
PRODUCT_FILE = "mla_bmm_perf.parquet"
PRODUCT_COLUMNS = ("op_name", "kernel_source", "bmm_dtype", "num_tokens", "num_heads")

LATENT, ROPE, NOPE, VALUE = 512, 64, 128, 128
KEY = LATENT + ROPE
SOURCES: Mapping[str, str] = {"flash_attention": "fa3", "triton": "triton", "trtllm_mla": "trtllm_mla"}
EXPANDED = ("trtllm_mla",)
"""Libraries whose table of many new tokens is of the expanded form: keys of NOPE + ROPE, values of VALUE, all heads
reading one key. Source: ai-dynamo/aiconfigurator, ``collector/sglang/collect_mla.py``, which builds the calls."""

_DECODE_STARTS: Mapping[str, Mapping[str, Any]] = {
    "fa3": {"rows": 64},
    "triton": {"rows": 16, "compute": 0.1, "memory": 0.5, "splits": 8.0, "pieces": 8},
    "trtllm_mla": {"rows": 32, "launch_s": 6e-6},
}
_PREFILL_STARTS: Mapping[str, Mapping[str, Any]] = {
    "triton": {"rows": 64, "packed": False, "compute": 0.1, "sm": 0.1},
    "trtllm_mla": {"rows": 128, "packed": True, "compute": 0.4},
}
_PRODUCT = LatentProductEfficiency("", Precision.BF16, rows=64, launch_s=4e-6, memory=0.7, compute=0.6, overlap=1.5)


def _parts(table: Table) -> Iterator[tuple[str, str, Columns]]:
    """The rows of each library and precision of the cache, with the names that the table has for both.

    Raises:
        InputError: an unknown library or precision.
    """
    columns = all_positive(table)
    for source in values(columns, "kernel_source", table.file, list(SOURCES)):
        for kv in values(columns, "kv_cache_dtype", table.file, ("bfloat16", "fp8")):
            yield source, kv, unique(where(columns, kernel_source=source, kv_cache_dtype=kv))


def decode_kernels(table: Table, ceilings: Ceilings, sms: int) -> Iterator[Kernel]:
    """One new token per request, absorbed.

    Raises:
        InputError: an unknown library or precision.
    """
    for source, kv, rows in _parts(table):
        if SOURCES[source] == "triton":  # a single head runs in another kernel, which no rank of a model needs
            rows = dict(pick(rows, rows["num_heads"] > 1))
        if not len(rows["latency"]):
            continue
        start: DecodeEfficiency = replace(
            DECODE, kernel=SOURCES[source], kv_precision=PRECISIONS[kv], max_head_dim=KEY,
            **_DECODE_STARTS[SOURCES[source]],
        )  # fmt: skip
        if start.kernel == "fa3" and kv == "fp8":  # its times are the same for 64 heads and for 128
            start = replace(start, rows=128)
        requests, heads = rows["batch_size"], rows["num_heads"]
        context = requests * (rows["isl"] + rows["step"])
        moved = context * KEY * BYTES_PER_ELEMENT[start.kv_precision] + 2 * requests * heads * (KEY + LATENT)
        least = roofline(2.0 * context * heads * (KEY + LATENT), moved, Precision.BF16, ceilings)
        shapes = [c.tolist() for c in (requests, context, heads)]

        def predict(e: Any, row: int, shapes: list[list[int]] = shapes) -> float:  # bound now: the loop goes on
            b, tokens, h = (column[row] for column in shapes)
            return latent_decode_s(e, b, tokens, h, KEY, LATENT, ceilings, sms)

        name = f"{start.kernel}, {start.kv_precision} KV"
        seconds = rows["latency"]
        yield Kernel("latent decode", name, "latent_decode", start, predict, seconds, least, _groups(rows))


def prefill_kernels(table: Table, ceilings: Ceilings, sms: int) -> Iterator[Kernel]:
    """Many new tokens per request, in the form that the library has.

    Raises:
        InputError: an unknown library or precision.
    """
    for source, kv, rows in _parts(table):
        if not len(rows["latency"]):
            continue
        expanded = source in EXPANDED
        key, value = (NOPE + ROPE, VALUE) if expanded else (KEY, LATENT)
        start: PrefillEfficiency = replace(
            PREFILL, kernel=SOURCES[source], kv_precision=PRECISIONS[kv], max_head_dim=key, unskipped=0.0,
            **_PREFILL_STARTS.get(SOURCES[source], {}),
        )  # fmt: skip
        requests, heads, length = rows["batch_size"], rows["num_heads"], rows["isl"]
        new = requests * length
        causal = requests * (length * (length + 1) // 2)
        moved = new * key * BYTES_PER_ELEMENT[start.kv_precision] + 2 * new * heads * (key + value)
        least = roofline(2.0 * causal * heads * (key + value), moved, Precision.BF16, ceilings)
        shapes = [c.tolist() for c in (requests, new, new * length, causal, heads)]

        def predict(
            e: Any, row: int, shapes: list[list[int]] = shapes, key: int = key, value: int = value
        ) -> float:  # bound now: the loop goes on
            b, tokens, pairs, seen, h = (column[row] for column in shapes)
            return latent_prefill_s(e, b, tokens, tokens, pairs, seen, h, key, value, ceilings, sms)

        written = "expanded_prefill" if expanded else "latent_prefill"
        name = f"{start.kernel}, {start.kv_precision} KV, {'expanded' if expanded else 'absorbed'}"
        seconds = rows["latency"]
        yield Kernel("latent prefill", name, written, start, predict, seconds, least, _groups(rows))


def product_kernels(table: Table, ceilings: Ceilings, sms: int) -> Iterator[Kernel]:
    """The products before and after absorbed attention, one kernel for both.

    Raises:
        InputError: an unknown precision or product.
    """
    columns = all_positive(table)
    values(columns, "op_name", table.file, ("mla_gen_pre", "mla_gen_post"))
    for dtype in values(columns, "bmm_dtype", table.file, ("bfloat16", "fp8")):
        rows = unique(where(columns, bmm_dtype=dtype))
        start = replace(_PRODUCT, kernel=str(rows["kernel_source"][0]), precision=PRECISIONS[dtype])
        if dtype == "fp8":
            start = replace(start, quantise=0.3)
        before = rows["op_name"] == "mla_gen_pre"
        outputs, inputs = np.where(before, LATENT, VALUE), np.where(before, NOPE, LATENT)
        tokens, heads = rows["num_tokens"], rows["num_heads"]
        element = BYTES_PER_ELEMENT[start.precision]
        moved = heads * (tokens * (element * inputs + 2 * outputs) + element * outputs * inputs)
        least = roofline(2.0 * heads * tokens * outputs * inputs, moved, start.precision, ceilings)
        shapes = [c.tolist() for c in (heads, tokens, outputs, inputs)]

        def predict(e: Any, row: int, shapes: list[list[int]] = shapes) -> float:  # bound now: the loop goes on
            h, m, n, k = (column[row] for column in shapes)
            return latent_product_s(e, h, m, n, k, ceilings, sms)

        groups = {
            "shapes": group(rows | {"before": before.astype(int)}, "num_heads", "before"),
            "batches": group(rows, "num_tokens"),
            "rows": np.arange(len(rows["latency"])),
        }
        seconds, name = rows["latency"], str(start.precision)
        yield Kernel("latent products", name, "latent_products", start, predict, seconds, least, groups)


def unique(rows: Columns) -> dict[str, Any]:
    """One row of those that differ in their latency alone, as where a table has each twice: the faster."""
    keys = [name for name in rows if name not in ("latency", "tp_size")]
    order = np.lexsort([rows["latency"], *(np.asarray(rows[name]).astype(str) for name in keys)])
    texts = [np.asarray(rows[name]).astype(str)[order] for name in keys]
    first = np.ones(len(order), dtype=bool)
    if len(order) > 1:
        first[1:] = np.any([text[1:] != text[:-1] for text in texts], axis=0)
    return {name: column[order][first] for name, column in rows.items()}


def _groups(rows: Columns) -> Mapping[str, Groups]:
    places = np.arange(len(rows["latency"]))
    return {"shapes": group(rows, "num_heads"), "batches": group(rows, "batch_size"), "rows": places}
