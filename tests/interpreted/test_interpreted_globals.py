"""Globals that change after ``counted()``: the interpreter reads them at each launch, and so does what counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import triton
import triton.language as tl

from roofline_policies.counting import Uncountable, counted

LANES = tl.constexpr(16)
COUNT = tl.constexpr(5)


@triton.jit
def first(x, at):
    return tl.load(x + at, mask=at < COUNT, other=0.0)


@triton.jit
def first_and_next(x, at):
    return first(x, at) + tl.load(x + at + 1)


read = first


@triton.jit
def copy_kernel(x, out):
    at = tl.arange(0, LANES)
    tl.store(out + at, read(x, at), mask=at < COUNT + 2)


def copied(kernel: Any) -> torch.Tensor:
    out = torch.zeros(16)
    kernel[(1,)](torch.arange(1.0, 33.0), out)
    return out


@pytest.mark.parametrize("mode", ["inline", "shadow"])
def test_a_value_that_changes_is_followed_in_helpers_too(mode: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = counted(copy_kernel, mode=mode)
    total = 0
    for count in (5, 9, 0, 3):
        monkeypatch.setitem(globals(), "COUNT", tl.constexpr(count))
        assert copied(kernel).equal(copied(copy_kernel))
        total += count
        assert kernel.counts().load_bytes == 4 * total
    assert kernel.counts().store_bytes == 4 * (total + 2 * 4)


def test_another_helper_is_refused_until_counted_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = counted(copy_kernel)
    copied(kernel)
    monkeypatch.setitem(globals(), "read", first_and_next)
    with pytest.raises(Uncountable, match=r"test_interpreted_globals.py:\d+: copy_kernel: read: .*count it anew"):
        copied(kernel)
    assert kernel.counts().load_bytes == 4 * 5
    anew = counted(copy_kernel)
    assert copied(anew).equal(copied(copy_kernel))
    assert anew.counts().load_bytes == 4 * (5 + 16)
