"""Seconds that the routed experts of one layer take, from how many rows each of them gets.

What rows choose is told as loads: (experts, rows of each), a few groups at most, so that a time is O(1).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, log2

from roofline_policies.device.hardware import Ceilings
from roofline_policies.steps.kernels.coefficients import ExpertEfficiency
from roofline_policies.steps.kernels.kernel_time import ELEMENT_BYTES
from roofline_policies.work import Precision

Loads = Sequence[tuple[float, float]]

TILES = (16, 32, 64, 128)
"""Rows of a tile that kernels choose from. Source: the tuned configurations of SGLang's fused experts."""

GROUPS = 16
"""Of experts with alike loads, for a skewed choice. Twice as many change no time by more than a percent."""

_WIDE = 2  # bytes of an element of activations: 16 bit


def even_loads(rows: float, experts: float) -> Loads:
    """As many rows for each of the experts that get any: rows that choose uniformly reach ``Experts.active``."""
    return ((experts, rows / experts),) if rows > 0 and experts > 0 else ()


def balanced_loads(rows: int, count: int, chosen: int) -> Loads:
    """Of rows that take turns, so that no expert has more than one row more than another."""
    return even_loads(rows * chosen, min(count, rows * chosen))


def skewed_loads(rows: int, count: int, chosen: int, alpha: float) -> Loads:
    """Of rows whose experts' loads follow a power law: a share of experts inverse to the load to the ``alpha``.

    Loads from 1 to 0.8 rows, or from 0.01 to 2 where there are more experts than chosen ones, scaled to ``rows x
    chosen`` in all, none above ``rows``; taken at the middle of GROUPS equal parts of the experts.

    Source: how ai-dynamo/aiconfigurator draws the loads of its tables, here without the draw.
    """
    pairs = rows * chosen
    low, high = (1.0, 0.8 * rows) if pairs > count else (0.01, 2.0)
    if high <= low:
        return balanced_loads(rows, count, chosen)
    p = 1.0 - alpha
    groups = min(GROUPS, count)
    drawn = [((high**p - low**p) * (i + 0.5) / groups + low**p) ** (1 / p) for i in range(groups)]
    each = count / groups
    scale = pairs / (sum(drawn) * each)
    loads = [min(float(rows), one * scale) for one in drawn]
    left = pairs - sum(loads) * each  # of those that were cut: shared by the others, the fullest first
    for place in reversed(range(groups)):
        added = min(left / (each * (place + 1)), rows - loads[place])
        loads[place] += added
        left -= added * each
    # A share of an expert's row is an expert that some of the time gets one.
    return tuple((each * min(1.0, load), max(1.0, load)) for load in loads if load > 0)


def experts_s(
    e: ExpertEfficiency,
    rows: int,
    loads: Loads,
    hidden: int,
    up_width: float,
    width: float,
    expert_bytes: float,
    ceilings: Ceilings,
    sms: int,
) -> float:
    """Seconds of one layer's routed experts.

    rows: that choose. loads: of the experts here. hidden: width of a row. up_width: outputs of the products that go up.
    width: inputs of the one that comes down. expert_bytes: of one expert's weights.

    ::

        time = launch + length log2(rows) + row rows + min over tiles of ((max(compute, loop))^p + memory^p)^(1/p)

    compute: tiles of b rows, each at the cost of ``b + tile_rows`` rows; loop: both inner dimensions at ``step_s`` an
    element; memory: weights of the experts that get rows, and what goes in and out of both products, with as much of
    the bandwidth as the blocks of ``cols`` columns reach.
    """
    if not loads:
        return 0.0
    element = ELEMENT_BYTES[e.precision]
    padded = ceil(width / e.align) * e.align / width
    up_width, width, expert_bytes = up_width * padded, width * padded, expert_bytes * padded
    active = sum(count for count, _ in loads)
    pairs = sum(count * each for count, each in loads)
    row_flops = 2 * hidden * (up_width + width)
    moved = active * expert_bytes
    moved += pairs * (element * hidden + _WIDE * up_width + element * width + _WIDE * hidden) + _WIDE * rows * hidden
    rate = ceilings.compute_ceiling(e.precision) * e.compute
    memory_s = moved / (ceilings.bytes_per_s * e.memory)
    loop_s = (hidden + width) * e.step_s
    best = float("inf")
    for tile in TILES:
        tiles = sum(count * (ceil(each / tile - 1e-6) if len(loads) > 1 or each <= tile else each / tile + 0.5)
                    for count, each in loads)  # fmt: skip
        reach = min(1.0, tiles * up_width / (e.cols * sms))
        compute_s = tiles * (tile + e.tile_rows) * row_flops / rate
        joined = max(compute_s, loop_s) ** e.overlap + (memory_s / reach) ** e.overlap
        best = min(best, joined ** (1 / e.overlap))
    return float(e.launch_s + e.length_s * log2(max(1, rows)) + e.row_s * rows + best)


def weight_only(precision: Precision, bytes_per_element: float) -> bool:
    """Whether weights are stored in fewer than eight bits and multiplied in sixteen."""
    return precision in (Precision.BF16, Precision.FP16) and bytes_per_element < 0.75
