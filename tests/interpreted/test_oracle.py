"""The oracle against closed forms, and against what reaches the interpreter's own loads and stores."""

from __future__ import annotations

from types import FunctionType
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from roofline_policies.work import Precision
from tests.interpreted.oracle import AddressSet, Seen, Tally, counting_oracle, observers
from tests.interpreted.zoo import ZOO, normal

QUICK = settings(deadline=None, max_examples=6)
WITH_CLOSED_FORM = sorted(name for name, specimen in ZOO.items() if specimen.closed_form)


def seen_in(name: str, **params: Any) -> Seen:
    specimen = ZOO[name]
    specimen.launch(specimen.kernel, **params)  # where the autotuner makes up its mind
    with counting_oracle() as seen:
        specimen.launch(specimen.kernel, **params)
    return seen


@pytest.mark.parametrize("name", WITH_CLOSED_FORM)
@QUICK
@given(data=st.data())
def test_zoo_closed_forms(name: str, data: st.DataObject) -> None:
    params = data.draw(ZOO[name].params)
    assert seen_in(name, **params).counts() == ZOO[name].closed_form(**params)


class RawMemory:
    """Stands in for the interpreter's memory extension and adds up bytes from its own arguments."""

    def __init__(self, wrapped: Any) -> None:
        self._wrapped = wrapped
        self.tally = Tally()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapped, name)

    @staticmethod
    def active(pointers: np.ndarray, mask: Any) -> int:
        assert np.shape(mask) == pointers.shape
        return int(np.count_nonzero(mask))

    def load(self, pointers: np.ndarray, mask: Any, other: Any, dtype: np.dtype) -> Any:
        self.tally += Tally(load_bytes=self.active(pointers, mask) * dtype.itemsize)
        return self._wrapped.load(pointers, mask, other, dtype)

    def store(self, pointers: np.ndarray, value: np.ndarray, mask: Any) -> Any:
        self.tally += Tally(store_bytes=self.active(pointers, mask) * value.itemsize)
        return self._wrapped.store(pointers, value, mask)

    def atomic_rmw(self, op: Any, pointers: np.ndarray, value: np.ndarray, mask: Any, sem: Any) -> Any:
        self.tally += Tally(atomic_bytes=self.active(pointers, mask) * value.itemsize)
        return self._wrapped.atomic_rmw(op, pointers, value, mask, sem)

    def atomic_cas(self, pointers: np.ndarray, old: Any, value: np.ndarray, sem: Any) -> Any:
        self.tally += Tally(atomic_bytes=pointers.size * value.itemsize)
        return self._wrapped.atomic_cas(pointers, old, value, sem)


@pytest.mark.parametrize("name", sorted(ZOO))
@QUICK
@given(data=st.data())
def test_nothing_reaches_memory_uncounted(name: str, data: st.DataObject) -> None:
    specimen = ZOO[name]
    params = data.draw(specimen.params)
    specimen.launch(specimen.kernel, **params)
    raw = RawMemory(interpreter._interpreter)
    with pytest.MonkeyPatch.context() as patch, counting_oracle() as seen:
        patch.setattr(interpreter, "_interpreter", raw)
        specimen.launch(specimen.kernel, **params)
    counts = seen.counts()
    assert raw.tally == Tally(counts.load_bytes, counts.store_bytes, counts.atomic_bytes)


def test_every_builder_method_that_touches_memory_is_observed() -> None:
    """Of any Triton: a new method that loads, stores or multiplies matrices must be looked at."""
    names = {
        name: set(member.__code__.co_names)
        for name, member in vars(InterpreterBuilder).items()
        if isinstance(member, FunctionType)
    }
    arithmetic = {"fma_fp32", "fma_fp64"}  # of the memory extension, since Triton 3.9
    touching = {name for name, used in names.items() if {"_interpreter", "matmul"} & used and not arithmetic & used}
    touching |= {name for name in names if name.startswith("create_atomic_")}  # these may end in loads and stores
    assert touching == set(observers(Seen()))


# --- by hand ----------------------------------------------------------------------------------------------------------


