"""Autotuned kernels, heuristics, and kernels that share a ledger: what is counted, and where."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import triton
import triton.language as tl

from roofline_policies.counting import Counts, Ledger, counted, difference, slots
from tests.interpreted.zoo import ZOO

N = 20
TRIES = 3
BLOCKS = (8, 16, 32)
FASTEST = 16


class Benchmark:
    """Runs each candidate several times; the one with FASTEST lanes takes least."""

    def __init__(self) -> None:
        self.candidates = 0

    def __call__(self, kernel_call: Callable[[], object], quantiles: object = None) -> list[float]:
        self.candidates += 1
        for _ in range(TRIES):
            kernel_call()
        fast = BLOCKS[(self.candidates - 1) % len(BLOCKS)] == FASTEST
        return [0.5 if fast else 1.0] * 3


BENCHMARK = Benchmark()
CONFIGS = [triton.Config({"BLOCK": block}, num_warps=1) for block in BLOCKS]


@triton.jit
def padded_copy(x, out, n, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + offs, tl.load(x + offs), mask=offs < n)  # how much is loaded tells the configuration


@triton.jit
def add_up(x, out, n, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.atomic_add(out, tl.sum(tl.load(x + offs, mask=offs < n, other=0.0)))


@triton.jit
def copy_of_any_size(x, out, n, BLOCK: tl.constexpr, EVEN: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + offs) if EVEN else tl.load(x + offs, mask=offs < n)
    tl.store(out + offs, value, mask=None if EVEN else offs < n)


def is_even(arguments: dict[str, Any]) -> bool:
    return arguments["n"] % arguments["BLOCK"] == 0


def autotuned(kernel: Any, **options: Any) -> Any:
    return triton.autotune(configs=CONFIGS, key=["n"], do_bench=BENCHMARK, **options)(kernel)


@pytest.fixture(autouse=True)
def benchmark_is_new() -> None:
    BENCHMARK.candidates = 0


def launch(kernel: Any, n: int = N) -> torch.Tensor:
    out = torch.zeros(64)
    kernel[lambda meta: (triton.cdiv(n, meta["BLOCK"]),)](torch.arange(64.0), out, n)
    return out


def loaded(n: int = N, block: int = FASTEST) -> int:
    return 4 * block * triton.cdiv(n, block)


def test_what_it_tries_is_not_counted() -> None:
    kernel = counted(autotuned(padded_copy))
    out = launch(kernel)
    assert BENCHMARK.candidates == len(BLOCKS)
    assert kernel.counts() == Counts(load_bytes=loaded(), store_bytes=4 * N)
    assert torch.equal(out[:N], torch.arange(float(N)))
    assert kernel.best_config.kwargs == {"BLOCK": FASTEST}


@pytest.mark.parametrize("original_first", [True, False])
def test_the_original_and_its_copy_know_the_same_configurations(original_first: bool) -> None:
    original = autotuned(padded_copy)
    kernel = counted(original)
    for one in (original, kernel) if original_first else (kernel, original):
        launch(one)
        assert BENCHMARK.candidates == len(BLOCKS)  # whoever comes second need not try
    assert kernel.counts() == Counts(load_bytes=loaded(), store_bytes=4 * N)
    assert original.best_config == kernel.best_config


def test_a_new_key_is_tried_again_and_only_the_launches_count() -> None:
    kernel = counted(autotuned(padded_copy))
    expected = 0
    for n in (20, 33, 20, 33):
        launch(kernel, n)
        expected += loaded(n)
        assert kernel.counts().load_bytes == expected
    assert BENCHMARK.candidates == 2 * len(BLOCKS)


def test_the_original_is_left_as_it_was() -> None:
    original = autotuned(padded_copy)
    kernel = counted(original)
    assert original.fn is padded_copy
    launch(kernel)
    before = kernel.counts()
    launch(original)
    launch(padded_copy_alone := autotuned(padded_copy))
    assert kernel.counts() == before
    assert padded_copy_alone.best_config.kwargs == original.best_config.kwargs


def test_a_benchmark_that_fails_leaves_the_kernel_counting() -> None:
    failures = [ArithmeticError()]

    def fails_at_first(kernel_call: Callable[[], object], quantiles: object = None) -> list[float]:
        kernel_call()
        if failures:
            raise failures.pop()
        return BENCHMARK(kernel_call, quantiles)

    kernel = counted(triton.autotune(configs=CONFIGS, key=["n"], do_bench=fails_at_first)(padded_copy))
    with pytest.raises(ArithmeticError):
        launch(kernel)
    assert kernel.counts() == Counts()
    launch(kernel)
    assert kernel.counts().load_bytes == loaded()


def test_outputs_are_reset_between_tries() -> None:
    original = autotuned(add_up, reset_to_zero=["out"])
    kernel = counted(original)
    out = launch(kernel)
    assert out[0] == sum(range(N))
    assert kernel.counts() == Counts(load_bytes=4 * N, atomic_bytes=4 * triton.cdiv(N, FASTEST))


def test_inputs_are_restored_between_tries() -> None:
    kernel = counted(autotuned(add_up, restore_value=["out"]))
    assert launch(kernel)[0] == sum(range(N))
    assert kernel.counts().load_bytes == 4 * N


def test_configurations_may_be_pruned() -> None:
    def only_the_largest(configs: list[triton.Config], named: dict[str, Any], **_: Any) -> list[triton.Config]:
        assert named["n"] == N
        return configs[-1:]

    kernel = counted(autotuned(padded_copy, prune_configs_by={"early_config_prune": only_the_largest}))
    launch(kernel)
    assert BENCHMARK.candidates == 0
    assert kernel.counts().load_bytes == loaded(block=BLOCKS[-1])


def test_hooks_of_a_configuration_run() -> None:
    seen: list[int] = []
    config = triton.Config({"BLOCK": 8}, pre_hook=lambda arguments: seen.append(arguments["n"]))
    kernel = counted(triton.autotune(configs=[config], key=["n"])(padded_copy))
    launch(kernel)
    assert seen == [N]
    assert kernel.counts().load_bytes == loaded(block=8)


@pytest.mark.parametrize("n", [20, 32])
def test_autotune_over_heuristics(n: int) -> None:
    kernel = counted(autotuned(triton.heuristics({"EVEN": is_even})(copy_of_any_size)))
    out = launch(kernel, n)
    assert BENCHMARK.candidates == len(BLOCKS)
    assert kernel.counts() == Counts(load_bytes=4 * n, store_bytes=4 * n)
    assert torch.equal(out[:n], torch.arange(float(n)))


def test_heuristics_over_autotune() -> None:
    kernel = counted(
        triton.heuristics({"EVEN": lambda arguments: arguments["n"] % 32 == 0})(autotuned(copy_of_any_size))
    )
    for n in (20, 32):
        launch(kernel, n)
    assert BENCHMARK.candidates == 2 * len(BLOCKS)
    assert kernel.counts() == Counts(load_bytes=4 * 52, store_bytes=4 * 52)


def test_shadow_and_off_do_not_count_what_is_tried() -> None:
    shadow, off = counted(autotuned(padded_copy), "shadow"), counted(autotuned(padded_copy), "off")
    assert torch.equal(launch(shadow), launch(off))
    assert shadow.counts() == Counts(load_bytes=loaded(), store_bytes=4 * N)
    assert off.counts() == Counts()


# --- kernels that share a ledger --------------------------------------------------------------------------------------


def test_two_twins_of_one_kernel_count_apart() -> None:
    ledger = Ledger("cpu", rows=2)
    kernel = autotuned(padded_copy)
    first, second = counted(kernel, ledger=ledger), counted(kernel, ledger=ledger)
    launch(first)
    launch(first)
    launch(second)
    assert first.counts().load_bytes == 2 * loaded()
    assert second.counts().load_bytes == loaded()
    assert ledger.names == ("padded_copy", "padded_copy")


def test_two_kernels_share_a_ledger_in_two_rows() -> None:
    ledger = Ledger("cpu", rows=2)
    copy, total = counted(autotuned(padded_copy), ledger=ledger), counted(autotuned(add_up), ledger=ledger)
    launch(copy)
    earlier = ledger.read()
    launch(total)
    of_copy, of_total = difference(ledger.read(), earlier)
    assert not any(of_copy)
    assert of_total[slots.LOAD] == total.counts().load_bytes == 4 * N
    assert ledger.names == ("padded_copy", "add_up")
    assert Counts.of(ledger.read()[0]) == copy.counts()


def test_a_kernel_keeps_the_ledger_of_its_first_launch() -> None:
    """One of its own or, where it was given none, the common one of the device."""
    from roofline_policies.counting import ledger_of

    own, common = Ledger("cpu", rows=1), ledger_of("cpu")
    names, earlier = common.names, common.read()
    with_own, without = counted(padded_copy, ledger=own), counted(padded_copy)
    assert common.names == names  # nobody has launched it yet
    for kernel in (with_own, without, without):
        kernel[(1,)](torch.ones(16), torch.zeros(16), 16, BLOCK=16)
    assert own.names == ("padded_copy",)
    assert own.read()[0][slots.LOAD] == 64
    # A new row, or one that another kernel has given back.
    told = zip(common.names, difference(common.read(), earlier), strict=True)
    assert [(name, row[slots.LOAD]) for name, row in told if any(row)] == [("padded_copy", 128)]


def test_counts_only_grow() -> None:
    specimen = ZOO["heuristics"]
    kernel = counted(specimen.kernel, ledger=Ledger("cpu", rows=1))
    expected = 0
    for n in (7, 16, 1, 33):
        specimen.launch(kernel, n=n, seed=0)
        expected += 4 * n
        assert kernel.counts() == kernel.counts() == Counts(load_bytes=expected, store_bytes=expected)
