"""A figure above its roof comes with what is wrong; a ceiling that is another's says whose."""

from dataclasses import replace

import pytest

from roofline_policies.device.hardware import Ceilings, from_catalogue
from roofline_policies.device.plausible import doubt
from roofline_policies.device.roofline import Bound, OperatingPoint
from roofline_policies.errors import InputError
from roofline_policies.work import Precision, Provenance
from tests.roofline_policies.records import CEILINGS

H200 = from_catalogue("h200")
CLOSED = frozenset({Provenance.CLOSED_FORM})


def point(compute, memory):
    return OperatingPoint(1.0, 1.0, compute, memory, 1.0, 1.0, Bound.COMPUTE)


@pytest.mark.parametrize("shares", [(0.0, 0.0), (1.0, 0.3), (0.2, 1.0 + 1e-9)])
def test_what_can_be_is_not_doubted(shares):
    assert doubt(point(*shares), H200, Precision.BF16, CLOSED, "device events") is None


def test_114_percent_of_a_ceiling_says_which_ceiling_count_and_time():
    said = doubt(point(1.14, 0.3), H200, Precision.BF16, CLOSED, "device events")
    assert said.startswith("114% of the compute ceiling of 989 TFLOP/s (bf16) cannot be: first suspect a ceiling that ")
    assert H200.source in said
    assert "at 1.83 GHz; to measure again: python -m roofline_policies.device.calibrate --force" in said
    assert said.endswith("else the count (closed_form) or the time (device events) is wrong")


def test_a_measured_ceiling_says_the_command_that_measures_this_device_and_no_other():
    measured = replace(
        H200, source="calibrated 2026-11-30 by python -m roofline_policies.device.calibrate --device cuda:1"
    )
    said = doubt(point(1.14, 0.3), measured, Precision.BF16, CLOSED, "device events")
    assert "calibrate --device cuda:1; at 1.83 GHz; to measure again: that command --force)" in said


def test_a_bandwidth_above_its_ceiling_and_a_clock_that_nobody_noted():
    said = doubt(point(1.5, 1.25), CEILINGS, Precision.FP32, CLOSED, "host clock")
    assert said.startswith("150% of the compute ceiling and 125% of the bandwidth ceiling of ")
    assert "at a clock that nobody noted" in said


def test_the_first_suspect_is_a_ceiling_of_another_device():
    borrowed = H200.of_device("NVIDIA A100-SXM4-80GB")
    said = doubt(point(1.2, 0.1), borrowed, Precision.BF16, CLOSED, "device events")
    assert "the ceilings of NVIDIA H200 stand in for those of NVIDIA A100-SXM4-80GB" in said
    estimated = doubt(point(1.2, 0.1), H200, Precision.BF16, {Provenance.ESTIMATED}, "device events")
    assert "first suspect the work is an estimate" in estimated


@pytest.mark.parametrize("name", ["NVIDIA H200", " nvidia h200"])
def test_a_device_of_its_own_name_has_its_own_ceilings(name):
    assert H200.of_device(name) is H200
    assert H200.of_device(name).stand_ins == ()


def test_a_precision_without_a_ceiling_takes_the_nearest_and_says_so():
    some = Ceilings("d", {Precision.FP32: 1e12, Precision.BF16: 2e12}, 1e9, 1, None, "made up")
    assert some.covering(Precision.BF16) is some
    half = some.covering(Precision.FP16)
    assert half.compute_ceiling(Precision.FP16) == 2e12
    assert half.stand_ins == ("the compute ceiling of bf16 stands in for fp16, which has none",)
    both = half.covering(Precision.INT8)
    assert both.compute_ceiling(Precision.INT8) == 2e12
    assert len(both.stand_ins) == 2
    only = Ceilings("d", {Precision.INT8: 1e12}, 1e9, 1, None, "made up")
    assert only.covering(Precision.FP32).compute_ceiling(Precision.FP32) == 1e12


def test_what_stands_in_survives_json_and_a_clock():
    borrowed = H200.of_device("another").scaled(0.5)
    assert Ceilings.from_dict(borrowed.to_dict()).stand_ins == borrowed.stand_ins != ()
    with pytest.raises(InputError, match="stand_ins"):
        Ceilings.from_dict({**H200.to_dict(), "stand_ins": "x"})
