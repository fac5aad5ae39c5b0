"""SGLang's attention kernels, launched by its own wrappers: counts equal to the oracle's, and outputs to the bit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from bench.kernels import attention
from bench.kernels.attention import Case, Tensors
from bench.kernels.launching import MODULES, kernel_named, launched_by
from roofline_policies.counting import Counts, Ledger, counted
from tests.interpreted.attention.trials import TRIALS, Trial, of_case
from tests.interpreted.oracle import counting_oracle

# Explaining a failure runs the interpreter hundreds of times more, and the smallest example says enough.
PHASES = set(Phase) - {Phase.explain}
QUICK = settings(deadline=None, max_examples=8, phases=PHASES)
THOROUGH = settings(deadline=None, max_examples=20, phases=PHASES)

MODES = ("inline", "shadow")


@cache
def counting(name: str, mode: str) -> Any:
    """One counted kernel for all examples, with a ledger of its own."""
    return counted(kernel_named(name), mode, ledger=Ledger("cpu", rows=1))


def total(counts: Counts) -> Counter[Any]:
    """Counts that can be added and subtracted."""
    assert counts.other_dot_flops == 0
    named = {"load": counts.load_bytes, "store": counts.store_bytes, "atomic": counts.atomic_bytes}
    return Counter({**named, **counts.dot_flops})


def seen_by_the_oracle(trial: Trial) -> tuple[dict[str, Counter[Any]], Tensors]:
    """What each kernel executes as it is written, and the outputs."""
    tallies = {name: total(Counts()) for name in trial.kernels}

    def run(name: str) -> Callable[..., Any]:
        def launch(*args: Any, **kwargs: Any) -> Any:
            with counting_oracle() as seen:
                kernel_named(name).run(*args, **kwargs)
            tally = seen.counts()
            tallies[name].update(
                total(Counts(tally.load_bytes, tally.store_bytes, tally.atomic_bytes, tally.dot_flops))
            )

        return launch

    with launched_by({name: run(name) for name in MODULES}):
        outputs = trial.run()
    return tallies, outputs


def counted_by_themselves(trial: Trial, mode: str) -> tuple[dict[str, Counter[Any]], Tensors]:
    """What each kernel counts, and the outputs."""
    kernels = {name: counting(name, mode) for name in trial.kernels}
    before = {name: total(kernel.counts()) for name, kernel in kernels.items()}
    with launched_by({name: kernel.run for name, kernel in kernels.items()}):
        outputs = trial.run()
    increases = {name: total(kernel.counts()) for name, kernel in kernels.items()}
    for name, increase in increases.items():
        increase.subtract(before[name])
    return increases, outputs


def bits(outputs: Tensors) -> dict[str, list[int]]:
    return {name: output.contiguous().view(torch.uint8).flatten().tolist() for name, output in outputs.items()}


def check(trial: Trial) -> None:
    expected, outputs = seen_by_the_oracle(trial)
    assert all(tally["load"] for tally in expected.values())  # each was launched
    for mode in MODES:
        counts, counted_outputs = counted_by_themselves(trial, mode)
        assert counts == expected, mode
        assert bits(counted_outputs) == bits(outputs), mode


every_family = pytest.mark.parametrize("family", TRIALS.values(), ids=list(TRIALS))


@every_family
@QUICK
@given(data=st.data())
def test_counts_are_those_of_the_oracle(family: st.SearchStrategy[Trial], data: st.DataObject) -> None:
    check(data.draw(family))


@pytest.mark.slow
@every_family
@THOROUGH
@given(data=st.data())
def test_counts_are_those_of_the_oracle_thoroughly(family: st.SearchStrategy[Trial], data: st.DataObject) -> None:
    check(data.draw(family))


SMALL = {"heads": 2, "kv_heads": 1, "head_dim": 16, "dtype": torch.float16}
SKIPPING = [
    attention.extend_unified((70,), (1,), **SMALL, sliding_window=1),
    attention.extend_unified((300,), (70,), **SMALL, sliding_window=100),
    attention.extend((130,), (150,), **SMALL, sliding_window=100),
    attention.extend((10,), (150,), **SMALL, custom_mask=[torch.ones(150, 160, dtype=torch.bool)]),
    attention.extend((10,), (150,), **SMALL, custom_mask=[torch.eye(150, 160, dtype=torch.bool).roll(10, 1)]),
]


@pytest.mark.parametrize("case", SKIPPING, ids=lambda case: f"{case.name} {case.shape.queries} {case.shape.keys}")
def test_loops_that_may_skip_a_tile_count_the_keys_of_each_that_they_do_not(case: Case) -> None:
    """Such a loop's sites cannot be counted behind it, and the tiles after the first have masks of their own."""
    check(of_case(case))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", MODULES)
def test_every_site_is_exact(name: str, mode: str) -> None:
    report = counting(name, mode).exactness()
    assert report.sites
    assert report.exact, "\n".join(map(str, report.sites))


def test_the_cases_of_the_server_launch_every_kernel_named_here() -> None:
    assert {name for case in attention.SERVING for name in case.kernels} == set(MODULES)


def test_what_a_launch_is_replaced_by_may_launch_the_kernel_and_leaves_no_trace() -> None:
    """A shadow launches the original: with its `run` still replaced that would never end."""
    case = attention.num_kv_splits((5, 9), heads=4, kv_heads=2)
    kernel, launches = kernel_named("get_num_kv_splits_triton"), []

    def run(*args: Any, **kwargs: Any) -> None:
        launches.append(kwargs["grid"])
        kernel.run(*args, **kwargs)

    with launched_by({"get_num_kv_splits_triton": run}):
        replaced = [case.launch()["num_kv_splits"].tolist() for _ in range(2)]
    assert launches == [(1,), (1,)]
    assert replaced == [case.reference()["num_kv_splits"].tolist()] * 2
    assert "run" not in vars(kernel)


def test_a_kernel_is_itself_again_after_a_failure() -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("no launch")

    kernel = kernel_named("get_num_kv_splits_triton")
    with pytest.raises(RuntimeError, match="no launch"), launched_by({"get_num_kv_splits_triton": fail}):
        attention.num_kv_splits((5,), heads=4, kv_heads=2).launch()
    assert "run" not in vars(kernel)
