"""How the time of a forward pass is measured: by the host's clock, or by events on the device."""

from __future__ import annotations

import time
from typing import Protocol

import torch


class Interval(Protocol):
    """The time of one forward pass: begins when it is made, may be known some time after its end.

    source: by what it is measured, as records show it.
    """

    source: str

    def end(self) -> None:
        """Note that the forward pass was launched to its end."""

    def seconds(self) -> float | None:
        """What the forward pass took, None while that is not known. Never waits."""

    def done_s(self, processed_s: float) -> float:
        """The time at which the step was done, for one whose result was processed at ``processed_s``."""
        ...


class HostInterval:
    """Time by the host's clock, for devices on which the forward pass is synchronous (CPU)."""

    source = "host clock"

    def __init__(self) -> None:
        self._start_s = time.monotonic()
        self._end_s: float | None = None

    def end(self) -> None:
        self._end_s = time.monotonic()

    def seconds(self) -> float | None:
        return None if self._end_s is None else self._end_s - self._start_s

    def done_s(self, processed_s: float) -> float:
        """When the step was done: at the end of its forward pass. Under the overlap schedule a synchronous device runs
        the whole next step before this one's result is processed."""
        return processed_s if self._end_s is None else self._end_s


class DeviceInterval:
    """Time between two events recorded on the current stream; they are polled, never waited for."""

    source = "device events"

    def __init__(self) -> None:
        module = torch.get_device_module()
        self._start, self._end = module.Event(enable_timing=True), module.Event(enable_timing=True)
        self._ended = False
        self._start.record()

    def end(self) -> None:
        self._end.record()
        self._ended = True

    def seconds(self) -> float | None:
        if not (self._ended and self._end.query()):
            return None
        milliseconds: float = self._start.elapsed_time(self._end)
        return milliseconds / 1e3

    def done_s(self, processed_s: float) -> float:
        """When the step was done: when its result was processed, which waits for the device."""
        return processed_s
