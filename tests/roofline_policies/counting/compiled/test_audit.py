"""The audit of a twin's TTIR: silent where counting is right, and not blind where it is wrong."""

# Kernels are written the ways people write them, not only the way the linter would.

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
import triton.runtime.jit as jit
from triton import knobs
from triton.backends.compiler import GPUTarget

from roofline_policies.counting import Exactness, Ledger, counted, slots
from roofline_policies.counting.compiled import occupancy
from roofline_policies.counting.compiled.audit import audit
from roofline_policies.counting.compiled.machine_code import Launch, compile_launch, record_launches
from roofline_policies.counting.sites import Audit
from roofline_policies.counting.tracing import traced
from roofline_policies.counting.triton_versions import ATOMIC_ACCESSES
from tests.interpreted.combinations.programs import COMBINATIONS
from tests.interpreted.mutations.mutating import edit_source, is_counting, wrap
from tests.interpreted.zoo import ZOO
from tests.roofline_policies.counting.compiled.test_compiles import (
    LEDGER,
    NOT_FOR_SM_90,
    QUICK,
    REFUSED,
    is_counted,
    launches,
)

pytestmark = [
    pytest.mark.skipif(knobs.runtime.interpret, reason="TRITON_INTERPRET is set: nothing is compiled"),
    pytest.mark.filterwarnings("ignore:Logical operators 'and' and 'or' are deprecated:UserWarning"),
]


def audited(kernel: Any, *args: Any, **kwargs: Any) -> Audit:
    """The audit of a launch of a kernel's counting form, compiled for sm_90."""
    twin = counted(kernel).twin
    ledger = Ledger("cpu", rows=1).row(0)
    told = twin.audit(compile_launch(Launch(twin, (1,), args, {**kwargs, LEDGER: ledger})))
    assert not told.failure
    return told


def audited_again(name: str) -> Audit:
    """The audit of a kernel of the zoo as it is rewritten now."""
    launch = launches(name, False)[0]
    return audited(launch.kernel, *launch.args, **launch.kwargs)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in [*ZOO, *COMBINATIONS]
        if (name not in REFUSED or is_counted(name)) and name not in NOT_FOR_SM_90
    ],
)
def test_an_audit_of_what_is_counted_right_finds_nothing(name: str) -> None:
    twin = launches(name, False)[1]
    told = twin.kernel.audit(compile_launch(twin))
    assert told.failure == ""
    assert told.problems == ()
    assert told.traced - told.kept == len(told.dropped)


# --- what rewriting could get wrong -----------------------------------------------------------------------------------


def statements(keep: Callable[[ast.stmt], list[ast.stmt]]) -> type[ast.NodeTransformer]:
    """An edit of rewritten source that puts ``keep(statement)`` in the place of each statement that counts."""

    class Edit(ast.NodeTransformer):
        def visit_Assign(self, node: ast.Assign) -> list[ast.stmt] | ast.stmt:
            return keep(node) if is_counting(node) else node

    return Edit


def calls(name: str, node: ast.stmt) -> bool:
    return ast.unparse(node.value).startswith(f"roofline.{name}(")


def without(name: str) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: edit_source(patch, statements(lambda node: [] if calls(name, node) else [node]))


def twice(name: str) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: edit_source(patch, statements(lambda node: [node] * (2 if calls(name, node) else 1)))


def behind_the_loop(patch: pytest.MonkeyPatch) -> None:
    """What is counted in a loop is counted once, behind it."""

    class Edit(ast.NodeTransformer):
        def visit_For(self, node: ast.For) -> list[ast.stmt]:
            moved = [one for one in node.body if is_counting(one)]
            node.body = [one for one in node.body if not is_counting(one)]
            return [node, *moved]

    edit_source(patch, Edit)


def without_masks(patch: pytest.MonkeyPatch) -> None:
    def count(call: Any, counts: Any, pointer: Any, *mask: Any, **site: Any) -> Any:
        return call(counts, pointer)

    wrap(patch, "load", count)


