"""Windows over the recent past: decayed sums, O(1) in time and memory whatever the history."""

from __future__ import annotations

import math

from roofline_policies.contract.view import IterationRecord
from roofline_policies.device.hardware import Ceilings
from roofline_policies.device.roofline import OperatingPoint, classify, roof_time

STALE_HALF_LIVES = 10
"""A phase that has not run for this many half-lives is no longer the recent past: its sums kept a thousandth."""


NOW_S = 0.5
"""A phase that has not run for this long is not what happens now, unless its steps take longer. Half of the second
within which a page has to be of now; a judgement."""


class Phase:
    """One phase (prefill, decode or mixed): its operating point from sums that halve every ``half_life_s``, and totals.

    The totals are everything executed since the server started, exact.
    """

    __slots__ = (
        "_bytes",
        "_ceilings",
        "_compute_s",
        "_flops",
        "_half_life_s",
        "_iterations",
        "_last_rate",
        "_last_s",
        "_memory_s",
        "_overhead_below",
        "_point",
        "_requests",
        "_seconds",
        "_stale_s",
        "_tokens",
        "compulsory_bytes",
        "device_s",
        "executed",
        "issued_flops",
        "new_tokens",
        "requested_bytes",
        "useful_flops",
    )

    def __init__(self, ceilings: Ceilings, half_life_s: float, overhead_below: float) -> None:
        self._ceilings = ceilings
        self._half_life_s = half_life_s
        self._stale_s = STALE_HALF_LIVES * half_life_s
        self._overhead_below = overhead_below
        self._last_s: float | None = None
        self._last_rate: float | None = None
        self._flops = self._bytes = self._compute_s = self._memory_s = 0.0
        self._seconds = self._tokens = self._requests = self._iterations = 0.0
        self._point: OperatingPoint | None = None
        self.executed = self.new_tokens = 0
        self.issued_flops = self.useful_flops = self.compulsory_bytes = self.requested_bytes = 0
        self.device_s = 0.0

    def add(self, record: IterationRecord) -> None:
        """Count one iteration.

        Raises:
            InputError: its work was issued in a precision without a ceiling.
        """
        keep = 1.0 if self._last_s is None else 0.5 ** (max(0.0, record.done_s - self._last_s) / self._half_life_s)
        self._last_s = record.done_s
        self._last_rate = record.new_tokens / record.step_s
        work = record.work
        roof = roof_time(work, self._ceilings)
        issued_flops, compulsory_bytes = work.issued.total, work.compulsory.total
        self.executed += 1
        self.new_tokens += record.new_tokens
        self.issued_flops += issued_flops
        self.useful_flops += work.useful.total
        self.compulsory_bytes += compulsory_bytes
        self.requested_bytes += work.requested.total
        self.device_s += record.seconds
        self._flops = self._flops * keep + issued_flops
        self._bytes = self._bytes * keep + compulsory_bytes
        self._compute_s = self._compute_s * keep + roof.compute_s
        self._memory_s = self._memory_s * keep + roof.memory_s
        self._seconds = self._seconds * keep + record.step_s
        self._tokens = self._tokens * keep + record.new_tokens
        self._requests = self._requests * keep + record.requests
        self._iterations = self._iterations * keep + 1.0
        compute, memory = self._compute_s / self._seconds, self._memory_s / self._seconds
        self._point = OperatingPoint(
            self._flops / self._seconds,
            self._bytes / self._seconds,
            compute,
            memory,
            self._seconds,
            self._iterations,
            classify(compute, memory, self._overhead_below),
        )

    def totals(self) -> dict[str, int | float]:
        """Counts since the server started; ``seconds`` of the forward passes alone."""
        return {
            "iterations": self.executed,
            "new_tokens": self.new_tokens,
            "issued_flops": self.issued_flops,
            "useful_flops": self.useful_flops,
            "compulsory_bytes": self.compulsory_bytes,
            "requested_bytes": self.requested_bytes,
            "seconds": self.device_s,
        }

    @property
    def step_s(self) -> float | None:
        """Mean seconds of an iteration, None before the first."""
        return self._seconds / self._iterations if self._iterations else None

    @property
    def requests(self) -> float | None:
        """Mean requests in an iteration, None before the first."""
        return self._requests / self._iterations if self._iterations else None

    @property
    def tokens_per_s(self) -> float | None:
        """New tokens per second of this phase's own time, None before the first iteration."""
        return self._tokens / self._seconds if self._seconds else None

    @property
    def last_tokens_per_s(self) -> float | None:
        """New tokens per second of the last iteration alone, None before the first."""
        return self._last_rate

    def point(self, now_s: float | None = None) -> OperatingPoint | None:
        """Where the window lies under the roofs; None before the first iteration, or if the last was long ago."""
        stale = now_s is not None and self._last_s is not None and now_s - self._last_s > self._stale_s
        return None if stale else self._point

    def age_s(self, now_s: float) -> float | None:
        """Seconds since its last iteration was over, None before the first."""
        return None if self._last_s is None else max(0.0, now_s - self._last_s)

    def now(self, now_s: float) -> OperatingPoint | None:
        """Where the window lies while the phase runs: None once it has not for NOW_S, or for two of its steps."""
        age_s, step_s = self.age_s(now_s), self.step_s
        if age_s is None or step_s is None or age_s > max(NOW_S, 2 * step_s):
            return None
        return self.point(now_s)

    def watch(self, half_life_s: float, overhead_below: float) -> None:
        """Weigh and name what comes from now on by these; see ControllerSettings."""
        self._half_life_s, self._overhead_below = half_life_s, overhead_below
        self._stale_s = STALE_HALF_LIVES * half_life_s

    def place_under(self, ceilings: Ceilings) -> None:
        """Measure what comes from now on against these ceilings, as when the device's clock has changed."""
        self._ceilings = ceilings


class GapWindow:
    """Mean and slow tail of the gaps between a running request's tokens, exponentially weighted by count.

    The tail is mean + 2.33 standard deviations, the 99th percentile of a normal distribution: an estimate that is
    cheap and reacts at once, not a measured percentile (the report measures those).
    """

    __slots__ = ("_mean_s", "_variance", "_weight")

    Z_P99 = 2.33

    def __init__(self, gaps: float) -> None:
        """gaps: number of recent gaps that carry about two thirds of the weight."""
        self._weight = 1.0 / gaps
        self._mean_s: float | None = None
        self._variance = 0.0

    def watch(self, gaps: float) -> None:
        """Weigh the gaps that come from now on by another number of them."""
        self._weight = 1.0 / gaps

    def add(self, gap_s: float) -> None:
        """Count one gap, seconds."""
        if self._mean_s is None:
            self._mean_s = gap_s
            return
        # Source: T. Finch, "Incremental calculation of weighted mean and variance", 2009, section 9.
        difference = gap_s - self._mean_s
        step = self._weight * difference
        self._mean_s += step
        self._variance = (1.0 - self._weight) * (self._variance + difference * step)

    @property
    def mean_s(self) -> float | None:
        return self._mean_s

    @property
    def tail_s(self) -> float | None:
        return None if self._mean_s is None else self._mean_s + self.Z_P99 * math.sqrt(self._variance)
