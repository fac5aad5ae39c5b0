"""Virtual time: one line for the host, one for the device, and a module ``time`` that shows the host's.

Overlap needs no loop of its own with two lines: a launch queues behind what the device still has to do, and
waiting for an event moves the host to the moment the device reached it. Host time then hides behind the device exactly
while it is the shorter of both, as in life.
"""

from __future__ import annotations

import sys
import threading
import time as real_time
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import ModuleType
from typing import Any

EPOCH_S = 1000.0
"""Where virtual time starts, seconds. Any number above 0 would do; SGLang reads a time of 0 as "not set"."""

_SECONDS = ("time", "monotonic", "perf_counter")


class VirtualClock:
    """Two lines of seconds: ``now_s`` of the host, ``device_free_s`` at which the device has done all its work.

    launched: when the device will be done with what was queued last, and for how many seconds it works on it.
    """

    def __init__(self, start_s: float = EPOCH_S) -> None:
        self.now_s = start_s
        self.device_free_s = start_s
        self.launched = (start_s, 0.0)

    def spend(self, seconds: float) -> None:
        """Let ``seconds`` pass on the host."""
        self.now_s += seconds

    def launch(self, seconds: float) -> float:
        """Queue ``seconds`` of device work behind what the device has to do; returns when it will be done."""
        self.device_free_s = max(self.now_s, self.device_free_s) + seconds
        self.launched = (self.device_free_s, seconds)
        return self.device_free_s

    def wait_until(self, moment_s: float) -> None:
        """The host waits for a moment; nothing happens if it has passed."""
        self.now_s = max(self.now_s, moment_s)


class VirtualTime(ModuleType):
    """Stands where the module ``time`` stood: its clocks are virtual, ``sleep`` moves the host's line, the rest is not.

    Only the thread that made it can move the line; a background thread that sleeps does so for real.
    """

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__("time", "The module time on a virtual clock.")
        self._clock = clock
        self._owner = threading.get_ident()

    def __getattr__(self, name: str) -> Any:
        return getattr(real_time, name)

    def time(self) -> float:
        return self._clock.now_s

    def time_ns(self) -> int:
        return round(self._clock.now_s * 1e9)

    monotonic = perf_counter = time
    monotonic_ns = perf_counter_ns = time_ns

    def sleep(self, seconds: float) -> None:
        if threading.get_ident() == self._owner:
            self._clock.spend(seconds)
        else:
            real_time.sleep(seconds)


def replace_clocks(virtual: VirtualTime, packages: tuple[str, ...]) -> int:
    """Give every loaded module of ``packages`` the virtual clock, however it bound the real one; how many names moved.

    A module may hold ``time`` itself, functions of it, or dataclasses whose fields default to one. What is bound
    elsewhere, such as a default of a parameter, stays real and is the caller's to find. For the life of the process:
    nothing puts the real clock back.
    """
    moved: dict[int, Any] = {id(real_time): virtual, id(real_time.sleep): virtual.sleep}
    for name in _SECONDS:
        moved[id(getattr(real_time, name))] = getattr(virtual, name)
        moved[id(getattr(real_time, f"{name}_ns"))] = getattr(virtual, f"{name}_ns")
    count = 0
    for name, module in list(sys.modules.items()):
        if module is None or not name.startswith(packages) or name == __name__:
            continue
        for key, value in list(vars(module).items()):
            replacement = moved.get(id(value))
            if replacement is not None:
                setattr(module, key, replacement)
                count += 1
            elif isinstance(value, type) and value.__module__ == name and is_dataclass(value):
                count += _replace_factories(value, moved)
    return count


def _replace_factories(kind: type[Any], moved: Mapping[int, Any]) -> int:
    """The same for the default factories of one dataclass, which its ``__init__`` holds in its closure."""
    count = 0
    for item in fields(kind):
        replacement = moved.get(id(item.default_factory))
        if replacement is not None:
            for cell in kind.__init__.__closure__ or ():
                if cell.cell_contents is item.default_factory:
                    cell.cell_contents = replacement
            item.default_factory = replacement
            count += 1
    return count
