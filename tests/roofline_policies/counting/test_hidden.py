"""What the source of a kernel hides: functions inside objects, and what inline assembly does."""

from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
import triton
import triton.language as tl
from triton import knobs

from roofline_policies.counting import Ledger, Uncountable, counted
from roofline_policies.counting.compiled.machine_code import Launch, MachineCodeError, compile_for
from roofline_policies.counting.rewriting.callees import works_on_registers

pytestmark = pytest.mark.skipif(knobs.runtime.interpret, reason="TRITON_INTERPRET is set: nothing is compiled")


@triton.jit
def first_of(p):
    return tl.load(p)


class Holder:
    sum = first_of
    load = first_of


class Outer:
    inner = Holder


class Named(NamedTuple):
    sum: Any


HELD = tl.constexpr(Holder)
TABLE = tl.constexpr({"first": first_of})
NAMED = Named(first_of)
MODULE = ModuleType("holder")
MODULE.sum = first_of  # type: ignore[attr-defined]


@triton.jit
def held_by_an_argument(p, out, held: tl.constexpr):
    tl.store(out, held.sum(p))


@triton.jit
def held_deeper(p, out, held: tl.constexpr):
    tl.store(out, held.inner.load(p))


@triton.jit
def held_by_a_constant(p, out, held: tl.constexpr):
    other: tl.constexpr = held
    tl.store(out, other.sum(p))


@triton.jit
def held_by_a_default(p, out, held: tl.constexpr = Holder):
    tl.store(out, held.sum(p))


@triton.jit
def passed_on(p, held: tl.constexpr):
    return held.sum(p)


@triton.jit
def held_by_an_argument_of_a_helper(p, out, held: tl.constexpr):
    tl.store(out, passed_on(p, held))


@pytest.mark.parametrize(
    ("kernel", "held"),
    [
        (held_by_an_argument, Holder),
        (held_by_an_argument, NAMED),
        (held_deeper, Outer),
        (held_by_a_constant, Holder),
        (held_by_a_default, Holder),
        (held_by_an_argument_of_a_helper, Holder),
    ],
)
def test_a_function_inside_an_argument_is_refused_when_it_is_compiled(kernel: Any, held: Any) -> None:
    twin = counted(kernel, ledger=Ledger("cpu", rows=1)).twin
    given = Launch(twin, (1,), (torch.zeros(4), torch.zeros(4), held), {})
    with pytest.raises(MachineCodeError) as raised:
        compile_for(given)
    cause: BaseException | None = raised.value
    while cause is not None and not isinstance(cause, Uncountable):
        cause = cause.__cause__
    assert cause is not None
    assert "first_of is held by an argument; pass it as an argument of its own" in str(cause)
    assert str(cause).startswith(f"{__file__}:")


@triton.jit
def held_by_globals(p, out):
    tl.store(out, HELD.sum(p) + Outer.inner.load(p) + NAMED.sum(p) + NAMED[0](p) + MODULE.sum(p) + TABLE["first"](p))


def test_functions_that_globals_hold_are_counted() -> None:
    sites = counted(held_by_globals).exactness().sites
    assert [site.kind for site in sites] == ["store", "load"]
    source = counted(held_by_globals).source
    assert source.count("roofline.merge(") == 6


@pytest.mark.parametrize(
    "assembly",
    [
        "add.rn.f32 $0, $1, $2;",
        "{ .reg .b16 p; cvt.rn.satfinite.e4m3x2.f32 p, $1, $1; cvt.u32.u16 $0, p; }",
        "{ .reg .b32 a, b; mov.b64 {a, b}, $1; prmt.b32 a, a, b, 0x3210; mov.b64 $0, {b, a}; }",
        "// ld.global\nshr.b32 $0, $1, 3;",
        "mov.u32 $0, %smid;",
        "@p lop3.b32 $0, $1, 0x0f, 3, 0x6a; bar.sync 0;",
    ],
)
def test_assembly_between_registers_is_exact(assembly: str) -> None:
    assert works_on_registers(assembly)


@pytest.mark.parametrize(
    "assembly",
    [
        "ld.global.u32 $0, [$1];",
        "ldu.global.u32 $0, [$1];",
        "@p red.global.add.u32 [$0], 1;",
        "wmma.load.a.sync.aligned.row.m16n16k16.f16 {a, b}, [p];",
        "tex.1d.v4.f32.s32 {a, b, c, d}, [t, {x}];",
        "suld.b.1d.b32.trap {r}, [s, {x}];",
        "cp.async.ca.shared.global [$0], [$1], 16;",
        "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [d], [s], n;",
        "st.async.weak.shared::cluster.u32 [a], b, [m];",
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 d, a, b, c;",
        "call.uni f;",
        "instruction.of.tomorrow $0, $1;",
        "v_mul_f32 $0, $1, $2",
    ],
)
def test_assembly_that_is_not_known_to_stay_in_registers_is_not_exact(assembly: str) -> None:
    assert not works_on_registers(assembly)
