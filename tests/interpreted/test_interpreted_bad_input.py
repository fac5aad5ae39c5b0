"""Bad input that shows only where kernels run, or whose source only Triton's interpreter does without."""

import re
from typing import Any

import pytest
import torch
import triton
import triton.language as tl

from roofline_policies.counting import Ledger, LedgerError, Uncountable, counted, difference, slots
from roofline_policies.counting.ledger import MODULUS
from tests.interpreted.zoo import ZOO, add_kernel, inside_expressions

N = 11
LOADED = 8 * N


def launch(kernel: Any) -> None:
    ZOO["masked_add"].launch(kernel, n=N, seed=0)


# --- source -----------------------------------------------------------------------------------------------------------


def test_a_kernel_without_a_file_is_refused() -> None:
    namespace: dict[str, Any] = {"tl": tl}
    exec("def made(x):\n    tl.store(x, tl.load(x))\n", namespace)
    with pytest.raises(Uncountable) as raised:
        counted(triton.jit(namespace["made"]))
    message = str(raised.value)
    assert message.startswith("made: source: not available (")
    assert message.endswith("); define the kernel in a file")
    assert "\n" not in message


def test_a_lambda_is_refused() -> None:
    with pytest.raises(Uncountable) as raised:
        counted(triton.jit(lambda x: tl.store(x, tl.load(x))))
    assert raised.value.construct == "source"
    assert "\n" not in str(raised.value)


def test_what_a_constant_lets_be_compiled_is_refused_at_the_launch() -> None:
    kernel = counted(inside_expressions.untraced_kernel, ledger=Ledger("cpu", rows=1))
    x, out = torch.ones(8), torch.zeros(1)
    report = kernel.exactness()
    assert report.exact
    assert {site.cost for site in report.sites if site.kind == "refusal"} == {"refused if compiled"}
    kernel[(1,)](x, out, 2, NEW=False, SOURCE=None)
    assert kernel.counts().load_bytes == 4 * 5
    with pytest.raises(Uncountable) as raised:
        kernel[(1,)](x, out, 2, NEW=True, SOURCE=None)
    assert raised.value.construct == "call of of_another_version"
    assert raised.value.text.startswith("value += of_another_version(x)")
    assert str(raised.value).startswith(f"{inside_expressions.__file__}:{raised.value.line}: untraced_kernel: call of ")
    assert "roofline_" not in str(raised.value).partition("untraced_kernel")[2]


# --- ledgers ----------------------------------------------------------------------------------------------------------


def test_a_ledger_on_another_device_is_refused_at_the_launch() -> None:
    kernel = counted(add_kernel, ledger=Ledger("meta"))
    allowed = "add_kernel is launched on cpu and counts into a ledger on meta; allowed: a ledger on the device"
    with pytest.raises(LedgerError, match=re.escape(allowed)):
        launch(kernel)


def test_a_ledger_that_is_full_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot grow then. A stand-in for a CUDA stream under capture; the ledger itself is real, on the CPU."""
    from roofline_policies.counting import kernel as kernel_module

    small = Ledger("cpu", rows=1)
    monkeypatch.setattr(kernel_module, "ledger_of", lambda device: small)
    first, second = counted(add_kernel), counted(add_kernel)
    launch(second)
    small.device = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(
        LedgerError, match=r"no row left for add_kernel, .* captured; allowed: to launch add_kernel once"
    ):
        launch(first)
    small.device = torch.device("cpu")
    launch(first)  # where none is captured it grows
    launch(second)
    assert second.counts().load_bytes == 2 * LOADED
    assert first.counts().load_bytes == LOADED


@pytest.mark.parametrize("start", [2**63 - 3, 2**64 - 3])
def test_a_launch_may_pass_the_end_of_a_counter(start: int) -> None:
    ledger = Ledger("cpu", rows=1)
    kernel = counted(add_kernel, ledger=ledger)
    ledger.row(0)[slots.LOAD] = start if start < 2**63 else start - MODULUS
    earlier = ledger.read()
    assert kernel.counts().load_bytes == start
    launch(kernel)
    assert difference(ledger.read(), earlier)[0][slots.LOAD] == LOADED
    assert kernel.counts().load_bytes == start + LOADED


def test_a_snapshot_holds_what_was_counted_before_it() -> None:
    ledger = Ledger("cpu", rows=2)
    kernel = counted(add_kernel, ledger=ledger)
    before = ledger.snapshot()
    launch(kernel)
    between = ledger.snapshot()
    other = counted(ZOO["matmul_in_steps"].kernel, ledger=ledger)
    launch(kernel)
    params = {"M": 3, "N": 5, "K": 7, "dtype": torch.float16, "seed": 0}
    ZOO["matmul_in_steps"].launch(other, **params)
    after = ledger.snapshot()
    assert all(one.ready() for one in (before, between, after))
    assert before.totals()[0][slots.LOAD] == 0
    assert difference(between.totals(), before.totals())[0][slots.LOAD] == LOADED
    first, second = difference(after.totals(), between.totals())
    assert first[slots.LOAD] == LOADED
    assert second[slots.LOAD] == ZOO["matmul_in_steps"].closed_form(**params).load_bytes


def test_a_launch_that_fails_leaves_other_kernels_counting() -> None:
    ledger = Ledger("cpu", rows=1)
    kernel = counted(add_kernel, ledger=ledger)
    with pytest.raises(triton.runtime.errors.InterpreterError):
        kernel[(1,)](torch.ones(4), None, torch.ones(4), 4, BLOCK=4)
    before = kernel.counts().load_bytes
    launch(kernel)
    assert kernel.counts().load_bytes - before == LOADED
