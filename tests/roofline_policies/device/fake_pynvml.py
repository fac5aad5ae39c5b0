"""A stand-in for pynvml with one device, for tests on machines without a driver."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pynvml as real_pynvml

UUID = "GPU-0"

OF_A_SLICE = ("nvmlDeviceGetName", "nvmlDeviceGetMemoryInfo")
"""What NVML tells of a MIG slice itself."""


class FakeNvmlError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__(f"error {value}")
        self.value = value


class FakePynvml:
    """The part of pynvml that is used, with one device. ``fails`` maps a function's name to the error it raises;
    ``every`` is raised by all that ask a device. mig: the device is a slice, found by this UUID; clocks and power are
    those of the board it is on."""

    NVMLError = FakeNvmlError
    NVML_CLOCK_SM = real_pynvml.NVML_CLOCK_SM
    NVML_ERROR_NOT_SUPPORTED = real_pynvml.NVML_ERROR_NOT_SUPPORTED
    NVML_ERROR_FUNCTION_NOT_FOUND = real_pynvml.NVML_ERROR_FUNCTION_NOT_FOUND
    NVML_ERROR_LIBRARY_NOT_FOUND = real_pynvml.NVML_ERROR_LIBRARY_NOT_FOUND
    NVML_ERROR_DRIVER_NOT_LOADED = real_pynvml.NVML_ERROR_DRIVER_NOT_LOADED

    def __init__(self, mig: str | None = None, **fails: int) -> None:
        self.fails = fails
        self.every: int | None = None
        self.mig = mig
        self.open = 0
        self.answers: dict[str, Any] = {
            "nvmlDeviceGetCount": 1,
            "nvmlDeviceGetName": "NVIDIA H200",
            "nvmlDeviceGetClockInfo": 1500,
            "nvmlDeviceGetMaxClockInfo": 1980,
            "nvmlDeviceGetPowerUsage": 650_250,
            "nvmlDeviceGetEnforcedPowerLimit": 600_000,
            "nvmlDeviceGetPowerManagementDefaultLimit": 700_000,
            "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=87, memory=40),
            "nvmlSystemGetDriverVersion": "570.86.15",
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(used=2**30, total=143771 * 2**20),
            "nvmlDeviceGetCurrentClocksThrottleReasons": 0x4 | 0x20,
        }

    def __getattr__(self, name: str) -> Any:
        if not hasattr(real_pynvml, name):
            raise AttributeError(name)

        def call(*arguments: object) -> Any:
            if name in self.fails:
                raise FakeNvmlError(self.fails[name])
            if name in ("nvmlInit", "nvmlShutdown"):
                self.open += 1 if name == "nvmlInit" else -1
                return None
            assert self.open == 1
            if name in ("nvmlDeviceGetHandleByIndex", "nvmlDeviceGetHandleByUUID"):
                if arguments[0] not in (0, self.mig or UUID):
                    raise FakeNvmlError(real_pynvml.NVML_ERROR_NOT_FOUND)
                return "handle"
            if self.every is not None:
                raise FakeNvmlError(self.every)
            if name == "nvmlDeviceIsMigDeviceHandle":
                return int(self.mig is not None and arguments[0] == "handle")
            if name == "nvmlDeviceGetDeviceHandleFromMigDeviceHandle":
                return "board"
            if self.mig and arguments and (arguments[0] == "handle") is (name not in OF_A_SLICE):
                raise FakeNvmlError(real_pynvml.NVML_ERROR_NOT_SUPPORTED)
            answer = self.answers[name]
            if isinstance(answer, Exception):
                raise answer
            return answer

        return call
