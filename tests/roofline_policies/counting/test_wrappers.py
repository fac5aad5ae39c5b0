"""Kernels inside what people wrap them in: they are counted, or the message says what to pass."""

import functools
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch._inductor.runtime.hints import DeviceProperties, HeuristicType
from torch._inductor.runtime.triton_heuristics import CachingAutotuner
from torch.library import triton_op, wrap_triton

from roofline_policies.counting import Uncountable, counted
from roofline_policies.counting.explain import explain


@triton.jit
def copy_kernel(x, out, n, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    tl.store(out + offs, tl.load(x + offs, mask=offs < n), mask=offs < n)


CONFIGS = [triton.Config({"BLOCK": 16}), triton.Config({"BLOCK": 32})]


def of_inductor(configs: list[triton.Config] = CONFIGS) -> CachingAutotuner:
    """As ``torch.compile`` makes it for a kernel of its own."""
    device = DeviceProperties(type="cuda", index=0, multi_processor_count=132, cc=90, major=9)
    meta = {"device": device, "signature": {"x": "*fp32", "out": "*fp32", "n": "i32", "BLOCK": "constexpr"}}
    return CachingAutotuner(
        copy_kernel,
        triton_meta={**meta, "constants": {}},
        configs=configs,
        save_cache_hook=None,
        mutated_arg_names=["out"],
        optimize_mem=True,
        heuristic_type=HeuristicType.POINTWISE,
        inductor_meta={},
    )


def refusal(kernel: Any) -> str:
    with pytest.raises(Uncountable) as raised:
        counted(kernel)
    return str(raised.value)


@pytest.mark.parametrize(
    "wrapped",
    [
        triton.heuristics({"BLOCK": lambda _: 16})(copy_kernel),
        triton.autotune(CONFIGS, key=["n"])(copy_kernel),
        triton.heuristics({"n": lambda _: 3})(triton.autotune(CONFIGS, key=[])(copy_kernel)),
        triton.autotune(CONFIGS[:1], key=[])(triton.heuristics({"n": lambda _: 3})(copy_kernel)),
        triton.autotune(CONFIGS[:1], key=[])(triton.autotune(CONFIGS, key=["n"])(copy_kernel)),
    ],
    ids=["heuristics", "autotune", "heuristics of autotune", "autotune of heuristics", "autotune of autotune"],
)
def test_tritons_own_wrappers_are_looked_through(wrapped: Any) -> None:
    assert counted(wrapped).exactness().exact
    assert counted(wrapped).source == counted(copy_kernel).source


def test_inductors_autotuner_says_to_pass_its_kernel() -> None:
    autotuner = of_inductor()
    message = (
        "CachingAutotuner: is no function under triton.jit; it launches copy_kernel in a way of its own: pass its .fn"
    )
    assert refusal(autotuner).endswith(message)
    assert counted(autotuner.fn).exactness().exact
    assert explain(autotuner, "autotuner").exactness.exact  # nothing is launched


def test_an_autotuner_of_another_kind_around_tritons() -> None:
    class Cache:
        def __init__(self, fn: Any) -> None:
            self.fn = fn

    assert refusal(Cache(triton.autotune(CONFIGS, key=["n"])(copy_kernel))).endswith("pass its .fn.fn")


def test_a_kernel_wrapped_for_tracing_says_to_pass_its_kernel() -> None:
    assert refusal(wrap_triton(copy_kernel)).endswith("launches copy_kernel in a way of its own: pass its .kernel")


def test_a_launcher_says_which_kernels_it_launches() -> None:
    @functools.wraps(copy_kernel.fn)
    def launcher(x: torch.Tensor, out: torch.Tensor) -> None:
        copy_kernel[(1,)](x, out, len(x), BLOCK=16)

    @functools.wraps(launcher)
    def checked(x: torch.Tensor, out: torch.Tensor) -> None:
        launcher(x, out)

    def plain(x: torch.Tensor, out: torch.Tensor) -> None:
        launcher(x, out)
        copy_kernel[(1,)](x, out, len(x), BLOCK=16)

    assert refusal(plain).endswith("function: is no function under triton.jit; count what it launches: copy_kernel")
    assert "is no function under triton.jit" in refusal(checked)
    assert refusal(len).endswith("is no function under triton.jit")


def test_functools_wraps_of_a_kernel_says_to_pass_it() -> None:
    @functools.wraps(copy_kernel)
    def launcher(x: torch.Tensor, out: torch.Tensor) -> None:
        copy_kernel[(1,)](x, out, len(x), BLOCK=16)

    assert refusal(launcher).endswith("launches copy_kernel in a way of its own: pass its .__wrapped__")


def test_an_operator_says_which_kernels_it_launches() -> None:
    @triton_op("roofline_wrappers::copy", mutates_args={})
    def copy(x: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x)
        wrap_triton(copy_kernel)[(1,)](x, out, x.numel(), BLOCK=16)
        return out

    assert refusal(copy).endswith("is no function under triton.jit; count what it launches: copy_kernel")
