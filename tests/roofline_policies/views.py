"""Views for policy tests: a quiet server, changed one field at a time."""

from __future__ import annotations

from typing import Any

from roofline_policies.contract.decision import Bounds, Knob, Knobs, Range
from roofline_policies.contract.view import QueueState, SchedulerView
from roofline_policies.device.roofline import Bound, OperatingPoint
from roofline_policies.slo.objectives import Slo

BOUNDS = Bounds({Knob.MAX_RUNNING_REQUESTS: Range(1, 64), Knob.PREFILL_CHUNK_TOKENS: Range(16, 2048, 16)}, {})
LAUNCH = Knobs(64, 2048)


def point(bound: Bound, compute: float = 0.5, memory: float = 0.5) -> OperatingPoint:
    return OperatingPoint(1e12, 1e10, compute, memory, 1.0, 10.0, bound)


def view(
    knobs: Knobs = LAUNCH, slo: Slo | None = None, *, queue: QueueState | None = None, **fields: Any
) -> SchedulerView:
    return SchedulerView(
        now_s=0.0, queue=queue or QueueState(running=8, waiting=4, next_prefill_tokens=2048),
        knobs=knobs, bounds=BOUNDS, slo=slo or Slo(), **fields,
    )  # fmt: skip
