"""Ledgers: totals and differences modulo 2**64, new rows, snapshots."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given
from hypothesis import strategies as st

from roofline_policies.counting import Ledger, LedgerError, Snapshot, counted, difference, slots
from roofline_policies.counting.ledger import IN_FLIGHT, MODULUS


@triton.jit
def copy_kernel(x, out):
    tl.store(out, tl.load(x))


def test_a_new_ledger_is_empty() -> None:
    ledger = Ledger("cpu")
    assert ledger.read() == ()
    assert ledger.snapshot().totals() == ()
    counted(copy_kernel, ledger=ledger)
    assert ledger.read() == ((0,) * slots.USED,)


def test_difference_counts_new_rows_from_zero() -> None:
    ledger = Ledger("cpu", rows=2)
    first = ledger.open_row("first")
    ledger.row(first)[slots.LOAD] = 5
    earlier = ledger.read()
    second = ledger.open_row("second")
    ledger.row(first)[slots.WIDTH + slots.LOAD] += 2  # of another stripe
    ledger.row(second)[slots.STORE] += 3
    rest = (0,) * (slots.USED - 2)
    assert difference(ledger.read(), earlier) == ((2, 0, *rest), (0, 3, *rest))
    assert difference(ledger.read(), ()) == ((7, 0, *rest), (0, 3, *rest))
    assert difference((), ()) == ()


@pytest.mark.parametrize("start", [2**63 - 3, 2**64 - 3, 2**63, 0])
def test_counters_may_pass_their_end(start: int) -> None:
    ledger = Ledger("cpu", rows=1)
    row = ledger.row(ledger.open_row("kernel"))
    row[slots.LOAD] = start if start < 2**63 else start - MODULUS  # as int64 holds it
    earlier = ledger.read()
    assert earlier[0][slots.LOAD] == start
    row[slots.LOAD] += 10
    row[slots.WIDTH + slots.LOAD] += 7
    assert difference(ledger.read(), earlier)[0][slots.LOAD] == 17
    assert 0 <= ledger.read()[0][slots.LOAD] < MODULUS


def test_a_kernel_keeps_a_true_total() -> None:
    """Beyond what its counters hold, as long as it is asked often enough."""
    ledger = Ledger("cpu", rows=1)
    kernel = counted(copy_kernel, ledger=ledger)
    total = 0
    for _ in range(5):
        ledger.row(0)[slots.LOAD] += 2**62
        total += 2**62
        assert kernel.counts().load_bytes == total
    assert total > MODULUS


def test_snapshots_on_the_cpu_are_ready_and_stay_as_they_are() -> None:
    ledger = Ledger("cpu", rows=2)
    row = ledger.row(ledger.open_row("kernel"))
    row[slots.LOAD] = 4
    snapshot = ledger.snapshot()
    row[slots.LOAD] = 9
    ledger.open_row("another")
    assert snapshot.ready()
    assert snapshot.totals() == ((4, *(0,) * (slots.USED - 1)),)
    assert difference(ledger.snapshot().totals(), snapshot.totals())[0][slots.LOAD] == 5


@pytest.mark.parametrize(("later", "overwritten"), [(IN_FLIGHT - 1, False), (IN_FLIGHT, True), (3 * IN_FLIGHT, True)])
def test_a_snapshot_whose_memory_was_used_again_says_so(later: int, overwritten: bool) -> None:
    """There is room for IN_FLIGHT snapshots: so many later, the memory of the first holds another one."""
    ledger: Any = SimpleNamespace(snapshots=1 + later, device=torch.device("cuda", 0))
    arrived: Any = SimpleNamespace(query=lambda: True, synchronize=lambda: None)
    snapshot = Snapshot(("kernel",), (torch.zeros((1, slots.WIDTH), dtype=torch.int64),), arrived, ledger, 1)
    if overwritten:
        with pytest.raises(LedgerError, match="snapshot 1 of the ledger of cuda:0 was overwritten"):
            snapshot.totals()
    else:
        assert snapshot.totals() == ((0,) * slots.USED,)


amounts = st.integers(0, 2**63 - 1)
places = st.tuples(st.integers(0, 1), st.integers(0, slots.STRIPES - 1), st.integers(0, slots.USED - 1))


def add(ledger: Ledger, places_and_amounts: list[tuple[tuple[int, int, int], int]]) -> None:
    for (row, stripe, slot), amount in places_and_amounts:
        ledger.row(row)[stripe * slots.WIDTH + slot] += torch.tensor(amount)


def sums(places_and_amounts: list[tuple[tuple[int, int, int], int]]) -> list[list[int]]:
    total = [[0] * slots.USED for _ in range(2)]
    for (row, _, slot), amount in places_and_amounts:
        total[row][slot] += amount
    return total


@given(st.lists(st.tuples(places, amounts), max_size=6), st.lists(st.tuples(places, amounts), max_size=6))
def test_totals_and_differences_are_modulo_2_to_the_64(
    first: list[tuple[tuple[int, int, int], int]], second: list[tuple[tuple[int, int, int], int]]
) -> None:
    ledger = Ledger("cpu", rows=2)
    for name in ("one", "two"):
        ledger.open_row(name)
    add(ledger, first)
    earlier = ledger.snapshot()
    assert earlier.totals() == ledger.read() == tuple(tuple(n % MODULUS for n in row) for row in sums(first))
    add(ledger, second)
    between = difference(ledger.read(), earlier.totals())
    assert between == tuple(tuple(n % MODULUS for n in row) for row in sums(second))
