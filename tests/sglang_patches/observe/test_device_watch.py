"""The device is sampled beside the scheduler. FakePynvml stands in for the driver."""

import logging
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pynvml as real_pynvml
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roofline_policies.device.hardware import catalogue, from_catalogue
from roofline_policies.device.nvml import REASONS
from roofline_policies.work import Precision
from sglang_patches.observe import device_watch as device_module
from sglang_patches.observe.device_watch import DeviceWatch
from tests.roofline_policies.device.fake_pynvml import FakePynvml

IDLE, POWER_CAP, SET_CLOCKS = 0x1, 0x4, 0x2


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


def watched(monkeypatch, *, clock=1500, mask=0, percent=90, device="h200", kept_clock_hz=None):
    """The device's ceilings as a watch scales them where NVML answers so; ``kept_clock_hz``: of a calibration."""
    fake = FakePynvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    fake.answers["nvmlDeviceGetClockInfo"] = clock
    fake.answers["nvmlDeviceGetMaxClockInfo"] = 2100
    fake.answers["nvmlDeviceGetCurrentClocksThrottleReasons"] = mask
    fake.answers["nvmlDeviceGetUtilizationRates"] = SimpleNamespace(gpu=percent)
    ceilings = from_catalogue(device)
    if kept_clock_hz is not None:
        ceilings = replace(ceilings, source="calibrated", clock_hz=kept_clock_hz)
    watch = DeviceWatch(0)
    watch.stop()
    return ceilings, watch.scale(ceilings)


@pytest.mark.parametrize(
    ("mask", "percent"),
    [
        *((IDLE, 0), (IDLE, 3), (IDLE | SET_CLOCKS, 0), (0, 0), (IDLE, None), (None, 0), (None, None), (0, None)),
        *((0, 1), (0, 49), (SET_CLOCKS, 1), (POWER_CAP, 2), (None, 1)),  # now and then a kernel
    ],
)
def test_an_idle_clock_is_no_ceiling(monkeypatch, mask, percent):
    before, after = watched(monkeypatch, clock=210, mask=mask, percent=percent, device="l4")
    assert after is before
    assert round(after.compute_ceiling(Precision.BF16) / 1e12) == 121


@pytest.mark.parametrize("mask", [POWER_CAP, SET_CLOCKS, 0x20, 0x40, 0x80, 0, None])
def test_a_clock_under_work_is_a_ceiling_whatever_holds_it_down(monkeypatch, mask):
    _, after = watched(monkeypatch, clock=1020, mask=mask, device="l4")
    assert after.compute_ceiling(Precision.BF16) / 1e12 == pytest.approx(121 / 2, rel=0.01)


def test_a_measured_ceiling_follows_the_clock_that_it_was_measured_at(monkeypatch):
    """A card capped to 600 W by now, measured at 1.7 GHz, runs at 1.275 GHz under the same work."""
    before, after = watched(monkeypatch, clock=1275, mask=POWER_CAP, kept_clock_hz=1.7e9)
    assert after.compute_ceiling(Precision.BF16) == pytest.approx(0.75 * before.compute_ceiling(Precision.BF16))
    assert after.clock_hz == pytest.approx(1.275e9)
    assert watched(monkeypatch, clock=1275, mask=IDLE, kept_clock_hz=1.7e9)[1].clock_hz == 1.7e9


@settings(deadline=None)
@given(
    name=st.sampled_from(sorted(catalogue())), kept_clock_hz=st.none() | st.floats(0.5e9, 3e9),
    clock=st.integers(-1, 2**32), mask=st.none() | st.integers(-1, 2**64), percent=st.none() | st.integers(-1, 300),
)  # fmt: skip
def test_scaled_ceilings_are_the_clock_under_work_over_their_own_and_else_as_they_were(
    name, kept_clock_hz, clock, mask, percent
):
    with pytest.MonkeyPatch.context() as monkeypatch:
        before, after = watched(
            monkeypatch, clock=clock, mask=mask, percent=percent, device=name, kept_clock_hz=kept_clock_hz
        )
    assert (after.bytes_per_s, after.memory_bytes) == (before.bytes_per_s, before.memory_bytes)
    known_mask = mask is not None and 0 <= mask < 2**63 and mask & sum(REASONS) != sum(REASONS)
    known_percent = percent is not None and 0 <= percent <= 100
    works = percent >= 50 if known_percent else known_mask and mask != 0
    if not 0 < clock <= 1.25 * 2100 or not works or (known_mask and mask & IDLE):
        assert after is before
        return
    for precision, rate in before.flops_per_s.items():
        assert after.flops_per_s[precision] == pytest.approx(rate * clock * 1e6 / before.clock_hz)


@pytest.mark.parametrize("error", ["NOT_FOUND", "NO_PERMISSION", "GPU_IS_LOST"])
def test_a_device_that_nvml_does_not_open_does_not_end_anything_and_is_watched_when_it_does(fake, error, caplog):
    fake.fails["nvmlDeviceGetHandleByUUID"] = getattr(real_pynvml, f"NVML_ERROR_{error}")
    with caplog.at_level(logging.WARNING):
        watch = DeviceWatch("GPU-0", every_s=0.002)
        ceilings = from_catalogue("h200")
        assert watch.scale(ceilings) is ceilings
        assert watch.to_dict() is None
        time.sleep(0.1)
    assert len(caplog.records) == 1
    del fake.fails["nvmlDeviceGetHandleByUUID"]
    wait_for(lambda: watch.latest is not None)
    watch.stop()


def test_a_device_that_goes_silent_is_not_shown_as_it_was(fake):
    watch = DeviceWatch(0, every_s=0.002)
    assert watch.to_dict()["power_w"] == 650.25
    assert 0 <= watch.to_dict()["age_s"] < device_module.STALE_S
    fake.every = real_pynvml.NVML_ERROR_GPU_IS_LOST
    wait_for(lambda: watch.latest is None)
    fake.every = None
    wait_for(lambda: watch.latest is not None)
    watch.stop()


def test_a_sample_says_how_old_it_is_and_an_old_one_is_none(fake, monkeypatch):
    """As when NVML hangs: its thread does not come back."""
    clock = SimpleNamespace(now_s=100.0)
    monkeypatch.setattr(device_module, "time", SimpleNamespace(monotonic=lambda: clock.now_s))
    watch = DeviceWatch(0, every_s=3600.0)
    clock.now_s += 3.0
    assert watch.to_dict()["age_s"] == 3.0
    clock.now_s += 3.0
    assert (watch.latest, watch.to_dict()) == (None, None)
    assert watch.scale(from_catalogue("h200")).clock_hz == 1.83e9
    watch.stop()


def wait_for(true):
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)
