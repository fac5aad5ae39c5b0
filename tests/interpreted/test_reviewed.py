"""What a review found that is no matter of a kernel's shapes: libraries, functions as arguments, stripes, steps."""

from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime.interpreter import interpreter_builder, interpreter_semantic
from triton.tools.ragged_tma import load_ragged, store_ragged

from roofline_policies.counting import Ledger, Uncountable, counted, slots
from roofline_policies.counting.tracing.lanes import Linear, Loop, at
from roofline_policies.counting.tracing.scalars import Arithmetic

# --- Triton's own library of device functions -------------------------------------------------------------------------


@triton.jit
def ragged_kernel(source, target, start, length, row):
    value = load_ragged(source, start, length, [row, 0])
    store_ragged(target, start, length, [row, 0], value)


def test_a_library_of_tritons_that_touches_memory_is_counted() -> None:
    sites = counted(ragged_kernel).exactness().sites
    assert [site.kind for site in sites] == ["load", "store"]
    assert {site.file.rpartition("/")[2] for site in sites} == {"ragged_tma.py"}


# --- functions as arguments -------------------------------------------------------------------------------------------


@triton.jit
def apply_kernel(x, out, OPERATION: tl.constexpr):
    tl.store(out, OPERATION(tl.load(x)))


@triton.jit
def apply_default_kernel(x, out, OPERATION: tl.constexpr = tl.exp):
    tl.store(out, OPERATION(tl.load(x)))


@triton.jit
def applied(x, OPERATION: tl.constexpr = tl.exp):
    return OPERATION(tl.load(x))


@triton.jit
def apply_in_helper_kernel(x, out):
    tl.store(out, applied(x, OPERATION=tl.sqrt))


@triton.jit
def apply_default_of_helper_kernel(x, out):
    tl.store(out, applied(x))


@pytest.mark.parametrize(
    ("kernel", "arguments", "name"),
    [
        (apply_kernel, {"OPERATION": tl.exp}, "exp"),
        (apply_default_kernel, {}, "exp"),
        (apply_default_kernel, {"OPERATION": tl.sqrt}, "sqrt"),
        (apply_in_helper_kernel, {}, "sqrt"),
        (apply_default_of_helper_kernel, {}, "exp"),
    ],
    ids=["argument", "default", "instead of the default", "argument of a helper", "default of a helper"],
)
def test_a_builtin_as_an_argument_is_refused_by_name(kernel: Any, arguments: dict[str, Any], name: str) -> None:
    with pytest.raises(Uncountable, match=rf"\b{name}\b"):
        counted(kernel, ledger=Ledger("cpu", rows=1))[(1,)](torch.ones(1), torch.zeros(1), **arguments)


@triton.jit
def exponential(value):
    return tl.exp(value)


@pytest.mark.parametrize("kernel", [apply_kernel, apply_default_kernel])
def test_a_builtin_in_a_function_of_ones_own_is_counted(kernel: Any) -> None:
    counting = counted(kernel, ledger=Ledger("cpu", rows=1))
    x, out, of_twin = torch.ones(1), torch.zeros(1), torch.zeros(1)
    kernel[(1,)](x, out, OPERATION=exponential)
    counting[(1,)](x, of_twin, OPERATION=exponential)
    assert torch.equal(of_twin, out)
    assert (counting.counts().load_bytes, counting.counts().store_bytes) == (4, 4)


# --- stripes ----------------------------------------------------------------------------------------------------------


@triton.jit
def one_store_kernel(out):
    tl.store(out, 1.0)


@pytest.mark.parametrize("index", [(3, 40000, 0), (2**16 - 1, 2**15, 0), (65, 65535, 65535), (63, 0, 0)])
def test_a_program_number_that_wraps_has_a_stripe(index: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """One program that believes it is far into a grid of 2**48."""
    monkeypatch.setattr(interpreter_builder, "set_grid_idx", lambda *_: setattr(interpreter_builder, "grid_idx", index))
    across = (2**16, 2**16, 2**16)
    monkeypatch.setattr(
        interpreter_builder, "set_grid_dim", lambda *_: setattr(interpreter_builder, "grid_dim", across)
    )
    ledger = Ledger("cpu", rows=3)
    names = [ledger.open_row("before")]
    kernel = counted(one_store_kernel, ledger=ledger)
    names.append(ledger.open_row("after"))
    kernel[(1,)](torch.zeros(1))
    counts = ledger.row(1).view(slots.STRIPES, slots.WIDTH)[:, slots.STORE]
    assert counts.nonzero().flatten().tolist() == [index[0] % slots.STRIPES]
    assert not any(ledger.row(number).any() for number in names if number != 1)


# --- steps ------------------------------------------------------------------------------------------------------------


def scalar(value: int) -> tl.tensor:
    return interpreter_semantic.scalar_constant(value, tl.int32)


@pytest.mark.parametrize(
    ("start", "stop", "step", "trips"),
    [(9, 0, -2, 0), (3, 3, -1, 0), (2**31 - 1, -(2**31), -1, 0), (0, 9, 2, 5), (9, 0, 2, 0), (-9, 9, 1, 18)],
)
def test_a_runtime_step_is_positive_or_the_loop_has_no_trips(start: int, stop: int, step: int, trips: int) -> None:
    """So it is in compiled code; the interpreter iterates as Python does."""
    loop = Loop(scalar(start), scalar(stop), scalar(step))
    assert loop.trips(Arithmetic(interpreter_semantic)).handle.data.item() == trips


@pytest.mark.parametrize("bits", [32, 64])
def test_a_wide_value_of_a_narrow_loop_variable_does_not_wrap(bits: int) -> None:
    """The loop variable of compiled code is an int32; in the interpreter's loops it is a Python integer."""
    value = at(Linear(5, 10**9 if bits == 64 else 10**8, bits), scalar(4), Arithmetic(interpreter_semantic))
    assert value.bits == bits
    assert value.offset.handle.data.item() == (4 * 10**9 if bits == 64 else 4 * 10**8) + 5
