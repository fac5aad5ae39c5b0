import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roofline_policies.control.window import GapWindow, Phase
from roofline_policies.device.roofline import Bound
from tests.roofline_policies.records import CEILINGS, record


def test_empty_windows_know_nothing():
    phase, gaps = Phase(CEILINGS, 1.0, 0.4), GapWindow(8)
    assert (phase.point(), phase.step_s, phase.tokens_per_s) == (None, None, None)
    assert (gaps.mean_s, gaps.tail_s) == (None, None)


def test_a_phase_that_has_not_run_for_long_has_no_point_but_keeps_its_rate():
    phase = Phase(CEILINGS, 1.0, 0.4)
    phase.add(record(5.0, step_s=2.0, tokens=8))
    assert phase.point(15.0) is not None
    assert phase.point(15.1) is None
    assert (phase.step_s, phase.tokens_per_s, phase.requests) == (2.0, 4.0, 8.0)


def test_one_iteration_is_the_point():
    phase = Phase(CEILINGS, 1.0, 0.4)
    phase.add(record(0.0, step_s=2.0, flops=50, read=5, tokens=8))
    point = phase.point()
    assert (point.flops_per_s, point.bytes_per_s, point.intensity_flops_per_byte) == (25.0, 2.5, 10.0)
    assert (point.compute_fraction, point.memory_fraction, point.bound) == (0.25, 0.25, Bound.OVERHEAD)
    assert (phase.step_s, phase.tokens_per_s) == (2.0, 4.0)


@given(st.lists(st.tuples(st.floats(0.001, 5), st.floats(0.01, 3), st.integers(1, 1000)), min_size=1, max_size=20))
def test_sums_decay_by_half_every_half_life(steps):
    half_life_s, done_s = 1.5, 0.0
    phase, times, seconds, flops = Phase(CEILINGS, half_life_s, 0.4), [], [], []
    for wait_s, step_s, count in steps:
        done_s += wait_s
        phase.add(record(done_s, step_s, flops=count))
        times.append(done_s)
        seconds.append(step_s)
        flops.append(count)
    weights = 0.5 ** ((done_s - np.array(times)) / half_life_s)
    assert phase.point().flops_per_s == pytest.approx(weights @ flops / (weights @ seconds))
    assert phase.step_s == pytest.approx(weights @ seconds / weights.sum())


@given(st.lists(st.floats(0.001, 10), min_size=2, max_size=40))
def test_gap_mean_and_tail_match_the_weighted_definition(gaps):
    window, share = GapWindow(8), 1 / 8
    weights = np.array([1.0])
    for index, gap in enumerate(gaps):
        window.add(gap)
        if index:
            weights = np.append(weights * (1 - share), share)
    mean = weights @ gaps
    deviation = np.sqrt(weights @ (np.array(gaps) - mean) ** 2)
    assert window.mean_s == pytest.approx(mean)
    assert window.tail_s == pytest.approx(mean + 2.33 * deviation, rel=1e-6, abs=1e-9)