MUTATIONS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], str, str]] = {
    "a load is dropped": (without("load"), "masked_add", "tt.load is not counted"),
    "a store is dropped": (without("store"), "nested_helpers", "tt.store is not counted"),
    "an atomic is dropped": (without("atomic"), "masked_atomic_add", "tt.atomic_rmw is not counted"),
    "a product is dropped": (without("dot"), "matmul_in_steps", "tt.dot is not counted"),
    "a load is counted twice": (twice("load"), "masked_add", "a load is counted that is not there, or once too often"),
    "a product is counted twice": (twice("dot"), "matmul_in_steps", "a dot is counted that is not there"),
    "a helper's counts are dropped": (without("merge"), "nested_helpers", "counts is lost"),
    "a helper's counts are added twice": (twice("merge"), "nested_helpers", "is added twice"),
    "nothing follows a loop": (without("over"), "matmul_in_steps", "is not counted once behind its loop"),
    "a loop counts as one iteration": (behind_the_loop, "changing_offsets_in_a_loop", "tt.load is not counted"),
    "elements have four bytes": (
        lambda patch: patch.setattr(traced, "_element_bytes", lambda element: 4),
        "matmul_in_steps",
        "256 lanes of 4 bytes are counted for 256 of 2",
    ),
    "stores are loads": (
        lambda patch: patch.setattr(traced, "store", traced.load),
        "masked_add",
        "tt.store is not counted",
    ),
    "masks are ignored": (without_masks, "masked_add", "it has a mask, and all lanes are counted"),
    "products count half": (
        lambda patch: wrap(patch, "dot", lambda call, counts, left, _, **site: call(counts, left, half(left), **site)),
        "matmul_in_steps",
        "FLOPs are counted for",
    ),
    "products are of their results": (
        lambda patch: patch.setattr(slots, "dot_slot", lambda operand: slots.DOT[slots.Precision.FP32]),
        "matmul_in_steps",
        "FLOPs are counted for another precision",
    ),
}


def half(left: Any) -> Any:
    return SimpleNamespace(shape=(*left.shape[:-1], 8))


@triton.jit
def changing_offsets_in_a_loop(x, offsets, out, n, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK,), tl.float32)
    for _ in range(n):
        acc += tl.load(x + at, mask=at < n * BLOCK, other=0.0)
        at = tl.load(offsets + at)
    tl.store(out + tl.arange(0, BLOCK), acc)


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_wrong_count_is_found_and_names_the_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    change, specimen, finding = MUTATIONS[name]
    change(monkeypatch)
    if specimen in ZOO:
        kernel, told = ZOO[specimen].kernel, audited_again(specimen)
    else:
        kernel, x = changing_offsets_in_a_loop, torch.zeros(64)
        told = audited(kernel, x, x.int(), x, 4, BLOCK=16)
    found = [problem for problem in told.problems if finding in problem]
    assert found
    file, line, rest = found[0].split(":", 2)
    assert file == kernel.fn.__code__.co_filename
    with open(file) as source:
        assert rest.strip().startswith(source.read().splitlines()[int(line) - 1].strip())


# --- what the source does not show ------------------------------------------------------------------------------------


@triton.jit
def first_of(p):
    return tl.load(p)


class Operations:
    minimum = first_of


@triton.jit
def apply(p, operations):
    return operations.min(p)


class Hidden:
    min = first_of


@triton.jit
def function_inside_an_argument(p, out, operations: tl.constexpr):
    tl.store(out, apply(p, operations))


def test_a_function_that_nobody_saw_is_found() -> None:
    told = audited(function_inside_an_argument, torch.zeros(4), torch.zeros(4), Hidden)
    assert any("return tl.load(p): tt.load is not counted" in problem for problem in told.problems)


@triton.jit
def pointer_for_assembly(p, out):
    address = tl.inline_asm_elementwise("mov.u64 $0, $1;", "=l,l", [p], dtype=tl.int64, is_pure=True, pack=1)
    tl.store(out, address)


@triton.jit
def numbers_for_assembly(p, out):
    twice = tl.inline_asm_elementwise("shl.b64 $0, $1, 1;", "=l,l", [tl.load(p)], dtype=tl.int64, is_pure=True, pack=1)
    tl.store(out, twice)


def test_assembly_with_a_pointer_is_not_exact_and_with_numbers_is() -> None:
    p, out = torch.zeros(4, dtype=torch.int64), torch.zeros(4, dtype=torch.int64)
    (problem,) = audited(pointer_for_assembly, p, out).problems
    assert problem.endswith("inline assembly is given a pointer")
    assert audited(numbers_for_assembly, p, out).problems == ()


# --- what the compiler leaves out -------------------------------------------------------------------------------------


