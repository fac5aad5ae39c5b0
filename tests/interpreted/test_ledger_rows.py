"""Rows of a ledger under many counted kernels: none is lost, none counts for another, and nothing moves."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st

from roofline_policies.counting import Counts, Ledger, LedgerError, counted, difference, slots
from roofline_policies.counting.ledger import ROWS

MANY = 1000


@triton.jit
def copy_kernel(x, out, n, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    tl.store(out + offs, tl.load(x + offs, mask=offs < n), mask=offs < n)


X, OUT = torch.zeros(16), torch.zeros(16)


def launch(kernel: Any, n: int) -> None:
    kernel[(1,)](X, OUT, n, BLOCK=16)


def loaded(counts: Counts) -> int:
    return counts.load_bytes // 4


@pytest.fixture
def ledger(monkeypatch: pytest.MonkeyPatch) -> Ledger:
    """The common one, as a process begins with it."""
    from roofline_policies.counting import kernel

    common = Ledger("cpu")
    monkeypatch.setattr(kernel, "ledger_of", lambda device: common)
    return common


def test_a_thousand_kernels_alive(ledger: Ledger) -> None:
    kernels = [counted(copy_kernel) for _ in range(MANY)]
    for number, kernel in enumerate(kernels):
        launch(kernel, number % 16)
    assert [loaded(kernel.counts()) for kernel in kernels] == [number % 16 for number in range(MANY)]
    assert len(ledger.names) == MANY
    assert [loaded(Counts.of(row)) for row in ledger.snapshot().totals()] == [number % 16 for number in range(MANY)]


def test_a_thousand_kernels_that_are_gone(ledger: Ledger) -> None:
    for number in range(MANY):
        kernel = counted(copy_kernel)
        launch(kernel, number % 16)
        assert loaded(kernel.counts()) == number % 16
        del kernel
    assert len(ledger.names) == 1
    assert ledger.rows == ROWS
    total = sum(number % 16 for number in range(MANY))
    assert loaded(Counts.of(ledger.read()[0])) == total  # nothing is ever reset: the sum of all rows stays true


def test_a_kernel_under_an_autotuner_gives_its_row_back(ledger: Ledger) -> None:
    tuned = triton.heuristics({"BLOCK": lambda arguments: 16})(copy_kernel)
    for number in range(20):
        kernel = counted(tuned)
        kernel[(1,)](X, OUT, number % 16)
        assert loaded(kernel.counts()) == number % 16
        del kernel
    gc.collect()
    launch(last := counted(copy_kernel), 5)
    assert len(ledger.names) == 1
    assert loaded(last.counts()) == 5


def test_what_is_closed_keeps_its_counts_and_gives_its_row_back(ledger: Ledger) -> None:
    first, second = counted(copy_kernel), counted(copy_kernel)
    launch(first, 7)
    first.close()
    first.close()
    launch(second, 3)
    assert ledger.names == ("copy_kernel",)
    assert (loaded(first.counts()), loaded(second.counts())) == (7, 3)
    with pytest.raises(LedgerError, match=r"copy_kernel is closed; allowed: counted\(kernel\), made anew"):
        launch(first, 7)
    launch(second, 3)
    assert (loaded(first.counts()), loaded(second.counts())) == (7, 6)
    del first
    gc.collect()
    launch(third := counted(copy_kernel), 2)
    assert (loaded(second.counts()), loaded(third.counts())) == (6, 2)  # a row is given back once


def test_closed_before_the_first_launch(ledger: Ledger) -> None:
    kernel, off = counted(copy_kernel), counted(copy_kernel, "off")
    kernel.close()
    off.close()
    assert kernel.counts() == off.counts() == Counts()
    launch(off, 3)
    with pytest.raises(LedgerError, match="closed"):
        launch(kernel, 3)
    assert ledger.names == ()


def test_counters_do_not_move_when_a_ledger_grows() -> None:
    """A captured graph, or a launch under way, holds their addresses."""
    ledger = Ledger("cpu", rows=2)
    kernels, addresses = [], []
    for _ in range(40):
        kernels.append(counted(copy_kernel, ledger=ledger))
        addresses.append(ledger.row(len(addresses)).data_ptr())
    assert [ledger.row(number).data_ptr() for number in range(40)] == addresses
    assert len(set(addresses)) == 40
    launch(kernels[0], 9)
    assert ledger.row(0)[slots.LOAD] == 36


def test_a_kernel_in_a_captured_graph_keeps_its_row(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for a CUDA stream under capture: what is called is what a launch there calls."""
    kernel = counted(copy_kernel)
    launch(kernel, 1)
    captured = counted(copy_kernel)
    launch(captured, 2)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    captured._launcher._keep_row_where_captured()
    monkeypatch.undo()
    del captured
    kernel.close()
    launch(first := counted(copy_kernel, ledger=ledger), 3)
    launch(second := counted(copy_kernel, ledger=ledger), 4)
    assert len(ledger.names) == 3
    assert Counts.of(ledger.read()[1]).load_bytes == 8  # nobody else counts there
    assert (loaded(first.counts()), loaded(second.counts())) == (3, 4)


def test_a_snapshot_knows_whose_rows_it_holds(ledger: Ledger) -> None:
    kernel = counted(copy_kernel)
    launch(kernel, 4)
    before = ledger.snapshot()
    kernel.close()
    other = triton.jit(copy_kernel.fn)
    other.fn.__qualname__ = "renamed"
    try:
        launch(after := counted(other), 6)
    finally:
        other.fn.__qualname__ = "copy_kernel"
    assert (before.names, ledger.snapshot().names) == (("copy_kernel",), ("renamed",))
    assert difference(ledger.snapshot().totals(), before.totals())[0][slots.LOAD] == 24
    assert loaded(after.counts()) == 6


steps = st.lists(st.tuples(st.sampled_from(["make", "launch", "drop", "close"]), st.integers(0, 15)), max_size=30)


@settings(deadline=None, max_examples=25)
@given(steps)
def test_nobody_counts_for_another(steps: list[tuple[str, int]]) -> None:
    """Kernels made, launched, dropped and closed in any order; the ledger as small as there is one."""
    ledger = Ledger("cpu", rows=1)
    alive: list[tuple[Any, list[int]]] = []
    for step, number in steps:
        if step == "make":
            alive.append((counted(copy_kernel, ledger=ledger), [0]))
        elif alive:
            kernel, expected = alive[number % len(alive)]
            if step == "launch":
                launch(kernel, number)
                expected[0] += number
            else:
                if step == "close":
                    kernel.close()
                    assert loaded(kernel.counts()) == expected[0]
                alive.pop(number % len(alive))
            del kernel
        assert [loaded(kernel.counts()) for kernel, _ in alive] == [expected for _, (expected,) in alive]
    assert len(ledger.names) <= max(1, len(steps))
