"""The device's clocks, power and throttling, sampled beside the scheduler and never by it."""

from __future__ import annotations

import threading
import time
from dataclasses import asdict
from typing import Any

from roofline_policies.device.hardware import Ceilings
from roofline_policies.device.nvml import Nvml, NvmlSample, open_nvml

SAMPLE_EVERY_S = 1.0
"""Seconds between two samples. Clocks follow heat and power within seconds; a call to NVML can take milliseconds of its
own thread. A judgement; lower follows throttling sooner."""

STALE_S = 5.0
"""Age in seconds from which a sample no longer says what the device does: NVML hangs, or its thread got no time. Five
missed samples; a judgement."""


class DeviceWatch:
    """Samples NVML once a second in a thread of its own, because a call can take milliseconds and a scheduler cannot
    wait for it."""

    def __init__(self, index: int | str, *, every_s: float = SAMPLE_EVERY_S) -> None:
        self._last: tuple[NvmlSample | None, float] = (None, time.monotonic())
        self._scaled: tuple[Ceilings, float | None, Ceilings] | None = None
        self._every_s = every_s
        self._stop = threading.Event()
        nvml = open_nvml(index)
        if nvml is not None:
            self._take(nvml)
            threading.Thread(target=self._run, args=(nvml,), name="roofline-nvml", daemon=True).start()

    @property
    def latest(self) -> NvmlSample | None:
        """The last sample; None where NVML gives none, until the first, and once it is older than STALE_S."""
        sample, taken_s = self._last
        return sample if time.monotonic() - taken_s <= STALE_S else None

    def to_dict(self) -> dict[str, Any] | None:
        """The latest sample and its age in seconds, for the status page; None where there is none."""
        sample = self.latest
        return None if sample is None else {**asdict(sample), "age_s": time.monotonic() - self._last[1]}

    def scale(self, ceilings: Ceilings) -> Ceilings:
        """The ceilings at the clock of the latest sample; as they are where either is not known, or the device idles.
        The same object as long as nothing changes.

        An idle device lowers its clock because nothing needs it, and raises it within milliseconds of the first kernel:
        that clock is no ceiling. While the device works, its clock is what power, heat and settings leave it.
        """
        sample = self.latest
        clock_hz = sample.sm_clock_hz if sample is not None and sample.busy else None
        if self._scaled is None or self._scaled[0] is not ceilings or self._scaled[1] != clock_hz:
            self._scaled = (ceilings, clock_hz, ceilings if clock_hz is None else ceilings.at_clock(clock_hz))
        return self._scaled[2]

    def stop(self) -> None:
        self._stop.set()

    def _run(self, nvml: Nvml) -> None:
        while not self._stop.wait(self._every_s):
            self._take(nvml)

    def _take(self, nvml: Nvml) -> None:
        sample = nvml.sample()
        self._last = (sample, time.monotonic())
