"""The device's clocks, power and throttling, sampled beside the scheduler and never by it."""

from __future__ import annotations

import threading

from roofline_policies.hardware import Ceilings
from roofline_policies.nvml import Nvml, NvmlSample, open_nvml

SAMPLE_EVERY_S = 1.0


class DeviceWatch:
    """Samples NVML once a second in a thread of its own: a call can take milliseconds, which a scheduler has not.

    ``latest`` is None where there is no NVML, and until the first sample.
    """

    def __init__(self, index: int | str, *, every_s: float = SAMPLE_EVERY_S) -> None:
        self.latest: NvmlSample | None = None
        self._every_s = every_s
        self._stop = threading.Event()
        nvml = open_nvml(index)
        if nvml is not None:
            self._take(nvml)
            threading.Thread(target=self._run, args=(nvml,), name="roofline-nvml", daemon=True).start()

    def scale(self, ceilings: Ceilings) -> Ceilings:
        """The ceilings at the clock of the latest sample; unchanged where either is not known."""
        clock_hz = self.latest.sm_clock_hz if self.latest is not None else None
        return ceilings.at_clock(clock_hz) if clock_hz else ceilings

    def stop(self) -> None:
        self._stop.set()

    def _run(self, nvml: Nvml) -> None:
        while not self._stop.wait(self._every_s):
            self._take(nvml)

    def _take(self, nvml: Nvml) -> None:
        sample = nvml.sample()
        if sample is not None:
            self.latest = sample
