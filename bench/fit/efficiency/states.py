"""Linear attention: recurrences over tokens with a state per request, and the convolutions before them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from bench.fit.efficiency.fitting import Kernel
from bench.fit.efficiency.tables import Table, all_positive, group, roofline, values, where
from roofline_policies.device.hardware import Ceilings
from roofline_policies.model.parts import State
from roofline_policies.steps.kernels.coefficients import StateEfficiency
from roofline_policies.steps.kernels.state_time import state_s
from roofline_policies.work import Precision

FILES = ("gdn_perf.parquet", "kda_perf.parquet")
COLUMNS = (
    "kernel_source", "phase", "batch_size", "seq_len", "num_tokens", "d_conv", "num_k_heads", "head_k_dim",
    "num_v_heads", "head_v_dim", "op_name",
)  # fmt: skip
ROWS = 1500

_PREFILL, _DECODE = "prefill", "decode"


class Kind(NamedTuple):
    kind: str
    phase: str


SOURCES: Mapping[tuple[str, str], Kind] = {
    ("gdn", "causal_conv1d_fn"): Kind("gdn_conv", _PREFILL),
    ("gdn", "causal_conv1d_update"): Kind("gdn_conv", _DECODE),
    ("gdn", "chunk_gated_delta_rule"): Kind("gdn", _PREFILL),
    ("gdn", "fused_recurrent_gated_delta_rule_packed_decode"): Kind("gdn", _DECODE),
    ("gdn", "fused_recurrent_gated_delta_rule"): Kind("gdn", _DECODE),
    ("kda", "causal_conv1d_fn_qkv3"): Kind("kda_conv", _PREFILL),
    ("kda", "causal_conv1d_update"): Kind("kda_conv", _DECODE),
    ("kda", "chunk_kda"): Kind("kda", _PREFILL),
    ("kda", "fused_recurrent_kda_packed_decode"): Kind("kda", _DECODE),
}
"""What is fitted. Others (steps that verify drafts, a kernel that is one with its convolution) have too few rows."""
_OTHERS = ("kda_fused_decode", "fused_sigmoid_gating_delta_rule_update", "fused_kda_decode_mtp_dspark")
_PHASES = {"context": _PREFILL, "generation": _DECODE, "verify": "verify"}

_START = StateEfficiency(
    "",
    "",
    "",
    launch_s=6e-6,
    request_rows=30.0,
    memory=0.6,
    compute=0.1,
    chain_s=2e-6,
    fill_s=1e-5,
    slowdown=0.5,
    slowdown_s=5e-4,
    overlap=1.5,
)
_FREE = {
    "launch_s": (5e-7, 2e-4),
    "request_rows": (0.01, 1e3),
    "compute": (1e-3, 1.0),
    "chain_s": (1e-9, 1e-4),
    "fill_s": (1e-9, 2e-4),
    "slowdown": (0.01, 5.0),
}


def kernels(table: Table, ceilings: Ceilings, sms: int) -> Iterator[Kernel]:
    """One kernel for each of SOURCES that the table has.

    Raises:
        InputError: an unknown kernel or phase.
    """
    columns = all_positive(table)
    values(columns, "phase", table.file, list(_PHASES))
    known = list(dict.fromkeys([*(source for _, source in SOURCES), *_OTHERS]))
    for source in values(columns, "kernel_source", table.file, known):
        for operation in values(columns, "op_name", table.file, ("gdn", "kda")):
            found = SOURCES.get((operation, source))
            if found is None:
                continue
            phase = next(name for name, ours in _PHASES.items() if ours == found.phase)
            rows = where(columns, kernel_source=source, op_name=operation, phase=phase)
            if not len(rows["latency"]):
                continue
            names = ("num_k_heads", "head_k_dim", "num_v_heads", "head_v_dim", "d_conv")
            parts = [state_of(found.kind, *one) for one in zip(*(rows[c].tolist() for c in names), strict=True)]
            requests = rows["batch_size"].tolist()
            tokens = (rows["num_tokens"] if found.phase == _PREFILL else rows["batch_size"]).tolist()

            def predict(
                e: Any, row: int, parts: list[State] = parts, requests: list[int] = requests, tokens: list[int] = tokens
            ) -> float:  # bound now: the loop goes on
                return state_s(e, parts[row], requests[row], tokens[row], ceilings)

            moved = np.array([2.0 * s.state_bytes * b + 2.0 * s.row_elements * n
                              for s, b, n in zip(parts, requests, tokens, strict=True)])  # fmt: skip
            flops = np.array([float(s.row_flops) * n for s, n in zip(parts, tokens, strict=True)])
            least = roofline(flops, moved, Precision.BF16, ceilings)
            start = replace(_START, kind=found.kind, phase=found.phase, kernel=source)
            if found.kind.endswith("_conv") or found.phase == _DECODE:
                start = replace(start, chain_s=0.0, fill_s=0.0, slowdown=0.0)
            if found.phase == _DECODE:
                start = replace(start, request_rows=0.0)
            groups = {
                "shapes": group(rows, "num_k_heads", "num_v_heads"),
                "batches": group(rows, "batch_size"),
                "rows": np.arange(len(parts)),
            }
            name = f"{found.kind}, {found.phase}"
            seconds = rows["latency"]
            yield Kernel("linear attention", name, "states", start, predict, seconds, least, groups, _FREE, ROWS)


def state_of(kind: str, k_heads: int, k_dim: int, v_heads: int, v_dim: int, taps: int) -> State:
    """The part of a model that one layer of a kind is; see ``State``. A state's elements have four bytes, a
    convolution's are those of the activations and part of the mixer's."""
    channels = 2 * k_heads * k_dim + v_heads * v_dim
    if kind.endswith("_conv"):
        return State(1, 2 * channels * taps, 0, 2 * channels)
    elements = v_heads * k_dim * v_dim
    return State(1, 6 * elements, 4 * elements, channels)
