"""Rates of a device: what is counted, how often, and how far the repeats differ."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.roofline_policies.device.fake_timer import FakeTimer

torch = pytest.importorskip("torch")

from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from roofline_policies.device import rates as module  # noqa: E402
from roofline_policies.work import Precision  # noqa: E402

CPU = torch.device("cpu")


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16, Precision.FP16, Precision.FP8])
def test_flops_are_those_torch_counts(precision: Precision) -> None:
    run = module.product(CPU, precision)(64)
    with FlopCounterMode(display=False) as counter:
        run()
    assert counter.get_total_flops() == module.matmul_flops(64) == 2 * 64**3


def test_stream_bytes_are_those_of_the_buffers() -> None:
    size = 4 << 20
    moved = {kind: bytes_moved for kind, (_, bytes_moved) in module.streams(CPU, size).items()}
    assert moved == {"copy": 2 * size, "sum": size, "dot": 2 * size}


@pytest.mark.parametrize(
    ("run_s", "budget_s", "runs"),
    [
        (0.3, 1.0, 3),  # a fourth would end after 1.2 s
        (0.3, 0.0, 2),  # one to warm up and one that counts, whatever the budget
        (5.0, 1.0, 2),
        (1e-6, 1.0, 1 + module.MOST_REPEATS),
    ],
)
def test_repeats_fill_the_budget_and_do_not_exceed_it(run_s: float, budget_s: float, runs: int) -> None:
    timer = FakeTimer(run_s)
    assert module.timing(lambda: None, timer, budget_s).best_s == run_s
    assert timer.runs == runs


def test_a_slow_first_run_does_not_count() -> None:
    timer = FakeTimer(run_s=0.01, first_s=0.5)
    assert module.timing(lambda: None, timer, 1.0) == (0.01, 0.0)
    assert timer.runs > 40
    assert timer.calls < timer.runs  # repeats are timed in chunks, one synchronise each


def test_sizes_grow_while_they_fit() -> None:
    made: list[int] = []

    def make(n: int) -> Callable[[], object]:
        made.append(n)
        return lambda: None

    def at_a_gigaflop(_: object, repeats: int) -> list[float]:
        return [module.matmul_flops(made[-1]) / 1e9] * repeats

    assert module.matmul_flops_per_s(make, (64, 128, 256, 4096), at_a_gigaflop, 1.0).per_s == pytest.approx(1e9)
    assert made == [64, 128, 256]  # three products of 4096 would take 412 s


def test_sizes_stop_where_the_rate_collapses() -> None:
    made: list[int] = []

    def make(n: int) -> Callable[[], object]:
        made.append(n)
        return lambda: None

    def slower(_: object, repeats: int) -> list[float]:
        return [module.matmul_flops(made[-1]) / (1e12 / 4 ** len(made))] * repeats

    assert module.matmul_flops_per_s(make, (64, 128, 256, 512), slower, 10.0).per_s == pytest.approx(1e12 / 4)
    assert made == [64, 128]


def test_cuda_times_with_events_and_synchronises_once(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    class FakeEvent:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            log.append("record")

        def elapsed_time(self, end: FakeEvent) -> float:
            assert log[-1] == "synchronize"
            return 250.0

    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("synchronize"))
    assert module.cuda_timer(lambda: log.append("run"), 3) == [0.25, 0.25, 0.25]
    assert log == ["record", "run", "record"] * 3 + ["synchronize"]


@given(st.lists(st.floats(1e-6, 1.0), min_size=2, max_size=50))
def test_spread_is_that_of_the_lower_quartile_over_the_best(times: list[float]) -> None:
    """Times come one after the other; the first warms up."""
    left = iter([times[0], *times])

    def one_by_one(_: object, repeats: int) -> list[float]:
        return [next(left, 2.0) for _ in range(repeats)]

    took = module.timing(lambda: None, one_by_one, 1e9)
    ran = (times + [2.0] * module.MOST_REPEATS)[: module.MOST_REPEATS]
    assert took.best_s == min(ran)
    assert took.spread == pytest.approx(np.quantile(ran, 0.25) / min(ran) - 1)


def test_one_repeat_has_no_spread() -> None:
    assert module.timing(lambda: None, FakeTimer(5.0), 1.0) == (5.0, None)


@pytest.mark.parametrize(
    ("rates", "attempts", "expected", "measured"),
    [
        ([(100.0, 0.02)], 3, (100.0, 0.02), 1),
        ([(100.0, 0.3), (98.0, 0.01)], 3, (100.0, 100 / 98 - 1), 2),
        ([(100.0, 0.3), (60.0, 0.01), (99.0, 0.4)], 3, (100.0, 100 / 99 - 1), 3),
        ([(100.0, 0.3), (60.0, 0.4), (80.0, 0.5)], 3, (100.0, 0.25), 3),  # nothing comes near the best: marked
        ([(100.0, 0.3), (130.0, 0.05)], 3, (130.0, 0.05), 2),
        ([(100.0, 0.3), (60.0, 0.05), (98.0, 0.2)], 2, (100.0, 0.3), 2),
        ([(100.0, None), (95.0, None)], 3, (100.0, 100 / 95 - 1), 2),
        ([(100.0, None), (70.0, None), (80.0, None)], 3, (100.0, 0.25), 3),
        ([(100.0, None)], 1, (100.0, None), 1),
    ],
)
def test_what_nothing_confirms_is_measured_again_and_not_for_ever(
    rates: list[tuple[float, float | None]], attempts: int, expected: tuple[float, float | None], measured: int
) -> None:
    left, said = iter(rates), []

    def measure() -> module.Rate:
        return module.Rate(*next(left))

    found = module.settled(measure, "bf16", attempts, said.append)
    assert found.per_s == expected[0]
    assert found.spread == (None if expected[1] is None else pytest.approx(expected[1]))
    assert len(said) == measured - 1
    assert all(line.startswith("bf16: ") and line.endswith(", measured again") for line in said)
