"""What compares the launches of public packages, tried on kernels of our own: it sees what is right and what is not."""

import torch
import triton
import triton.language as tl

from bench.kernels.interpreted import Report, compared
from tests.interpreted.mutations.faults import MUTATIONS


@triton.jit
def scaled_kernel(x, out, scale, n, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + offs, mask=offs < n, other=0.0)
    tl.store(out + offs, tl.extra.libdevice.tanh(value * scale.to(tl.float32)), mask=offs < n)


tuned_kernel = triton.autotune([triton.Config({"BLOCK": 8}), triton.Config({"BLOCK": 16})], key=["n"])(scaled_kernel)


def scaled(n, kernel=scaled_kernel, **options):
    x, out = torch.linspace(-1, 1, n), torch.zeros(n)
    kernel[(triton.cdiv(n, 8),)](x, out, 0.5, n, **options)
    return x, out


def test_equal_launches_leave_the_originals_outputs():
    report = Report()
    with compared(report):
        for n in (1, 11, 16):
            x, out = scaled(n, BLOCK=8)
            assert torch.allclose(out, torch.tanh(x * 0.5))
        scaled(11, tuned_kernel)  # the first configuration, and nothing is tried
    assert (report.launches, report.equal) == (4, 4)
    assert report.launched == {"scaled_kernel"}
    assert [report.refused, report.mismatches, report.crashes, report.inexact] == [{}, {}, {}, set()]


def test_a_wrong_count_is_a_mismatch(monkeypatch):
    MUTATIONS["below_is_taken_for_up_to"].apply(monkeypatch)
    report = Report()
    with compared(report) as comparison:
        comparison.call = "scaled(11)"
        scaled(11, BLOCK=8)
    assert report.equal == 0
    assert report.mismatches["scaled_kernel"].startswith("scaled(11): (torch.float32[11], torch.float32[11], 0.5, 11, ")
    assert report.mismatches["scaled_kernel"].endswith("counted (48, 48, 0, {}), executed (44, 44, 0, {})")


@triton.jit
def summed_kernel(x, out, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    tl.store(out + offs, tl.load(x + offs) + tl.load(out + offs))


def test_a_launch_that_reads_what_it_writes_is_made_from_the_same_memory_twice():
    report = Report()
    out = torch.ones(8)
    with compared(report):
        summed_kernel[(1,)](torch.ones(8), out, BLOCK=8)
    assert out.tolist() == [2.0] * 8
    assert report.equal == 1


@triton.jit
def refused_kernel(x, BLOCK: tl.constexpr):
    exec("pass")
    tl.store(x, 1.0)


def test_a_refusal_is_told_and_the_kernel_runs():
    report = Report()
    x = torch.zeros(1)
    with compared(report):
        refused_kernel[(1,)](x, BLOCK=8)
    assert x.item() == 1.0
    assert "call of exec" in report.refused["refused_kernel"]
    assert (report.launches, report.equal) == (1, 0)
