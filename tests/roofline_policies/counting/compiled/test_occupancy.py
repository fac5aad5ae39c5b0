"""A counting twin keeps the resident blocks of the original; for sm_90, with a stand-in for the CUDA driver."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import triton.runtime.jit as jit
from triton.backends.compiler import GPUTarget

from bench.kernels.attention import SERVING, block_sizes_of_hopper
from roofline_policies.counting import counted
from roofline_policies.counting.compiled import occupancy
from roofline_policies.counting.compiled.machine_code import read, record_launches
from roofline_policies.counting.rewriting.source import LEDGER

pytestmark = pytest.mark.slow


@pytest.fixture
def compile_only_driver(monkeypatch):
    """A stand-in for the CUDA driver of an H200 that can be asked what to compile for, and nothing else."""
    device = SimpleNamespace(
        get_current_device=lambda: 0,
        get_current_stream=lambda device: 0,
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
    )
    monkeypatch.setattr(jit, "driver", SimpleNamespace(active=device))


def compiled(kernel, launch, **more):
    return read(kernel.run(*launch.args, grid=launch.grid, warmup=True, **launch.kwargs, **more), capability=90)


@pytest.fixture(params=["decode GQA 32/8, 128", "decode MLA 128, 576/512"])
def launch(request):
    (case,) = [case for case in SERVING if case.name == request.param]
    with block_sizes_of_hopper():
        return record_launches(case.launch)[0]


def test_no_resident_block_is_lost_and_nothing_spills(launch, compile_only_driver):
    ledger = torch.zeros(1024, dtype=torch.int64)
    original = compiled(launch.kernel, launch)
    twin = compiled(counted(launch.kernel).twin, launch, **{LEDGER: ledger})
    assert twin.resident_blocks == original.resident_blocks
    assert twin.spill_store_bytes <= original.spill_store_bytes
    assert twin.main_loop_instructions <= 1.06 * original.main_loop_instructions


def test_a_cap_the_caller_sets_is_left_alone(launch, compile_only_driver):
    ledger = torch.zeros(1024, dtype=torch.int64)
    twin = compiled(counted(launch.kernel).twin, launch, maxnreg=255, **{LEDGER: ledger})
    assert twin.registers <= 255


@pytest.mark.parametrize(("spills", "held"), [(0, True), (64, False)])
def test_a_twin_that_would_lose_a_block_is_held_to_the_registers(
    launch, compile_only_driver, monkeypatch, spills, held
):
    """No kernel here loses one, so the twin is said to, unless holding it makes it spill. That is said as well, because
    ptxas chooses whether it does: with Triton 3.9.0's the first kernel spills 4 bytes when it is held."""
    read_so_far = []

    def told(kernel, *, capability):
        code = read(kernel, capability=capability)
        read_so_far.append(code)
        if len(read_so_far) == 2:  # the original is read first, then the twin
            return replace(code, resident_blocks=read_so_far[0].resident_blocks - 1, spill_store_bytes=0)
        return replace(code, spill_store_bytes=spills) if len(read_so_far) == 3 else code

    monkeypatch.setattr(occupancy, "read", told)
    twin = counted(launch.kernel).twin
    ledger = torch.zeros(1024, dtype=torch.int64)
    kernel = twin.run(*launch.args, grid=launch.grid, warmup=True, **launch.kwargs, **{LEDGER: ledger})
    assert len(read_so_far) == 3
    assert kernel.metadata.maxnreg == (read_so_far[0].registers if held else None)
    again = twin.run(*launch.args, grid=launch.grid, warmup=True, **launch.kwargs, **{LEDGER: ledger})
    assert again is kernel


def test_without_cuobjdump_the_twin_is_kept_as_it_is(launch, compile_only_driver, monkeypatch):
    def missing(kernel, *, capability):
        raise FileNotFoundError("cuobjdump")

    monkeypatch.setattr(occupancy, "read", missing)
    ledger = torch.zeros(1024, dtype=torch.int64)
    kernel = counted(launch.kernel).twin.run(
        *launch.args, grid=launch.grid, warmup=True, **launch.kwargs, **{LEDGER: ledger}
    )
    assert kernel.metadata.maxnreg is None
