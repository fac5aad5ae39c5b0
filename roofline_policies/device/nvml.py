"""NVML: live clocks, power, memory and throttle reasons of one NVIDIA device.

A figure that NVML refuses, or that cannot be true, is None; the others are there all the same. A device that is not
found, or lost, is looked for again. Nothing here raises because of NVML, and each fault is logged once.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any

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
        0x200: "board_limit",
        0x400: "reliability",
    }
)
"""Bits of the clock event mask.

Source: nvml.h, ``nvmlClocksEventReason*``; of the last two, NVIDIA's pynvml, ``nvmlClocksThrottleReason*``."""

_NOT_SLOWED = frozenset({"gpu_idle", "applications_clocks_setting", "sync_boost", "display_clock_setting"})

MOST_MHZ, MOST_MILLIWATTS, MOST_BYTES = 10_000, 10_000_000, 1 << 50
"""No clock, board or memory comes near these. Beyond them (NVML's largest integers, say) is no reading."""

ABOVE_TOP = 1.25
"""A clock so many times above the highest one that the device reports is no reading either."""

AT_WORK = 0.5
"""Utilization from which the clock is that of work. Utilization is a share of the last sample period, the clock that of
one moment. Below half, that moment more likely fell into a pause, and a device that pauses lowers its clock (an L4 to
210 of 2,040 MHz). A judgement. Lower: at 1%, a kernel now and then makes an idle clock a ceiling. Higher: at 90%, a
server whose device waits for the host between steps is never scaled.

Source: nvml.h, ``nvmlUtilization_t``: the share of the period in which a kernel ran; the period lasts 1/6 s to 1 s.
"""

PAUSES = 60
"""Most samples between two looks for a device that was not found; each further look waits twice as long."""


@dataclass(frozen=True, slots=True)
class NvmlSample:
    """One reading. A figure that the device does not report, or not now, is None.

    name: the product. sm_clock_hz, max_sm_clock_hz: streaming-multiprocessor clock, now and at most, Hz.
    power_w: power of the board, watts. power_limit_w, default_power_limit_w: the limit in force and the board's own.
    memory_used_bytes, memory_total_bytes: device memory; what the driver reserves counts as used.
    utilization: share of the last sample period (up to a second) in which a kernel ran, of any process.
    throttle_reasons: why the clock is where it is, names from REASONS; an unnamed bit reads ``0x...``.
    """

    name: str | None = None
    sm_clock_hz: float | None = None
    max_sm_clock_hz: float | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    default_power_limit_w: float | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    utilization: float | None = None
    throttle_reasons: tuple[str, ...] | None = None
    provenance: Provenance = Provenance.NVML

    @property
    def throttled(self) -> bool:
        """Power or heat holds the clock down (idleness and clocks somebody set do not count)."""
        return any(reason not in _NOT_SLOWED for reason in self.throttle_reasons or ())

    @property
    def busy(self) -> bool:
        """Whether the clock is that of a device at work: it is not said to be idle, and a kernel ran for AT_WORK of the
        time. Where no utilization is told, something has to hold the clock down: without a reason it is as high as
        the device goes, or idle.

        Source: nvml.h, ``nvmlClocksEventReason*``: the clocks drop because nothing runs (GpuIdle); nothing lowers them
            (None).
        """
        if self.throttle_reasons is not None and "gpu_idle" in self.throttle_reasons:
            return False
        if self.utilization is not None:
            return self.utilization >= AT_WORK
        return bool(self.throttle_reasons)

    @property
    def known(self) -> bool:
        """Whether anything but the name was read."""
        figures = (getattr(self, item.name) for item in fields(self) if item.name not in ("name", "provenance"))
        return any(figure is not None for figure in figures)


