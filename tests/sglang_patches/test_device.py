"""The device is sampled beside the scheduler. FakePynvml stands in for the driver."""

import sys
import time

import pytest
from fake_pynvml import FakePynvml

from roofline_policies.hardware import from_catalogue
from roofline_policies.work import Precision
from sglang_patches.device import DeviceWatch


@pytest.fixture
def fake(monkeypatch):
    made = FakePynvml()
    monkeypatch.setitem(sys.modules, "pynvml", made)
    return made


def test_without_a_driver_nothing_is_sampled_and_ceilings_stay():
    watch = DeviceWatch(0)
    assert watch.latest is None
    ceilings = from_catalogue("h200")
    assert watch.scale(ceilings) is ceilings


def test_a_lower_clock_lowers_the_compute_ceiling_and_not_the_bandwidth(fake):
    fake.answers["nvmlDeviceGetClockInfo"] = 915  # MHz, half of the clock that the catalogue's peak holds at
    watch = DeviceWatch(0)
    watch.stop()
    scaled = watch.scale(from_catalogue("h200"))
    assert scaled.compute_ceiling(Precision.BF16) == pytest.approx(989e12 / 2)
    assert scaled.bytes_per_s == 4.8e12


def test_samples_follow_the_device(fake):
    watch = DeviceWatch(0, every_s=0.005)
    assert watch.latest.sm_clock_hz == 1.5e9
    fake.answers["nvmlDeviceGetClockInfo"] = 1200
    deadline = time.monotonic() + 30
    while watch.latest.sm_clock_hz != 1.2e9:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    watch.stop()
