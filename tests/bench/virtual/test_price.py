"""What the clock charges over what is predicted, against closed forms; then on SGLang's real scheduler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.composition import read_config
from bench.report.records import ArmRun
from bench.virtual.arms import VirtualArm, read_arms
from bench.virtual.price import Price, PricedSteps
from bench.virtual.processes import Crash, run_each
from bench.virtual.settings import Experiment, VirtualSettings
from bench.virtual.task import run_and_summarise
from roofline_policies.errors import InputError
from roofline_policies.model.batch import BatchShape
from tests.bench.virtual.test_device import Asked
from tests.bench.virtual.test_settings import SLO

NONE, PROMPT, ROW = BatchShape(), BatchShape.of(prefill=[(512, 0)]), BatchShape.of(decode_contexts=[700])


def at(*moments: float) -> Callable[[], float]:
    told: Iterator[float] = iter(moments)
    return lambda: next(told)


def never() -> float:
    raise AssertionError("when a step starts matters only where clocks drop")


def test_a_price_of_nothing_is_the_times_as_they_are() -> None:
    times = Asked(0.3)
    priced = PricedSteps(times, Price(), 0, never)
    assert [priced.step_s(prefill=PROMPT, decode=NONE, graph=True) for _ in range(5000)] == [0.3] * 5000
    assert times.asked == [{"prefill": PROMPT, "decode": NONE, "graph": True}] * 5000


def test_a_bias_is_of_every_step() -> None:
    priced = PricedSteps(Asked(0.3), Price(bias=1.25), 0, never)
    assert priced.step_s(prefill=NONE, decode=ROW, graph=False) == 0.3 * 1.25


@pytest.mark.parametrize(
    ("prompts", "rows", "factor"), [(0, 1, 0.82), (0, 100, 2.8), (1, 0, 0.82), (3, 0, 0.86), (2, 98, 2.8)]
)
def test_a_bias_grows_with_the_requests_of_a_step_and_with_nothing_else(prompts: int, rows: int, factor: float) -> None:
    priced = PricedSteps(Asked(0.5), Price(bias=0.8, bias_per_request=0.02), 0, never)
    for tokens in (1, 4096):
        prefill = BatchShape.of(prefill=[(tokens, 100)] * prompts)
        decode = BatchShape.of(decode_contexts=[tokens] * rows)
        assert priced.step_s(prefill=prefill, decode=decode, graph=not prompts) == pytest.approx(0.5 * factor)


def test_steps_that_start_when_clocks_have_dropped_are_slower() -> None:
    price = Price(slower=1 / 0.7, slower_from_s=60.0)
    priced = PricedSteps(Asked(0.07), price, 0, at(0.0, 59.999, 60.0, 61.0, 1e6))
    took = [priced.step_s(prefill=PROMPT, decode=ROW, graph=False) for _ in range(5)]
    assert took == pytest.approx([0.07, 0.07, 0.1, 0.1, 0.1])


@given(
    st.floats(0.1, 10), st.floats(0, 1), st.floats(0.1, 10), st.one_of(st.none(), st.floats(0, 100)),
    st.floats(0, 100), st.integers(0, 500), st.integers(0, 500),
)  # fmt: skip
def test_factors_multiply(
    bias: float, each: float, slower: float, from_s: float | None, starts_s: float, prompts: int, rows: int
) -> None:
    priced = PricedSteps(Asked(0.01), Price(bias, each, slower, from_s), 0, lambda: starts_s)
    prefill, decode = BatchShape(requests=prompts), BatchShape(requests=rows)
    dropped = slower if from_s is not None and starts_s >= from_s else 1.0
    expected = 0.01 * (bias + each * (prompts + rows)) * dropped
    assert priced.step_s(prefill=prefill, decode=decode, graph=False) == pytest.approx(expected, rel=1e-12)


def prices(noise: float, seed: int, count: int = 20_000, bias: float = 1.0) -> list[float]:
    priced = PricedSteps(Asked(1.0), Price(bias=bias, noise=noise), seed, never)
    return [priced.step_s(prefill=NONE, decode=ROW, graph=True) for _ in range(count)]


def test_noise_has_the_mean_and_deviation_it_is_said_to_have() -> None:
    drawn = prices(0.1, seed=3, bias=2.0)
    assert np.mean(drawn) == pytest.approx(2.0, abs=5 * 2 * 0.1 / np.sqrt(len(drawn)))
    assert np.std(drawn) == pytest.approx(0.2, abs=5 * 2 * 0.1 / np.sqrt(2 * len(drawn)))
    assert len(set(drawn)) == len(drawn)  # every step its own
    assert min(prices(2.0, seed=0)) == 0.1  # never below, whatever the noise


def test_equal_seeds_give_equal_prices_and_others_do_not() -> None:
    assert prices(0.1, seed=3) == prices(0.1, seed=3)
    assert prices(0.1, seed=3)[:10] != prices(0.1, seed=4)[:10]


def test_pauses_make_the_stated_share_of_steps_so_many_times_as_long() -> None:
    def priced(share: float, factor: float) -> list[float]:
        steps = PricedSteps(Asked(1.0), Price(bias=2.0, noise=0.1, pause_share=share, pause_factor=factor), 3, never)
        return [steps.step_s(prefill=NONE, decode=ROW, graph=True) for _ in range(20_000)]

    calm, paused = priced(0.0, 3.0), priced(0.05, 3.0)
    factors = [long / short for long, short in zip(paused, calm, strict=True)]  # noise is the same
    assert {round(factor, 9) for factor in factors} == {1.0, 3.0}
    share = sum(factor > 2 for factor in factors) / len(factors)
    assert share == pytest.approx(0.05, abs=5 * np.sqrt(0.05 * 0.95 / len(factors)))
    assert priced(0.05, 3.0) == paused


def test_what_can_be_known_of_a_price_is_all_but_chance() -> None:
    assert Price(1.5, 0.1, 2.0, 9.0, 0.3, 0.1, 4.0).without_chance() == Price(1.5, 0.1, 2.0, 9.0, 0.0, 0.0, 4.0)


ONE = (
    "traffic.phases=[{name: one, duration_s: 30, rate_per_s: 1, "
    "prompt_median: 600, prompt_sigma: 0, output_median: 200, output_sigma: 0}]"
)
DROPPED = ("price.bias=1.2", "price.bias_per_request=0.05", "price.slower=2", "price.slower_from_s=1.3")


def experiment(*overrides: str) -> Experiment:
    """One request, on a host that takes no time: its gaps are its steps."""
    chosen = (ONE, "traffic.max_requests=1", "host.step_s=0", "host.request_s=0", "slo.itl_s=0.1")
    return VirtualSettings.from_config(read_config("virtual", [*chosen, *overrides])).experiment


@pytest.fixture(scope="module")
def runs() -> list[ArmRun]:
    """A request as predicted, and at a price that the policy is told."""
    jobs = [(experiment(), VirtualArm("default"), None), (experiment(*DROPPED), *read_arms(["told_price"], SLO), None)]
    outcomes = dict(run_each(run_and_summarise, jobs, 1, lambda *_: None))
    found = []
    for place in range(len(jobs)):
        outcome = outcomes[place]
        assert not isinstance(outcome, Crash), outcome
        found.append(outcome[0])
    return found


def test_each_gap_takes_its_price(runs: list[ArmRun]) -> None:
    usual, priced = ([*run.records[0].token_s] for run in runs)
    assert len(usual) == len(priced) == 200
    assert priced[0] < 1.3 < priced[-1]
    expected = [
        (after - before) * 1.25 * (2.0 if start_s >= 1.3 else 1.0)
        for (before, after), start_s in zip(pairwise(usual), priced, strict=False)
    ]
    assert [after - before for before, after in pairwise(priced)] == pytest.approx(expected, rel=1e-9)


def test_a_policy_that_is_told_the_price_has_nothing_to_learn(runs: list[ArmRun]) -> None:
    learned = runs[1].samples[-1].ranks[0]["correction"]
    assert learned["decode"]["steps"] > 100  # type: ignore[index]
    for kind in ("prefill", "decode"):
        assert learned[kind]["median_error"] < 1e-6  # type: ignore[index]


@pytest.mark.parametrize("chosen", ["efficiency=roofline", "efficiency=none", "efficiency=h100_sxm"])
def test_the_price_of_other_times_cannot_be_told(chosen: str) -> None:
    arms = read_arms({"a": {"policy": "adaptive", "policy_set": [chosen], "told_price": True}}, SLO)
    message = "arms.a: told_price = True: is of times that its policy is not told; allowed: a policy with efficiency="
    with pytest.raises(InputError, match=message):
        experiment().check(arms)
