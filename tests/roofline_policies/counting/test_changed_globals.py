"""Globals and defaults that change under a counted kernel. Compiled for sm_90, with a stand-in for the CUDA driver."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
import triton.runtime.jit as jit
from triton import knobs
from triton.backends.compiler import GPUTarget

from roofline_policies.counting import Ledger, counted
from roofline_policies.counting.compiled.machine_code import Launch, compile_for, same_machine_code
from roofline_policies.counting.rewriting.source import LEDGER

pytestmark = pytest.mark.skipif(knobs.runtime.interpret, reason="TRITON_INTERPRET is set: nothing is compiled")

LIMIT = tl.constexpr(4)
LIMIT_OF_HELPER = tl.constexpr(4)
LANES = 4


@triton.jit
def kernel_with_a_global(out, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    tl.store(out + offs, 1.0, mask=offs < LIMIT)


@triton.jit
def store_below_limit(out, offs):
    tl.store(out + offs, 1.0, mask=offs < LIMIT_OF_HELPER)


@triton.jit
def kernel_with_a_global_in_a_helper(out, BLOCK: tl.constexpr):
    store_below_limit(out, tl.arange(0, BLOCK))


@triton.jit
def kernel_with_default(out, BLOCK: tl.constexpr = LANES):
    tl.store(out + tl.arange(0, BLOCK), 1.0)


def kernel_inside(lanes: tl.constexpr) -> Any:
    """The name of its default is this function's; Triton needs it in its body too."""

    @triton.jit
    def kernel(out, BLOCK: tl.constexpr = 2 * lanes):
        tl.store(out + tl.arange(0, 2 * lanes), 1.0)

    return kernel


LANES = 8


@pytest.fixture
def compile_only_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the CUDA driver of an H200 that can be asked what to compile for, and nothing else."""
    device = SimpleNamespace(
        get_current_device=lambda: 0,
        get_current_stream=lambda device: 0,
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
    )
    monkeypatch.setattr(jit, "driver", SimpleNamespace(active=device))


def fresh(kernel: Any) -> Any:
    """The same function, not compiled yet."""
    return triton.jit(kernel.fn)


@pytest.mark.usefixtures("compile_only_driver")
@pytest.mark.parametrize(
    ("kernel", "name"),
    [(kernel_with_a_global, "LIMIT"), (kernel_with_a_global_in_a_helper, "LIMIT_OF_HELPER")],
    ids=["kernel", "helper"],
)
def test_a_global_that_changes_is_tritons_own_error(kernel: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    out, ledger = torch.zeros(16), torch.zeros(1024, dtype=torch.int64)
    original = fresh(kernel)
    twin = counted(original, ledger=Ledger("cpu", rows=1)).twin
    launches = {
        "original": lambda: original.run(out, BLOCK=16, grid=(1,), warmup=True),
        "twin": lambda: twin.run(out, BLOCK=16, grid=(1,), warmup=True, **{LEDGER: ledger}),
    }
    for launch in launches.values():
        launch()
        launch()
    monkeypatch.setitem(globals(), name, tl.constexpr(6))
    for launch in launches.values():
        with pytest.raises(RuntimeError, match=rf"Global variable {name} has changed since we compiled this kernel"):
            launch()
    monkeypatch.undo()


@pytest.mark.usefixtures("compile_only_driver")
def test_a_global_that_changes_before_the_first_launch_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The original would be compiled with the new value, and the twin knows the old one: it must not be launched."""
    out, ledger = torch.zeros(16), torch.zeros(1024, dtype=torch.int64)
    twin = counted(fresh(kernel_with_a_global), ledger=Ledger("cpu", rows=1)).twin
    monkeypatch.setitem(globals(), "LIMIT", tl.constexpr(6))
    with pytest.raises(RuntimeError, match=r"Global variable LIMIT has changed since we compiled this kernel"):
        twin.run(out, BLOCK=16, grid=(1,), warmup=True, **{LEDGER: ledger})


@pytest.mark.parametrize(("kernel", "lanes"), [(kernel_with_default, 4), (kernel_inside(tl.constexpr(2)), 4)])
def test_a_default_is_evaluated_once(kernel: Any, lanes: int) -> None:
    assert kernel.signature.parameters["BLOCK"].default == lanes
    twin = counted(kernel, ledger=Ledger("cpu", rows=1)).twin
    assert twin.signature.parameters["BLOCK"].default == lanes
    codes = [compile_for(Launch(one, (1,), (torch.zeros(16),), {})) for one in (kernel, twin)]
    assert same_machine_code(*codes)
