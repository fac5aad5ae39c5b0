"""Counted kernels compile for sm_90 wherever the original does, and without a ledger they are the original."""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any
from unittest.mock import patch

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import HealthCheck, Phase, given, settings
from triton import knobs

from roofline_policies.counting import Ledger, counted
from roofline_policies.counting import kernel as kernel_module
from roofline_policies.counting.compiled.machine_code import (
    Launch,
    MachineCode,
    MachineCodeError,
    compile_for,
    record_launches,
    same_machine_code,
)
from tests.interpreted.combinations.programs import COMBINATIONS
from tests.interpreted.zoo import ZOO

pytestmark = [
    pytest.mark.skipif(knobs.runtime.interpret, reason="TRITON_INTERPRET is set: nothing is compiled"),
    pytest.mark.filterwarnings("ignore:Logical operators 'and' and 'or' are deprecated:UserWarning"),
]

LEDGER = "roofline_ledger"
DRAWN = 6

NOT_FOR_SM_90 = {
    "descriptor_gather_and_scatter": "gather and scatter of tensor descriptors begin with sm_100",
    "accesses_in_generators": "the interpreter alone runs generators",
    "numbers_as_masks": "the interpreter alone takes numbers as masks",
    "return_in_a_loop": "the interpreter alone leaves a loop by a return",
    "return_in_loops_of_a_helper": "the interpreter alone leaves a loop by a return",
}
"""Kernels that Triton does not compile for sm_90 as they are written."""

EVALUATED_EARLIER = {
    "nested_helpers",
    "function_handed_to_a_helper",
    "functions_as_defaults",
    "early_returns",
    "loop_in_a_helper_of_a_module",
    "loads_as_arguments",
    "closure",
    "returns_in_all_branches",
}
"""Kernels with a counted call inside an expression: it is taken out, so that what stands to its left comes after it."""

CALLED_TWICE = {"helper_in_the_test_of_a_while", "helpers_in_tests_of_while"}
"""Kernels with a helper in the test of a ``while``: it is called before the loop and at the end of its body."""

FLUSH = re.compile(r"\b(REDG?|ATOMG)\.E\.ADD\.64")
"""An atomic addition of 64 bits, as it is without a result (ptxas takes ATOMG in a kernel with other such atomics)."""

REFUSED = {name for name, specimen in ZOO.items() if specimen.uncountable}

QUICK = {
    "masked_add",
    "matmul_in_steps",
    "nested_helpers",
    "descriptors_with_ragged_edges",
    "loads_in_conditional_expressions",
    "void_helpers_in_both_branches",
    "early_returns_in_kernel_and_helpers",
}


def drawn(name: str) -> list[dict[str, Any]]:
    """Parameters of a specimen: always the same ones, the smallest first."""
    params: list[dict[str, Any]] = []

    @settings(
        max_examples=DRAWN,
        derandomize=True,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(ZOO[name].params)
    def collect(one: dict[str, Any]) -> None:
        params.append(one)

    collect()
    return params


@cache
def launcher(name: str, smallest: bool) -> tuple[Any, Callable[[Any], object]]:
    """A kernel by name, and what launches it or its twin."""
    if name in COMBINATIONS:
        return COMBINATIONS[name].kernel, COMBINATIONS[name].launch
    params = drawn(name)[0 if smallest else -1]
    return ZOO[name].kernel, lambda kernel: ZOO[name].launch(kernel, **params)


@cache
def launches(name: str, smallest: bool) -> tuple[Launch, Launch]:
    """What launching the kernel launches, and what launching its counting form does."""
    original, launch = launcher(name, smallest)
    kernel = counted(original, ledger=Ledger("cpu", rows=1))
    # The rest of a launch is as on a GPU, down to the functions and the options that reach Triton.
    with patch.object(kernel_module._Launcher, "_device", lambda _: torch.device("cpu")):
        both = [record_launches(lambda one=one: launch(one)) for one in (original, kernel)]
    assert len(both[0]) == len(both[1]) == 1
    return both[0][0], both[1][0]


@cache
def compiled(name: str, smallest: bool = False) -> MachineCode | None:
    """The original; None where Triton does not compile it."""
    original, _ = launches(name, smallest)
    try:
        return compile_for(original)
    except MachineCodeError:
        return None


def compile_or_skip(name: str, smallest: bool = False) -> MachineCode:
    code = compiled(name, smallest)
    if code is None:
        assert name in NOT_FOR_SM_90
        with pytest.raises(MachineCodeError):
            compile_for(launches(name, smallest)[1])
        pytest.skip(f"{name}: {NOT_FOR_SM_90[name]}")
    assert name not in NOT_FOR_SM_90
    return code


def is_counted(name: str) -> bool:
    try:
        counted(launcher(name, False)[0])
    except kernel_module.Uncountable:
        return False
    return True


every_kernel = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in [*ZOO, *COMBINATIONS]
        if name not in REFUSED or is_counted(name)
    ],
)


@every_kernel
def test_compiles_counting(name: str) -> None:
    original = compile_or_skip(name)
    code = compile_for(launches(name, False)[1])
    if counted(launcher(name, False)[0]).exactness().sites:
        assert len(FLUSH.findall(code.sass)) > len(FLUSH.findall(original.sass))
    assert code.tensor_instructions == original.tensor_instructions


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ZOO if name not in REFUSED or is_counted(name)])
def test_compiles_counting_where_arguments_are_constants(name: str) -> None:
    """The smallest parameters are ones, which Triton compiles as constants."""
    compile_or_skip(name, smallest=True)
    compile_for(launches(name, True)[1])


@every_kernel
def test_without_a_ledger_it_is_the_same_machine_code(name: str) -> None:
    original = compile_or_skip(name)
    twin = launches(name, False)[1]
    code = compile_for(replace(twin, kwargs={key: value for key, value in twin.kwargs.items() if key != LEDGER}))
    if name in EVALUATED_EARLIER and not same_machine_code(code, original):
        pytest.xfail("a call taken out of an expression is evaluated before what stands to its left")
    if name in CALLED_TWICE and not same_machine_code(code, original):
        pytest.xfail("a helper in the test of a while is called before the loop and at its end")
    assert same_machine_code(code, original)


@triton.jit
def load_at(x, offs):
    return tl.load(x + offs)


@triton.jit
def call_inside_an_expression(x, out, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    tl.store(out + offs, load_at(x, offs))


@triton.jit
def call_before_the_expression(x, out, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    value = load_at(x, offs)
    tl.store(out + offs, value)


def test_a_call_taken_out_of_an_expression_changes_no_more_than_the_order() -> None:
    """The twin without a ledger is the original, as written or with the call in a statement of its own."""
    x, out = torch.zeros(16), torch.zeros(16)
    codes = [
        compile_for(Launch(kernel, (1,), (x, out), {"BLOCK": 16}))
        for kernel in (
            call_inside_an_expression,
            call_before_the_expression,
            counted(call_inside_an_expression).twin,
        )
    ]
    assert any(same_machine_code(codes[2], original) for original in codes[:2])


def test_the_comparison_sees_one_instruction() -> None:
    """Two kernels that differ in a constant are not the same."""
    original, twin = launches("masked_add", False)
    assert not same_machine_code(compile_for(original), compile_for(twin))
    assert isinstance(twin.kernel, triton.JITFunction)
    assert twin.kwargs[LEDGER].dtype == torch.int64
