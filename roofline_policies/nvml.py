"""NVML: live clocks, power, memory and throttle reasons of one NVIDIA device."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from roofline_policies.errors import InputError
from roofline_policies.work import Provenance

logger = logging.getLogger(__name__)

REASONS: Mapping[int, str] = MappingProxyType(
    {
        0x001: "gpu_idle",
        0x002: "applications_clocks_setting",
        0x004: "sw_power_cap",
        0x008: "hw_slowdown",
        0x010: "sync_boost",
        0x020: "sw_thermal_slowdown",
        0x040: "hw_thermal_slowdown",
        0x080: "hw_power_brake_slowdown",
        0x100: "display_clock_setting",
    }
)
"""Bits of the clock event mask. Source: nvml.h, ``nvmlClocksEventReason*``."""

_NOT_SLOWED = frozenset({"gpu_idle", "applications_clocks_setting", "sync_boost", "display_clock_setting"})


@dataclass(frozen=True, slots=True)
class NvmlSample:
    """One reading. A figure that the device does not report is None.

    sm_clock_hz, max_sm_clock_hz: streaming-multiprocessor clock, now and at most, Hz.
    power_w: power of the board, watts.
    memory_used_bytes, memory_total_bytes: device memory; what the driver reserves counts as used.
    throttle_reasons: why the clock is where it is, names from REASONS; an unnamed bit reads ``0x...``.
    """

    name: str
    sm_clock_hz: float | None
    max_sm_clock_hz: float | None
    power_w: float | None
    memory_used_bytes: int | None
    memory_total_bytes: int | None
    throttle_reasons: tuple[str, ...]
    provenance: Provenance = Provenance.NVML

    @property
    def throttled(self) -> bool:
        """Power or heat holds the clock down (idleness and clocks somebody set do not count)."""
        return any(reason not in _NOT_SLOWED for reason in self.throttle_reasons)


class Nvml:
    """An open NVML handle of one device. Close it, or use it as a context manager."""

    def __init__(self, pynvml: Any, handle: Any) -> None:
        self._pynvml = pynvml
        self._handle = handle
        self._open = True
        self._warned = False

    def sample(self) -> NvmlSample | None:
        """A reading now, or None once NVML stops answering (the device is lost, or this handle is closed)."""
        nvml, handle = self._pynvml, self._handle
        if not self._open:
            return None
        try:
            name = nvml.nvmlDeviceGetName(handle)
            clock = self._supported(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM))
            top_clock = self._supported(lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM))
            power = self._supported(lambda: nvml.nvmlDeviceGetPowerUsage(handle))
            memory = self._supported(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
            # The older of its two names: every driver exports it.
            mask = self._supported(lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))
        except nvml.NVMLError as error:
            if not self._warned:
                logger.warning("NVML stopped answering: %s", error)
            self._warned = True
            return None
        return NvmlSample(
            name=name.decode() if isinstance(name, bytes) else str(name),
            sm_clock_hz=None if clock is None else clock * 1e6,  # MHz
            max_sm_clock_hz=None if top_clock is None else top_clock * 1e6,  # MHz
            power_w=None if power is None else power / 1e3,  # milliwatts
            memory_used_bytes=None if memory is None else int(memory.used),
            memory_total_bytes=None if memory is None else int(memory.total),
            throttle_reasons=reasons(mask or 0),
        )

    def close(self) -> None:
        """Releases NVML; a second call does nothing."""
        if self._open:
            self._open = False
            self._pynvml.nvmlShutdown()

    def __enter__(self) -> Nvml:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _supported(self, read: Callable[[], Any]) -> Any:
        """What ``read`` returns, or None where the device or its driver does not offer that reading."""
        try:
            return read()
        except self._pynvml.NVMLError as error:
            if error.value in (self._pynvml.NVML_ERROR_NOT_SUPPORTED, self._pynvml.NVML_ERROR_FUNCTION_NOT_FOUND):
                return None
            raise


def reasons(mask: int) -> tuple[str, ...]:
    """The names of the bits set in a clock event mask, lowest bit first."""
    bits = (1 << place for place in range(mask.bit_length()))
    return tuple(REASONS.get(bit, hex(bit)) for bit in bits if mask & bit)


def open_nvml(index: int | str = 0) -> Nvml | None:
    """NVML's view of one device, or None where there is no NVML (no driver, or a driver that does not answer).

    index: the device by NVML's own number, or by its UUID ("GPU-..."). NVML does not apply CUDA_VISIBLE_DEVICES, so
        where that is set CUDA's device 0 may be another one; the UUID is the same on both sides.

    Raises:
        InputError: there is an NVML, but no such device.
    """
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        if error.value not in (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED):
            logger.warning("there is an NVIDIA driver, but NVML does not start: %s", error)
        return None
    try:
        find = pynvml.nvmlDeviceGetHandleByUUID if isinstance(index, str) else pynvml.nvmlDeviceGetHandleByIndex
        return Nvml(pynvml, find(index))
    except pynvml.NVMLError as error:
        count = pynvml.nvmlDeviceGetCount()
        pynvml.nvmlShutdown()
        raise InputError(
            f"NVML does not open this device ({error})",
            where="NVML",
            key="index",
            value=index,
            allowed=f"0 to {count - 1}, or a UUID" if count else "nothing: NVML sees no device",
        ) from None
