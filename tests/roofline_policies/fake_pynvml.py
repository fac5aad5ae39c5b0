"""A stand-in for pynvml with one device, for tests on machines without a driver."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pynvml as real_pynvml

UUID = "GPU-0"


class FakeNvmlError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__(f"error {value}")
        self.value = value


class FakePynvml:
    """The part of pynvml that is used, with one device. ``fails`` maps a function's name to the error it raises."""

    NVMLError = FakeNvmlError
    NVML_CLOCK_SM = real_pynvml.NVML_CLOCK_SM
    NVML_ERROR_NOT_SUPPORTED = real_pynvml.NVML_ERROR_NOT_SUPPORTED
    NVML_ERROR_FUNCTION_NOT_FOUND = real_pynvml.NVML_ERROR_FUNCTION_NOT_FOUND
    NVML_ERROR_LIBRARY_NOT_FOUND = real_pynvml.NVML_ERROR_LIBRARY_NOT_FOUND
    NVML_ERROR_DRIVER_NOT_LOADED = real_pynvml.NVML_ERROR_DRIVER_NOT_LOADED

    def __init__(self, **fails: int) -> None:
        self.fails = fails
        self.open = 0
        self.answers: dict[str, Any] = {
            "nvmlDeviceGetCount": 1,
            "nvmlDeviceGetName": "NVIDIA H200",
            "nvmlDeviceGetClockInfo": 1500,
            "nvmlDeviceGetMaxClockInfo": 1980,
            "nvmlDeviceGetPowerUsage": 650_250,
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
            if name in ("nvmlDeviceGetHandleByIndex", "nvmlDeviceGetHandleByUUID"):
                if arguments[0] not in (0, UUID):
                    raise FakeNvmlError(real_pynvml.NVML_ERROR_INVALID_ARGUMENT)
                return "handle"
            assert self.open == 1
            return self.answers[name]

        return call
