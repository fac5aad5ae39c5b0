"""Device events on virtual time."""

from __future__ import annotations

from typing import Any

from sglang_patches.virtual.clock import VirtualClock


class VirtualEvent:
    """An event of a device that exists only as a line of time: recorded behind its work so far."""

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock
        self._reached_s = clock.now_s

    def record(self, stream: Any = None) -> None:
        self._reached_s = self._clock.device_free_s

    def query(self) -> bool:
        return self._reached_s <= self._clock.now_s

    def synchronize(self) -> None:
        self._clock.wait_until(self._reached_s)

    def wait(self, stream: Any = None) -> None:
        """A stream that waits costs the host nothing, and all device work is one line anyway."""


class VirtualDeviceModule:
    """torch's module of the stand-in device, but for its events."""

    def __init__(self, module: Any, clock: VirtualClock) -> None:
        self._module = module
        self._clock = clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def Event(self, *args: Any, **kwargs: Any) -> VirtualEvent:  # torch's own name
        return VirtualEvent(self._clock)


class VirtualInterval:
    """Time of one forward pass on the device's line, as the observer asks for it (see sglang_patches.observe.clocks).

    synchronous: the host waited for the pass, as on a CPU, where a step is done before the result of the one before it
    is looked at.
    """

    source = "virtual clock"

    def __init__(self, clock: VirtualClock, *, synchronous: bool = False) -> None:
        self._clock = clock
        self._synchronous = synchronous
        self._launched: tuple[float, float] | None = None

    def end(self) -> None:
        self._launched = self._clock.launched

    def seconds(self) -> float | None:
        """Of the forward pass; None until the device is done with it."""
        if self._launched is None or self._launched[0] > self._clock.now_s:
            return None
        return self._launched[1]

    def done_s(self, processed_s: float) -> float:
        """When its result was processed, which waits for the device; where the host had waited, when the pass ended."""
        return self._launched[0] if self._synchronous and self._launched is not None else processed_s
