"""NVML against a stand-in for the driver."""

from __future__ import annotations

import logging
import sys

import pynvml as real_pynvml
import pytest
from fake_pynvml import UUID, FakePynvml

from roofline_policies.errors import InputError
from roofline_policies.nvml import REASONS, open_nvml, reasons
from roofline_policies.work import Provenance


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakePynvml:
    made = FakePynvml()
    monkeypatch.setitem(sys.modules, "pynvml", made)
    return made


@pytest.mark.parametrize("index", [0, UUID])
def test_a_sample_is_in_si_units(fake: FakePynvml, index: int | str) -> None:
    nvml = open_nvml(index)
    assert nvml is not None
    with nvml:
        sample = nvml.sample()
    assert sample is not None
    assert sample.name == "NVIDIA H200"
    assert sample.sm_clock_hz == 1.5e9
    assert sample.max_sm_clock_hz == 1.98e9
    assert sample.power_w == 650.25
    assert sample.memory_used_bytes == 2**30
    assert sample.memory_total_bytes == 150754820096
    assert sample.throttle_reasons == ("sw_power_cap", "sw_thermal_slowdown")
    assert sample.throttled
    assert sample.provenance is Provenance.NVML


def test_closing_releases_nvml_once(fake: FakePynvml) -> None:
    nvml = open_nvml()
    assert nvml is not None
    with nvml:
        assert fake.open == 1
    nvml.close()
    assert fake.open == 0
    assert nvml.sample() is None


@pytest.mark.parametrize("error", ["NVML_ERROR_LIBRARY_NOT_FOUND", "NVML_ERROR_DRIVER_NOT_LOADED"])
def test_no_driver_means_no_nvml(fake: FakePynvml, error: str, caplog: pytest.LogCaptureFixture) -> None:
    fake.fails["nvmlInit"] = getattr(real_pynvml, error)
    assert open_nvml() is None
    assert not caplog.records


def test_a_broken_driver_means_no_nvml_and_says_so(fake: FakePynvml, caplog: pytest.LogCaptureFixture) -> None:
    fake.fails["nvmlInit"] = real_pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH
    with caplog.at_level(logging.WARNING):
        assert open_nvml() is None
    assert "NVML does not start" in caplog.text


def test_without_pynvml_there_is_no_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert open_nvml() is None


def test_a_device_that_is_not_there_is_named(fake: FakePynvml) -> None:
    with pytest.raises(InputError, match=r"^NVML: index = 3: .*; allowed: 0 to 0, or a UUID$"):
        open_nvml(3)
    assert fake.open == 0


def test_what_a_device_does_not_report_is_none(fake: FakePynvml) -> None:
    fake.fails["nvmlDeviceGetPowerUsage"] = real_pynvml.NVML_ERROR_NOT_SUPPORTED
    fake.fails["nvmlDeviceGetMemoryInfo"] = real_pynvml.NVML_ERROR_NOT_SUPPORTED
    fake.fails["nvmlDeviceGetCurrentClocksThrottleReasons"] = real_pynvml.NVML_ERROR_FUNCTION_NOT_FOUND
    nvml = open_nvml()
    assert nvml is not None
    sample = nvml.sample()
    assert sample is not None
    assert (sample.power_w, sample.memory_used_bytes, sample.memory_total_bytes) == (None, None, None)
    assert sample.throttle_reasons == ()
    assert sample.sm_clock_hz == 1.5e9


def test_a_lost_device_gives_no_sample_and_one_warning(fake: FakePynvml, caplog: pytest.LogCaptureFixture) -> None:
    nvml = open_nvml()
    assert nvml is not None
    fake.fails["nvmlDeviceGetClockInfo"] = real_pynvml.NVML_ERROR_GPU_IS_LOST
    assert nvml.sample() is None
    assert nvml.sample() is None
    assert len(caplog.records) == 1


def test_an_idle_device_is_not_throttled(fake: FakePynvml) -> None:
    fake.answers["nvmlDeviceGetCurrentClocksThrottleReasons"] = 0x1
    fake.answers["nvmlDeviceGetName"] = b"NVIDIA H200"
    nvml = open_nvml()
    assert nvml is not None
    sample = nvml.sample()
    assert sample is not None
    assert sample.name == "NVIDIA H200"
    assert sample.throttle_reasons == ("gpu_idle",)
    assert not sample.throttled


def test_the_bits_are_those_of_nvml() -> None:
    for bit, name in REASONS.items():
        constant = "nvmlClocksEventReason" + "".join(part.capitalize() for part in name.split("_"))
        assert getattr(real_pynvml, constant) == bit
    assert reasons(0) == ()
    assert reasons(0x8 | 0x4000) == ("hw_slowdown", "0x4000")
