"""Aggregates, whose methods are functions under ``triton.jit``: compiled only, as Triton's interpreter has none.

That every access is counted, and none twice, is what the audit of a compiled twin says; without a ledger the twin is
the machine code of the original.
"""

from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from triton import knobs
from triton.language.core import _aggregate as aggregate

from roofline_policies.counting import Uncountable, counted
from roofline_policies.counting.compiled.machine_code import Launch, compile_for, same_machine_code

pytestmark = pytest.mark.skipif(knobs.runtime.interpret, reason="TRITON_INTERPRET is set: nothing is compiled")


@aggregate
class Rows:
    """A column of rows, and where they end."""

    start: tl.tensor
    end: tl.tensor
    BLOCK: tl.constexpr

    @triton.jit
    def of(start, end, BLOCK: tl.constexpr):
        return Rows(start, end, BLOCK)

    @triton.jit
    def offsets(self):
        return tl.arange(0, self.BLOCK)

    @triton.jit
    def load(self):
        offs = self.offsets()
        return tl.load(self.start + offs, mask=offs < self.end, other=0.0)

    @triton.jit
    def put(self, value):
        offs = self.offsets()
        tl.store(self.start + offs, value, mask=offs < self.end)

    @triton.jit
    def copy(self, other):
        other.put(self.load())

    @triton.jit
    def moved(self, by):
        return Rows(self.start + by, self.end - by, self.BLOCK)


@aggregate
class Pair:
    first: Rows
    second: Rows

    @triton.jit
    def summed(self):
        return self.first.load() + self.second.load()


@triton.jit
def read(rows):
    return rows.load()


@triton.jit
def read_declared(rows: Rows):
    return rows.load() * 2


@triton.jit
def copies(x, out, n, BLOCK: tl.constexpr):
    source = Rows(x, n, BLOCK)
    target = Rows.of(out, n, BLOCK)
    source.copy(target)


@triton.jit
def helped(x, out, n, BLOCK: tl.constexpr):
    source = Rows.of(x, n, BLOCK)
    value = read(source) + read_declared(source.moved(1)) + Rows(x, n, BLOCK).moved(2).load()
    Rows(out, n, BLOCK).put(value)


@triton.jit
def nested(x, out, n, BLOCK: tl.constexpr):
    pair = Pair(Rows(x, n, BLOCK), Rows(x, n - 1, BLOCK))
    total = pair.summed()
    for i in range(n):
        total += pair.first.moved(i).load() if i > 2 else pair.second.load()
    pair.second.put(total)
    tl.store(out, tl.sum(total))


SITES = {"copies": (copies, 1, 1), "helped": (helped, 1, 1), "nested": (nested, 1, 2)}
"""Kernels, and how many places in the source load and store."""


@pytest.mark.parametrize("name", SITES)
def test_methods_of_aggregates_are_counted(name: str) -> None:
    kernel, loads, stores = SITES[name]
    counting = counted(kernel)
    report = counting.exactness()
    assert report.exact
    kinds = [site.kind for site in report.sites]
    assert (kinds.count("load"), kinds.count("store")) == (loads, stores)
    x, out = torch.zeros(64), torch.zeros(64)
    ledger = torch.zeros(1024, dtype=torch.int64)
    args, constants = (x, out, 13), {"BLOCK": 16}
    original = compile_for(Launch(kernel, (1,), args, constants))
    compile_for(Launch(counting.twin, (1,), args, {**constants, "roofline_ledger": ledger}))
    assert same_machine_code(compile_for(Launch(counting.twin, (1,), args, constants)), original)


@triton.jit
def unknown(rows: Any, out):
    tl.store(out, rows.total())


def test_a_method_of_something_that_the_source_does_not_show_is_refused() -> None:
    with pytest.raises(Uncountable, match=r"call of rows\.total: what it does to memory is not known"):
        counted(unknown)
