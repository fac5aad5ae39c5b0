import pytest
from hypothesis import given
from hypothesis import strategies as st

from roofline_policies.device.roofline import Bound, attainable_flops_per_s, classify, roof_time
from roofline_policies.errors import InputError
from roofline_policies.work import Flops, Precision, Work
from tests.roofline_policies.records import CEILINGS, work


def test_roof_times_are_work_over_ceilings():
    roof = roof_time(work(flops=50, read=20), CEILINGS)
    assert (roof.compute_s, roof.memory_s, roof.bound_s) == (0.5, 2.0, 2.0)


def test_work_in_a_precision_without_a_ceiling_is_an_error_by_name():
    with pytest.raises(InputError, match="fp8"):
        roof_time(Work(issued=Flops.at(Precision.FP8, 1)), CEILINGS)


@pytest.mark.parametrize(
    ("compute", "memory", "bound"),
    [
        (0.6, 0.5, Bound.COMPUTE),
        (0.5, 0.6, Bound.MEMORY),
        (0.5, 0.5, Bound.MEMORY),
        (0.39, 0.1, Bound.OVERHEAD),
        (0.4, 0.1, Bound.COMPUTE),
    ],
)
def test_three_bounds(compute, memory, bound):
    assert classify(compute, memory) is bound


@given(st.floats(0.01, 1e6))
def test_the_roof_bends_at_the_ridge(intensity):
    roof = attainable_flops_per_s(intensity, CEILINGS, Precision.BF16)
    ridge = CEILINGS.ridge_flops_per_byte(Precision.BF16)
    assert ridge == 10.0
    assert roof == (100.0 if intensity >= ridge else intensity * 10.0)
