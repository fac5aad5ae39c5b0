"""``tl.atomic_load``, ``tl.atomic_store`` and ``tl.atomic_poll``, which Triton has from 3.9 on."""

import pytest
import torch
import triton
import triton.language as tl

from roofline_policies.counting import Ledger, Uncountable, counted
from roofline_policies.counting.triton_versions import ATOMIC_ACCESSES, ATOMIC_WAITS
from tests.interpreted.oracle import Tally, counting_oracle

pytestmark = pytest.mark.skipif(not ATOMIC_ACCESSES, reason="the installed Triton has no atomic loads and stores")


@triton.jit
def relay_kernel(x, out, n, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    first = tl.atomic_load(x)
    value = tl.atomic_load(x + offs, mask=offs < n)
    value += (x + offs).atomic_load(offs < n - 1, sem="relaxed")
    tl.atomic_store(out + offs, value + first, mask=offs < n)
    (out + BLOCK).atomic_store(first)
    for start in range(0, n, 4):
        at = start + tl.arange(0, 4)
        (out + at).atomic_store(first, at < n, scope="cta")


@pytest.mark.parametrize("n", [0, 1, 5, 8])
def test_each_element_is_counted_once(n: int) -> None:
    def launch(kernel: object) -> torch.Tensor:
        x, out = torch.arange(8, dtype=torch.int32), torch.full((9,), 7, dtype=torch.int32)
        kernel[(2,)](x, out, n, BLOCK=8)
        return out

    kernel = counted(relay_kernel, ledger=Ledger("cpu", rows=1))
    # Lanes that are masked off have undefined values; none of them is stored.
    with counting_oracle() as seen:
        expected = launch(relay_kernel)
    assert torch.equal(launch(kernel), expected)
    lanes = 1 + n + max(n - 1, 0) + n + 1 + n
    assert seen.counts() == Tally(atomic_bytes=2 * 4 * lanes)
    assert kernel.counts().atomic_bytes == 2 * 4 * lanes
    assert kernel.exactness().exact


@triton.jit
def wait_kernel(flags, out, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    there = tl.atomic_poll(flags + offs, 1)
    tl.store(out + offs, there & flags.atomic_poll(1, timeout_ns=1000))


def test_how_often_a_wait_reads_is_not_known() -> None:
    """It reads each element at least once, and so many are counted; the kernel is not exact."""
    kernel = counted(wait_kernel, ledger=Ledger("cpu", rows=1))
    kernel[(1,)](torch.ones(8, dtype=torch.int32), torch.zeros(8, dtype=torch.int8), BLOCK=8)
    assert kernel.counts().atomic_bytes == 4 * 9
    report = kernel.exactness()
    assert [(site.kind, site.cost) for site in report.sites] == [
        ("atomic", "not exact"),
        ("atomic", "not exact"),
        ("store", "constant"),
    ]
    assert not report.exact


def test_a_twin_that_only_counts_does_not_wait() -> None:
    assert ATOMIC_WAITS
    with pytest.raises(Uncountable, match=r"wait_kernel: tl.atomic_poll.*: waits for memory"):
        counted(wait_kernel, mode="shadow")
