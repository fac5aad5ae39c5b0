"""NVML against a stand-in for the driver."""

from __future__ import annotations

import sys
from dataclasses import fields, replace
from types import SimpleNamespace

import pynvml as real_pynvml
import pytest

from roofline_policies.device.nvml import REASONS, NvmlSample, open_nvml, reasons
from roofline_policies.work import Provenance
from tests.roofline_policies.device.fake_pynvml import UUID, FakePynvml


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
    assert (sample.power_limit_w, sample.default_power_limit_w) == (600.0, 700.0)
    assert sample.utilization == 0.87
    assert sample.busy
    assert sample.memory_used_bytes == 2**30
    assert sample.memory_total_bytes == 150754820096
    assert sample.throttle_reasons == ("sw_power_cap", "sw_thermal_slowdown")
    assert sample.throttled
    assert sample.provenance is Provenance.NVML


def test_closing_releases_nvml_once(fake: FakePynvml) -> None:
    nvml = open_nvml()
    assert nvml is not None
    with nvml:
        assert nvml.sample() is not None
        assert fake.open == 1
    nvml.close()
    assert fake.open == 0
    assert nvml.sample() is None


@pytest.mark.parametrize("error", ["NVML_ERROR_LIBRARY_NOT_FOUND", "NVML_ERROR_DRIVER_NOT_LOADED"])
def test_no_driver_means_no_nvml(fake: FakePynvml, error: str, caplog: pytest.LogCaptureFixture) -> None:
    fake.fails["nvmlInit"] = getattr(real_pynvml, error)
    assert open_nvml() is None
    assert not caplog.records


def test_without_pynvml_there_is_no_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert open_nvml() is None


