"""What is wrong with a figure that cannot be: a device that does more than its ceilings say it can."""

from __future__ import annotations

from collections.abc import Collection

from roofline_policies.device.hardware import CALIBRATE, Ceilings
from roofline_policies.device.roofline import OperatingPoint
from roofline_policies.work import Precision, Provenance

ROUNDING = 1e-6
"""A share above 1 by no more than this counts as 1: it is a quotient of floating-point sums."""


def doubt(
    point: OperatingPoint, ceilings: Ceilings, precision: Precision, work: Collection[Provenance], seconds_source: str
) -> str | None:
    """Why a point above a roof is not to be believed, in one sentence for people; None for one that can be.

    Work over time is above a ceiling only where one of the three is wrong: the ceiling, the count or the time.
    precision: whose compute ceiling counts. work: provenance of the count. seconds_source: of the time.
    """
    over = []
    if point.compute_fraction > 1 + ROUNDING:
        rate = ceilings.flops_per_s.get(precision)
        known = "" if rate is None else f" of {rate / 1e12:.4g} TFLOP/s ({precision})"
        over.append(f"{point.compute_fraction:.0%} of the compute ceiling{known}")
    if point.memory_fraction > 1 + ROUNDING:
        over.append(f"{point.memory_fraction:.0%} of the bandwidth ceiling of {ceilings.bytes_per_s / 1e9:.4g} GB/s")
    if not over:
        return None
    if ceilings.stand_ins:
        suspect = f"the ceilings are not all this device's own ({'; '.join(ceilings.stand_ins)})"
    elif Provenance.ESTIMATED in work:
        suspect = "the work is an estimate, drafts and experts are not counted exactly"
    else:
        clock = "a clock that nobody noted" if ceilings.clock_hz is None else f"{ceilings.clock_hz / 1e9:.4g} GHz"
        again = "that command" if CALIBRATE in ceilings.source else CALIBRATE
        suspect = f"a ceiling that is too low ({ceilings.source}; at {clock}; to measure again: {again} --force)"
    counted = ", ".join(sorted(work)) or "unknown"
    return (
        f"{' and '.join(over)} cannot be: first suspect {suspect}; else the count ({counted}) or the time "
        f"({seconds_source}) is wrong"
    )