class Nvml:
    """NVML's view of one device. Close it, or use it as a context manager."""

    def __init__(self, pynvml: Any, index: int | str) -> None:
        self._pynvml = pynvml
        self._index = index
        self._device: Any = None
        self._board: Any = None
        self._started = self._closed = False
        self._wait, self._pause = 0, 1
        self._said: set[str] = set()
        self._refused: dict[str, str] = {}

    def sample(self) -> NvmlSample | None:
        """A reading now, or None while NVML gives none (no such device, a lost one, or this handle is closed)."""
        if self._closed or not self._found():
            return None
        nvml, device, board = self._pynvml, self._device, self._board
        name = self._read("the name", "nvmlDeviceGetName", device)
        memory = self._read("memory", "nvmlDeviceGetMemoryInfo", device)
        total = _within(getattr(memory, "total", None), 1, MOST_BYTES)
        used = _within(getattr(memory, "used", None), 0, MOST_BYTES if total is None else total)
        clock = _within(self._read("the clock", "nvmlDeviceGetClockInfo", board, nvml.NVML_CLOCK_SM), 1, MOST_MHZ)
        top = self._read("the highest clock", "nvmlDeviceGetMaxClockInfo", board, nvml.NVML_CLOCK_SM)
        top = _within(top, 1, MOST_MHZ)
        if clock is not None and top is not None and clock > ABOVE_TOP * top:
            clock = None
        power = _within(self._read("power", "nvmlDeviceGetPowerUsage", board), 1, MOST_MILLIWATTS)
        limit = self._read("the power limit", "nvmlDeviceGetEnforcedPowerLimit", board)
        own_limit = self._read("the default power limit", "nvmlDeviceGetPowerManagementDefaultLimit", board)
        limit, own_limit = _within(limit, 1, MOST_MILLIWATTS), _within(own_limit, 1, MOST_MILLIWATTS)
        rates = self._read("utilization", "nvmlDeviceGetUtilizationRates", board)
        percent = _within(getattr(rates, "gpu", None), 0, 100)
        # The older of its two names: every driver exports it.
        mask = self._read("throttle reasons", "nvmlDeviceGetCurrentClocksThrottleReasons", board)
        sample = NvmlSample(
            name=name.decode(errors="replace") if isinstance(name, bytes) else name if isinstance(name, str) else None,
            sm_clock_hz=None if clock is None else clock * 1e6,  # MHz
            max_sm_clock_hz=None if top is None else top * 1e6,  # MHz
            power_w=None if power is None else power / 1e3,  # milliwatts
            power_limit_w=None if limit is None else limit / 1e3,
            default_power_limit_w=None if own_limit is None else own_limit / 1e3,
            memory_used_bytes=used,
            memory_total_bytes=total,
            utilization=None if percent is None else percent / 100,
            throttle_reasons=None if not _is_mask(mask) else reasons(mask),
        )
        refused, self._refused = self._refused, {}
        if sample.known:
            self._pause = 1
            for what, error in refused.items():
                self._say(what, f"NVML does not tell {what}: {error}")
            return sample
        why = next(iter(refused.values()), "nothing it answers is a reading")
        self._say("everything", f"NVML tells nothing of this device ({why}); it is asked again now and then")
        self._lose()
        return None

    @property
    def driver(self) -> str | None:
        """The driver's version, None where it does not tell."""
        if self._closed or not self._found():
            return None
        version = self._read("the driver's version", "nvmlSystemGetDriverVersion")
        return version.decode(errors="replace") if isinstance(version, bytes) else version

    def close(self) -> None:
        """Releases NVML; a second call does nothing."""
        self._closed = True
        self._stop()

    def __enter__(self) -> Nvml:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _found(self) -> bool:
        """Whether the device is open; where it is not, look for it, less and less often."""
        if self._device is not None:
            return True
        if self._wait:
            self._wait -= 1
            return False
        fault = "cannot be opened"
        if not self._started:
            try:
                self._pynvml.nvmlInit()
                self._started = True
            except _faults(self._pynvml) as error:
                fault = f"does not start: {error}"
        if self._started:
            for index in _names(self._index):
                kind = "UUID" if isinstance(index, str) else "Index"
                try:
                    self._device = getattr(self._pynvml, f"nvmlDeviceGetHandleBy{kind}")(index)
                except _faults(self._pynvml) as error:
                    fault = f"does not open device {self._index} ({error})"
                    continue
                self._board = self._board_of(self._device)
                return True
        self._say("device", f"NVML {fault}: its clocks, power and memory are not known. It is looked for now and then")
        self._lose()
        return False

    def _board_of(self, device: Any) -> Any:
        """The whole device that a MIG slice is part of: clocks and power are the board's."""
        try:
            if self._pynvml.nvmlDeviceIsMigDeviceHandle(device):
                return self._pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(device)
        except _faults(self._pynvml):
            pass  # a driver older than MIG, or one that does not let this process see the whole device
        return device

    def _lose(self) -> None:
        """Forget the device, and wait before the next look."""
        self._stop()
        self._wait, self._pause = self._pause - 1, min(2 * self._pause, PAUSES)

    def _stop(self) -> None:
        self._device = self._board = None
        if self._started:
            self._started = False
            try:
                self._pynvml.nvmlShutdown()
            except _faults(self._pynvml):
                pass  # there is nothing left to release

    def _read(self, what: str, function: str, *arguments: Any) -> Any:
        """What one function answers, None where it does not."""
        try:
            return getattr(self._pynvml, function)(*arguments)
        except _faults(self._pynvml) as error:
            absent = (self._pynvml.NVML_ERROR_NOT_SUPPORTED, self._pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
            if getattr(error, "value", None) not in absent:
                self._refused[what] = str(error)
            return None

    def _say(self, what: str, message: str) -> None:
        if what not in self._said:
            self._said.add(what)
            logger.warning(message)


def reasons(mask: int) -> tuple[str, ...]:
    """The names of the bits set in a clock event mask, lowest bit first."""
    bits = (1 << place for place in range(mask.bit_length()))
    return tuple(REASONS.get(bit, hex(bit)) for bit in bits if mask & bit)


def open_nvml(index: int | str = 0) -> Nvml | None:
    """NVML's view of one device, or None where there is no NVML (no package, no library, no driver).

    index: the device by NVML's own number, or by its UUID ("GPU-...", "MIG-..."). NVML does not apply
        CUDA_VISIBLE_DEVICES, so where that is set CUDA's device 0 may be another one; the UUID is the same for both.

    A device that NVML does not open is logged once and looked for again: until then ``sample`` gives None.
    """
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except _faults(pynvml) as error:
        if getattr(error, "value", None) in (
            pynvml.NVML_ERROR_LIBRARY_NOT_FOUND,
            pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
        ):
            return None
    else:
        pynvml.nvmlShutdown()
    return Nvml(pynvml, index)


def _faults(pynvml: Any) -> tuple[type[Exception], ...]:
    """What a call may raise: NVML's own errors, and what ctypes and decoding make of an answer that is none."""
    return (pynvml.NVMLError, OSError, ValueError, TypeError, AttributeError)


def _names(index: int | str) -> tuple[int | str, ...]:
    """A device under the names that NVML may have for it: CUDA does not say whether a UUID is of a MIG slice."""
    if isinstance(index, int):
        return (index,)
    bare = index.removeprefix("GPU-").removeprefix("MIG-")
    return tuple(dict.fromkeys((index, f"GPU-{bare}", f"MIG-{bare}")))


def _within(value: Any, low: int, high: int) -> int | None:
    """A whole number from ``low`` to ``high``, None for anything else."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    return int(value) if whole and low <= value <= high else None


def _is_mask(mask: Any) -> bool:
    """Whether it can be a clock event mask: no device is idle and slowed down in every way there is."""
    everything = sum(REASONS)
    return _within(mask, 0, (1 << 63) - 1) is not None and mask & everything != everything