@pytest.mark.parametrize(
    ("function", "error", "said"),
    [
        ("nvmlInit", "NVML_ERROR_LIB_RM_VERSION_MISMATCH", "NVML does not start"),
        ("nvmlInit", "NVML_ERROR_NO_PERMISSION", "NVML does not start"),
        ("nvmlDeviceGetHandleByUUID", "NVML_ERROR_NOT_FOUND", "NVML does not open device GPU-0"),
        ("nvmlDeviceGetHandleByUUID", "NVML_ERROR_NO_PERMISSION", "NVML does not open device GPU-0"),
        ("nvmlDeviceGetHandleByUUID", "NVML_ERROR_GPU_IS_LOST", "NVML does not open device GPU-0"),
        ("nvmlDeviceGetHandleByUUID", "NVML_ERROR_UNKNOWN", "NVML does not open device GPU-0"),
    ],
)
def test_a_device_that_nvml_does_not_open_is_said_once_and_found_when_it_does(
    fake: FakePynvml, function: str, error: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    fake.fails[function] = getattr(real_pynvml, error)
    with open_nvml(UUID) as nvml:
        assert [nvml.sample() for _ in range(200)] == [None] * 200
        assert nvml.driver is None
        assert fake.open == 0
        assert [said in record.getMessage() for record in caplog.records] == [True]
        del fake.fails[function]
        assert any(nvml.sample() for _ in range(60))
    assert fake.open == 0


def test_another_number_than_the_device_has_is_said(fake: FakePynvml, caplog: pytest.LogCaptureFixture) -> None:
    with open_nvml(3) as nvml:
        assert nvml.sample() is None
    assert "NVML does not open device 3 (error 6): its clocks" in caplog.text


def test_a_slice_is_found_by_its_uuid_and_has_its_own_memory_and_the_clock_of_its_board(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """CUDA gives the UUID without saying what it is of."""
    fake = FakePynvml(mig="MIG-abc")
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    fake.answers["nvmlDeviceGetName"] = "NVIDIA H200 MIG 1g.18gb"
    with open_nvml("GPU-abc") as nvml:
        sample = nvml.sample()
    assert sample == NvmlSample(
        "NVIDIA H200 MIG 1g.18gb", 1.5e9, 1.98e9, 650.25, 600.0, 700.0, 2**30, 143771 * 2**20, 0.87,
        ("sw_power_cap", "sw_thermal_slowdown"),
    )  # fmt: skip


def test_a_slice_whose_board_is_not_shown_still_has_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakePynvml(mig="MIG-abc")
    fake.fails["nvmlDeviceGetDeviceHandleFromMigDeviceHandle"] = real_pynvml.NVML_ERROR_NO_PERMISSION
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    with open_nvml("GPU-abc") as nvml:
        sample = nvml.sample()
    assert (sample.memory_used_bytes, sample.sm_clock_hz, sample.throttle_reasons) == (2**30, None, None)
    assert not sample.busy


FIGURES = {
    "nvmlDeviceGetName": ("name",),
    "nvmlDeviceGetClockInfo": ("sm_clock_hz",),
    "nvmlDeviceGetMaxClockInfo": ("max_sm_clock_hz",),
    "nvmlDeviceGetPowerUsage": ("power_w",),
    "nvmlDeviceGetEnforcedPowerLimit": ("power_limit_w",),
    "nvmlDeviceGetPowerManagementDefaultLimit": ("default_power_limit_w",),
    "nvmlDeviceGetMemoryInfo": ("memory_used_bytes", "memory_total_bytes"),
    "nvmlDeviceGetUtilizationRates": ("utilization",),
    "nvmlDeviceGetCurrentClocksThrottleReasons": ("throttle_reasons",),
}


def without(sample: NvmlSample, figures: tuple[str, ...]) -> NvmlSample:
    return replace(sample, **dict.fromkeys(figures))


@pytest.mark.parametrize("error", ["NO_PERMISSION", "NOT_SUPPORTED", "FUNCTION_NOT_FOUND", "UNKNOWN", "TIMEOUT"])
@pytest.mark.parametrize("function", FIGURES)
def test_a_figure_that_is_refused_is_none_and_the_others_are_there(
    fake: FakePynvml, function: str, error: str, caplog: pytest.LogCaptureFixture
) -> None:
    with open_nvml() as nvml:
        whole = nvml.sample()
        fake.fails[function] = getattr(real_pynvml, f"NVML_ERROR_{error}")
        assert [nvml.sample() for _ in range(3)] == [without(whole, FIGURES[function])] * 3
        quiet = error in ("NOT_SUPPORTED", "FUNCTION_NOT_FOUND")
        assert len(caplog.records) == (0 if quiet else 1)
        del fake.fails[function]
        assert nvml.sample() == whole


LARGEST = (2**32 - 1, 2**64 - 1, -1, -(2**31), None, "n/a", 1.5e300, True)


@pytest.mark.parametrize(
    ("function", "answer", "gone"),
    [
        *(("nvmlDeviceGetClockInfo", answer, None) for answer in (0, 5000, *LARGEST)),
        *(("nvmlDeviceGetMaxClockInfo", answer, None) for answer in (0, *LARGEST)),
        *(("nvmlDeviceGetPowerUsage", answer, None) for answer in (0, *LARGEST)),
        *(("nvmlDeviceGetEnforcedPowerLimit", answer, None) for answer in (0, *LARGEST)),
        *(
            ("nvmlDeviceGetUtilizationRates", SimpleNamespace(gpu=answer, memory=0), None)
            for answer in (101, 255, *LARGEST)
        ),
        ("nvmlDeviceGetUtilizationRates", None, None),
        *(("nvmlDeviceGetCurrentClocksThrottleReasons", answer, None) for answer in LARGEST),
        ("nvmlDeviceGetCurrentClocksThrottleReasons", 1 << 63, None),
        ("nvmlDeviceGetMemoryInfo", None, None),
        ("nvmlDeviceGetMemoryInfo", SimpleNamespace(used=0, total=0), ("memory_total_bytes",)),
        ("nvmlDeviceGetMemoryInfo", SimpleNamespace(used=-1, total=2**37), ("memory_used_bytes",)),
        ("nvmlDeviceGetMemoryInfo", SimpleNamespace(used=2**64 - 1, total=2**64 - 1), None),
        ("nvmlDeviceGetMemoryInfo", SimpleNamespace(used=2**38, total=2**37), ("memory_used_bytes",)),
        ("nvmlDeviceGetName", 7, None),
        ("nvmlDeviceGetName", UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no text"), None),
        ("nvmlDeviceGetClockInfo", AttributeError("no such symbol"), None),
    ],
    ids=str,
)
def test_an_answer_that_cannot_be_true_is_none(
    fake: FakePynvml, function: str, answer: object, gone: tuple[str, ...] | None
) -> None:
    with open_nvml() as nvml:
        whole = nvml.sample()
        fake.answers[function] = answer
        sample = nvml.sample()
    for figure in gone or FIGURES[function]:
        assert getattr(sample, figure) is None
    kept = set(vars_of(whole)) - set(FIGURES[function])
    assert {figure: getattr(sample, figure) for figure in kept} == {figure: getattr(whole, figure) for figure in kept}


def vars_of(sample: NvmlSample) -> list[str]:
    return [item.name for item in fields(sample)]


@pytest.mark.parametrize("error", ["GPU_IS_LOST", "UNINITIALIZED", "NO_PERMISSION", "RESET_REQUIRED", "NOT_SUPPORTED"])
def test_a_device_that_refuses_everything_gives_no_sample_and_is_found_again(
    fake: FakePynvml, error: str, caplog: pytest.LogCaptureFixture
) -> None:
    with open_nvml() as nvml:
        whole = nvml.sample()
        fake.every = getattr(real_pynvml, f"NVML_ERROR_{error}")
        assert [nvml.sample() for _ in range(100)] == [None] * 100
        assert ["NVML tells nothing" in record.getMessage() for record in caplog.records] == [True]
        fake.every = None
        assert [sample for sample in (nvml.sample() for _ in range(60)) if sample] != []
        assert nvml.sample() == whole


def test_the_driver_tells_its_version(fake: FakePynvml) -> None:
    with open_nvml() as nvml:
        assert nvml.driver == "570.86.15"
        fake.answers["nvmlSystemGetDriverVersion"] = b"550.54"
        assert nvml.driver == "550.54"
        fake.fails["nvmlSystemGetDriverVersion"] = real_pynvml.NVML_ERROR_UNKNOWN
        assert nvml.driver is None


@pytest.mark.parametrize(
    ("mask", "utilization", "busy"),
    [
        (0x0, 0.5, True), (0x4, 1.0, True), (0x2, 0.6, True), (0x1, 0.9, False), (0x1, 0.0, False), (0x0, 0.0, False),
        (0x4, 0.0, False), (None, 0.5, True), (None, 0.0, False), (0x4, None, True), (0x1, None, False),
        (0x3, None, False), (None, None, False),
        # A kernel now and then leaves the clock idle.
        (0x0, 0.01, False), (0x2, 0.01, False), (0x4, 0.03, False), (0x0, 0.49, False), (None, 0.01, False),
        (0x0, None, False),  # nothing lowers the clock
    ],
)  # fmt: skip
def test_busy_needs_work_for_half_of_the_time_and_no_sign_of_idleness(
    mask: int | None, utilization: float | None, busy: bool
) -> None:
    known = None if mask is None else reasons(mask)
    assert NvmlSample(utilization=utilization, throttle_reasons=known).busy is busy


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
        named = "".join(part.capitalize() for part in name.split("_"))
        of_event = getattr(real_pynvml, f"nvmlClocksEventReason{named}", None)
        assert (of_event or getattr(real_pynvml, f"nvmlClocksThrottleReason{named}")) == bit
    assert reasons(0) == ()
    assert reasons(0x8 | 0x4000) == ("hw_slowdown", "0x4000")