@triton.jit
def wild_kernel(x, out, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    far = offs * 1000000000  # only lane 0 points into the buffer
    value = tl.load(x + far, mask=offs < 1, other=3.0)
    tl.store(out + far, value, mask=offs == 0)
    tl.store(out, tl.load(x + 1, mask=BLOCK < 0, other=2.0), mask=BLOCK < 0)
    tl.store(out + 1, tl.load(x + 1, mask=BLOCK > 0, other=2.0), mask=BLOCK > 0)
    tl.store(out + 2, tl.load(x))


def test_masked_off_lanes_and_scalars() -> None:
    x, out = normal(0, 2), torch.zeros(3)
    with counting_oracle() as seen:
        wild_kernel[(1,)](x, out, BLOCK=8)
    assert seen.counts() == Tally(load_bytes=12, store_bytes=12)
    assert (seen.unique_load_bytes, seen.unique_store_bytes) == (8, 12)
    assert out.tolist() == [x[0], x[1], x[0]]


def test_programs_and_launches_add_up_but_unique_bytes_do_not() -> None:
    x, out = normal(0, 2), torch.zeros(3)
    with counting_oracle() as seen:
        wild_kernel[(5, 2)](x, out, BLOCK=8)
        wild_kernel[(1,)](x, out, BLOCK=8)
    assert seen.counts() == Tally(load_bytes=132, store_bytes=132)
    assert (seen.unique_load_bytes, seen.unique_store_bytes) == (8, 12)


@triton.jit
def views_kernel(words, halves, out, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    a = tl.load(words + offs, mask=offs < 3, other=0)
    b = tl.load(halves + 5 + offs, mask=offs < 4, other=0)
    tl.store(out + offs, a + b)


def test_elements_of_two_sizes_share_bytes() -> None:
    words, out = torch.arange(8, dtype=torch.int32), torch.zeros(8, dtype=torch.int32)
    with counting_oracle() as seen:
        views_kernel[(1,)](words, words.view(torch.int16), out, BLOCK=8)
    assert seen.counts() == Tally(load_bytes=12 + 8, store_bytes=32)
    assert seen.unique_load_bytes == 18  # bytes 0 to 12, and 10 to 18


@triton.jit
def dot_kernel(a, b, out, PRECISION: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    at = i[:, None] * BLOCK + i[None, :]
    tl.store(out + at, tl.dot(tl.load(a + at), tl.load(b + at), input_precision=PRECISION))


@pytest.mark.parametrize(
    ("dtype", "precision"),
    [
        (torch.float16, Precision.FP16),
        (torch.bfloat16, Precision.BF16),
        (torch.float8_e4m3fn, Precision.FP8),
        (torch.float32, Precision.FP32),
    ],
)
def test_dot_precision_is_that_of_the_operands(dtype: torch.dtype, precision: Precision) -> None:
    a, out = normal(0, 16, 16).to(dtype), torch.zeros(16, 16)
    with counting_oracle() as seen:
        dot_kernel[(3,)](a, a, out, PRECISION="ieee", BLOCK=16)
    assert seen.counts() == Tally(3 * 2 * 256 * dtype.itemsize, 3 * 1024, 0, {precision: 3 * 2 * 16**3})


def test_matmul_reads_each_element_at_least_once() -> None:
    seen = seen_in("matmul_over_tiles", M=33, N=17, K=20, dtype=torch.float16, seed=0)
    assert seen.counts() == Tally(
        2 * (33 * 20 * 2 + 20 * 17 * 3), 4 * 33 * 17, 0, {Precision.FP16: 2 * (3 * 16) * (2 * 16) * (2 * 16)}
    )
    assert seen.unique_load_bytes == 2 * (33 * 20 + 20 * 17)
    assert seen.unique_store_bytes == 4 * 33 * 17


def test_overlapping_windows_share_their_bytes() -> None:
    seen = seen_in("sliding_window", n=10, window=4, seed=0)
    assert seen.counts().load_bytes == 4 * (1 + 2 + 3 + 4 * 7)
    assert seen.unique_load_bytes == 40


@given(
    st.lists(
        st.tuples(st.lists(st.integers(1000, 1060), max_size=8), st.sampled_from([1, 2, 4, 8])),
        max_size=6,
    )
)
def test_unique_bytes_are_a_set_of_bytes(ops: list[tuple[list[int], int]]) -> None:
    addresses = AddressSet()
    for starts, element_bytes in ops:
        addresses.add(np.array(starts, dtype=np.uint64), element_bytes)
    expected = {start + i for starts, element_bytes in ops for start in starts for i in range(element_bytes)}
    assert addresses.byte_count == len(expected)


def test_a_value_wider_than_its_pointer_is_an_error() -> None:
    pointers = TensorHandle(np.zeros(2, dtype=np.uint64), tl.pointer_type(tl.int32))
    value = TensorHandle(np.zeros(2, dtype=np.int64), tl.int64)
    with pytest.raises(TypeError, match="int64 through a pointer to pointer<int32>"):
        Seen().store(pointers, value, None)


# --- the context manager ----------------------------------------------------------------------------------------------


def builder_methods() -> dict[str, Any]:
    return dict(vars(InterpreterBuilder))


def test_everything_is_restored_even_after_an_error() -> None:
    before = builder_methods()
    with pytest.raises(ZeroDivisionError), counting_oracle():
        raise ZeroDivisionError
    assert builder_methods() == before
    with counting_oracle() as seen:
        assert builder_methods() != before
    assert builder_methods() == before
    wild_kernel[(1,)](normal(0, 2), torch.zeros(3), BLOCK=8)
    assert seen.counts() == Tally()


def test_nesting_is_an_error_and_leaves_the_outer_one_in_place() -> None:
    with counting_oracle() as seen:
        with pytest.raises(RuntimeError, match="does not nest"), counting_oracle():
            pass
        wild_kernel[(1,)](normal(0, 2), torch.zeros(3), BLOCK=8)
    assert seen.counts() == Tally(load_bytes=12, store_bytes=12)
