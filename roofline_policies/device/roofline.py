"""The roofline: where work over time lands under a device's ceilings, and which bound it meets.

Source: S. Williams, A. Waterman, D. Patterson, "Roofline: an insightful visual performance model for multicore
architectures", CACM 52(4), 2009. The third bound, overhead, is ours: host time and launch gaps are on neither roof.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from roofline_policies.device.hardware import Ceilings
from roofline_policies.work import Precision, Work

OVERHEAD_BELOW = 0.4
"""A point that reaches less than this share of both roofs is called overhead. A convention, not a measurement:
tuned kernels reach 0.6 to 0.9 of a roof, a launch-bound decode step below 0.3."""


class Bound(StrEnum):
    """What limits an operating point."""

    COMPUTE = "compute"
    MEMORY = "memory"
    OVERHEAD = "overhead"


class RoofTime(NamedTuple):
    """The least seconds that work can take under each roof."""

    compute_s: float
    memory_s: float

    @property
    def bound_s(self) -> float:
        """Both roofs at full rate and fully overlapped: no execution is faster."""
        return max(self.compute_s, self.memory_s)


def roof_time(work: Work, ceilings: Ceilings) -> RoofTime:
    """Seconds at the ceilings: issued FLOPs by precision over compute, compulsory bytes over bandwidth.

    Raises:
        InputError: work was issued in a precision that the device has no ceiling for.
    """
    compute_s = 0.0
    for precision, count in work.issued.items():
        compute_s += count / ceilings.compute_ceiling(precision)
    return RoofTime(compute_s, work.compulsory.total / ceilings.bytes_per_s)


class OperatingPoint(NamedTuple):
    """Work over seconds over a window, placed under the roofs.

    flops_per_s: issued FLOPs per second. bytes_per_s: compulsory bytes per second.
    compute_fraction, memory_fraction: shares of the roofs reached (MFU-like on issued FLOPs, and MBU).
    seconds, iterations: the (decayed) weight of the window.
    """

    flops_per_s: float
    bytes_per_s: float
    compute_fraction: float
    memory_fraction: float
    seconds: float
    iterations: float
    bound: Bound

    @property
    def intensity_flops_per_byte(self) -> float:
        """Arithmetic intensity, the x axis of the roofline; infinite when no byte was moved."""
        return self.flops_per_s / self.bytes_per_s if self.bytes_per_s else float("inf")


def classify(compute_fraction: float, memory_fraction: float, overhead_below: float = OVERHEAD_BELOW) -> Bound:
    """The bound of a point that reaches these shares of the two roofs; a tie goes to memory."""
    if max(compute_fraction, memory_fraction) < overhead_below:
        return Bound.OVERHEAD
    return Bound.COMPUTE if compute_fraction > memory_fraction else Bound.MEMORY


def attainable_flops_per_s(intensity_flops_per_byte: float, ceilings: Ceilings, precision: Precision) -> float:
    """The roof above an intensity: ``min(compute ceiling, intensity x bandwidth)``."""
    return min(ceilings.compute_ceiling(precision), intensity_flops_per_byte * ceilings.bytes_per_s)
