"""The GPU measurement's course in the interpreter: everything but the device's own timing, graphs and driver."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from bench.gpu import counting
from bench.gpu.device import Loaded, Paired, SnapshotCost, launches_of
from bench.kernels import attention
from roofline_policies.counting import Ledger

SMALL: dict[str, Any] = {"heads": 4, "kv_heads": 2, "head_dim": 16, "dtype": torch.float16}
CASES = {
    "decode": partial(attention.decode, (40, 5), **SMALL, max_kv_splits=4, name="decode"),
    "latent": partial(attention.decode_mla, (9,), heads=3, max_kv_splits=2, dtype=torch.float16, name="latent"),
    "extend": partial(attention.extend, (40,), (7,), **SMALL, name="extend"),
    "unified": partial(attention.extend_unified, (40,), (7,), **SMALL, sliding_window=9, name="unified"),
    "kv indices": partial(attention.kv_indices, (40, 3)),
    "num kv splits": partial(attention.num_kv_splits, (40, 3), heads=4, kv_heads=2),
}


class Graph:
    """What a CUDA graph would do, without capturing anything."""

    def __init__(self, function: Callable[[], object]) -> None:
        function()
        self.replay = function


class Watch:
    def pair(self, plain: Callable[[], object], counted: Callable[[], object], repeats: int) -> Paired:
        plain()
        counted()
        return Paired((1.0,) * repeats, (1.0,) * repeats)


@pytest.fixture(autouse=True)
def a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger("cpu", rows=16)
    registers = iter(range(100, 1000))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(counting, "REPLAYS", 3)
    monkeypatch.setattr(counting, "Stopwatch", Watch)
    monkeypatch.setattr(counting, "captured", Graph)
    monkeypatch.setattr(counting, "ledger_of", lambda device: ledger)
    monkeypatch.setattr(counting, "loaded", lambda compiled: Loaded(next(registers), 0, 4))
    monkeypatch.setattr(counting, "device_facts", dict)
    monkeypatch.setattr(counting, "snapshot_cost", lambda ledger, repeats: SnapshotCost((1.0,), (1.0,), False))


def test_every_case_is_counted_launched_and_replayed() -> None:
    progress: list[str] = []
    found = counting.measure(CASES, 5, float("inf"), progress.append)
    assert found.failures == {}
    assert found.right
    assert [(row.exact, row.graph) for row in found.rows] == [(True, True)] * len(found.rows)
    assert [row.kernel for row in found.rows] == [kernel for make in CASES.values() for kernel in make().kernels]
    assert [row.held is not None for row in found.rows] == [True] * len(found.rows)
    assert [bool(row.compulsory_bytes) for row in found.rows][:4] == [True, False, True, False]
    assert all(row.compulsory_bytes <= sum(row.expected.loads.values()) for row in found.rows)
    assert progress[0] == "case 1 of 6: decode"


def test_what_takes_too_long_is_skipped_and_what_fails_is_told() -> None:
    assert counting.measure(CASES, 5, float("-inf"), lambda line: None).skipped == list(CASES)
    broken = CASES | {"extend": partial(attention.extend, (40,), (70,), **SMALL, custom_mask=[torch.ones(70, 110) > 0])}
    found = counting.measure(broken, 5, float("inf"), lambda line: None)
    assert list(found.failures) == ["extend"]
    assert "custom mask" in found.failures["extend"]
    assert not found.right
    assert {row.case for row in found.rows} == {"decode", "latent", "unified", "kv indices", "num kv splits"}


def test_a_count_that_is_wrong_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = counting.closed_forms.of_case
    monkeypatch.setattr(
        counting.closed_forms,
        "of_case",
        lambda case, splits: {name: replace(form, loads={"k": 1}) for name, form in right(case, splits).items()},
    )
    found = counting.measure({"decode": CASES["decode"]}, 5, float("inf"), lambda line: None)
    assert [(row.exact, row.graph) for row in found.rows] == [(False, False)] * 2
    assert not found.right


def test_launches_are_kept_as_their_wrapper_makes_them() -> None:
    case = CASES["decode"]()
    kept = launches_of(case)
    assert [launch.name for launch in kept] == list(case.kernels)
    assert kept[0].kwargs["grid"] == (2, 2, 4)
    assert kept[0].args[0] is case.inputs["q"]
    other = replace(case, kernels=("_fwd_kernel",))
    with pytest.raises(RuntimeError, match="decode: launched _fwd_grouped_kernel_stage1"):
        counting.expected_rows(other, kept)