@triton.jit
def equal_and_unused_loads(x, out, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    first = tl.load(x + lane)
    again = tl.load(x + lane)
    tl.load(x + BLOCK + lane)
    tl.store(out + lane, first + again)


def test_both_are_told_what_the_source_does_and_what_the_compiler_kept() -> None:
    told = audited(equal_and_unused_loads, torch.zeros(64), torch.zeros(64), BLOCK=32)
    assert (told.traced, told.kept, told.problems) == (4, 2, ())
    assert [one.split(": ", 1)[1] for one in told.dropped] == [
        "again = tl.load(x + lane): load",
        "tl.load(x + BLOCK + lane): load",
    ]
    assert "4 places counted, 2 kept by the compiler" in str(told)


@triton.jit
def sum_of_products(x, y, out, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    at = lane[:, None] * BLOCK + lane[None, :]
    left = tl.load(x + at)
    right = tl.load(y + at)
    total = tl.sum(left[:, :, None] * right[None, :, :], axis=1)
    tl.store(out + at, total)


def test_a_product_that_the_compiler_makes_is_named() -> None:
    """It is no ``tl.dot``: its FLOPs are element-wise in the source, and tensor cores multiply them all the same."""
    x = torch.zeros(32 * 32)
    (problem,) = audited(sum_of_products, x, x, x, BLOCK=32).problems
    assert "total = tl.sum(left[:, :, None] * right[None, :, :], axis=1): the compiler makes a tt.dot of it" in problem


def test_a_problem_is_told_by_the_users_line_when_another_installation_filled_the_cache(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Containers share Triton's cache: what it holds names the files of the installation that compiled it."""
    moved: list[int] = []

    def audit_of_the_other(kernel: str, traced: str, compiled: str, sources: Any) -> Audit:
        there, times = re.subn(r'"[^"]*/triton/language/', '"/gone/triton/language/', compiled)
        moved.append(times)
        return audit(kernel, traced, there, sources)

    monkeypatch.setattr(occupancy, "audit", audit_of_the_other)
    x = torch.zeros(32 * 32)
    (problem,) = audited(sum_of_products, x, x, x, BLOCK=32).problems
    assert moved > [0]
    assert "total = tl.sum(left[:, :, None] * right[None, :, :], axis=1): the compiler makes a tt.dot of it" in problem


@triton.jit
def kernel_between_others(x, out, BLOCK: tl.constexpr):
    tl.extra.cuda.gdc_wait()
    lane = tl.arange(0, BLOCK)
    tl.store(out + lane, tl.load(x + lane))
    tl.extra.cuda.gdc_launch_dependents()


def test_waiting_for_the_launch_before_moves_no_bytes() -> None:
    """Inline assembly under Triton 3.8, operations of their own from 3.9 on."""
    x = torch.zeros(32)
    told = audited(kernel_between_others, x, x, BLOCK=32)
    assert (told.traced, told.kept, told.problems) == (2, 2, ())


@triton.jit
def relay(x, out, n, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    tl.atomic_store(out + lane, tl.atomic_load(x + lane, mask=lane < n), mask=lane < n)
    (out + BLOCK).atomic_store(x.atomic_load())


@pytest.mark.skipif(not ATOMIC_ACCESSES, reason="the installed Triton has no atomic loads and stores")
def test_atomic_loads_and_stores_are_known() -> None:
    x = torch.zeros(64, dtype=torch.int32)
    told = audited(relay, x, x, 7, BLOCK=32)
    assert (told.traced, told.kept, told.problems) == (4, 4, ())


@pytest.mark.skipif(not ATOMIC_ACCESSES, reason="the installed Triton has no atomic loads and stores")
def test_an_atomic_load_that_nobody_counts_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    without("atomic")(monkeypatch)
    x = torch.zeros(64, dtype=torch.int32)
    problems = audited(relay, x, x, 7, BLOCK=32).problems
    assert len(problems) == 4
    assert all("is not counted" in problem for problem in problems)


# --- when a kernel is launched ----------------------------------------------------------------------------------------


@pytest.fixture
def compile_only_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the CUDA driver of an H200 that can be asked what to compile for, and nothing else."""
    device = SimpleNamespace(
        get_current_device=lambda: 0,
        get_current_stream=lambda device: 0,
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
    )
    monkeypatch.setattr(jit, "driver", SimpleNamespace(active=device))


def warmed_up(kernel: Any) -> Exactness:
    """How a kernel is counted that a launch has just compiled."""
    (launch,) = record_launches(lambda: function_inside_an_argument[(1,)](torch.zeros(4), torch.zeros(4), Hidden))
    ledger = Ledger("cpu", rows=1).row(0)
    for _ in range(2):
        kernel.twin.run(*launch.args, grid=launch.grid, warmup=True, **launch.kwargs, **{LEDGER: ledger})
    return kernel.exactness()


@pytest.mark.usefixtures("compile_only_driver")
def test_a_launch_is_audited_once_and_the_report_says_so(caplog: pytest.LogCaptureFixture) -> None:
    kernel = counted(function_inside_an_argument)
    assert kernel.exactness().exact
    assert kernel.exactness().audits == ()
    report = warmed_up(kernel)
    (told,) = report.audits
    assert not report.exact
    assert report.problems == told.problems != ()
    assert "Counts of function_inside_an_argument are not exact" in caplog.text


@pytest.mark.usefixtures("compile_only_driver")
def test_an_audit_that_fails_does_not_break_a_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> str:
        raise ValueError("broken on purpose")

    monkeypatch.setattr(occupancy, "traced_again", fails)
    (told,) = warmed_up(counted(function_inside_an_argument)).audits
    assert told.failure == "ValueError: broken on purpose"
    assert "not audited" in str(told)
