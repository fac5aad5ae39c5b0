"""The controller's state as JSON-ready data, and as one line for the log."""

from __future__ import annotations

from collections import deque
from statistics import quantiles
from typing import Any

from roofline_policies.contract.decision import Decision, Knob
from roofline_policies.contract.view import ForwardMode, QueueState
from roofline_policies.control.controller import Controller
from roofline_policies.control.window import Phase
from roofline_policies.device.plausible import doubt
from roofline_policies.device.roofline import OperatingPoint
from roofline_policies.plain import type_name
from roofline_policies.slo.capacity import Capacity, binding
from roofline_policies.steps.correction import PROMPT_SUMS, ROW_SUMS

ANY_TARGET_S = 60.0
"""A lowest defended target above this is said to be above all: nobody means a minute between two tokens."""


class LoopTimer:
    """What the loop itself costs: its seconds in each of the last iterations, in a ring of fixed size."""

    KEPT = 1024

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=self.KEPT)
        self.iterations = 0

    def add(self, seconds: float) -> None:
        """Count one iteration, in which the loop took so many seconds."""
        self._recent.append(seconds)
        self.iterations += 1

    def to_dict(self) -> dict[str, float | int | None]:
        """Median and 99th percentile in seconds over the last 1,024 iterations; None before the second one."""
        if len(self._recent) < 2:
            return {"p50": None, "p99": None, "iterations": self.iterations}
        cuts = quantiles(self._recent, n=100, method="inclusive")
        return {"p50": cuts[49], "p99": cuts[98], "iterations": self.iterations}


def point_to_dict(
    phase: Phase, point: OperatingPoint | None, controller: Controller, now_s: float
) -> dict[str, Any] | None:
    """A phase's operating point as the status page shows it, and how old it is. doubt: see ``plausible``."""
    if point is None:
        return None
    return {
        "age_s": phase.age_s(now_s),
        "flops_per_s": point.flops_per_s,
        "bytes_per_s": point.bytes_per_s,
        "intensity_flops_per_byte": point.intensity_flops_per_byte,
        "compute_fraction": point.compute_fraction,
        "memory_fraction": point.memory_fraction,
        "bound": point.bound.value,
        "doubt": _doubt(point, controller),
        "seconds": point.seconds,
        "iterations": point.iterations,
        "step_s": phase.step_s,
        "tokens_per_s": phase.tokens_per_s,
    }


def status(controller: Controller, now_s: float, queue: QueueState) -> dict[str, Any]:
    """Ceilings, operating points, knobs with their bounds, the last changes with reasons, queues and health.

    queue: as it is at this moment. What describes this moment is 0 or None where nothing runs; ``last`` keeps the
    operating points of each phase when it last ran, with their age. Totals and counts are since the server started.
    """
    ceilings, phases = controller.ceilings, controller.phases.items()
    changes = controller.changes.recent()
    runs = bool(queue.running or queue.waiting or queue.chunk_in_flight)
    idle_s = min((age_s for _, phase in phases if (age_s := phase.age_s(now_s)) is not None), default=None)
    return {
        "device": ceilings.device,
        "policy": {
            "type": type_name(controller.policy),
            "state": controller.state.value,
            "fallback_reason": controller.fallback_reason,
        },
        "ceilings": {
            "flops_per_s": {precision.value: rate for precision, rate in ceilings.flops_per_s.items()},
            "bytes_per_s": ceilings.bytes_per_s,
            "memory_bytes": ceilings.memory_bytes,
            "usd_per_h": ceilings.usd_per_h,
            "clock_hz": ceilings.clock_hz,
            "source": ceilings.source,
            "caveat": ceilings.caveat,
            "stand_ins": list(ceilings.stand_ins),
        },
        "ridge_flops_per_byte": {
            precision.value: ceilings.ridge_flops_per_byte(precision) for precision in ceilings.flops_per_s
        },
        "slo": {
            "ttft_s": controller.slo.ttft_s,
            "itl_s": controller.slo.itl_s,
            "itl_kind": controller.slo.itl_kind.value,
            "e2e_s": controller.slo.e2e_s,
        },
        "predictor": None if controller.predictor is None else type_name(controller.predictor),
        "correction": _learned(controller),
        "lateness": {kind: shown._asdict() for kind, shown in controller.lateness.shown(now_s).items()},
        "iterations": controller.iterations,
        **{
            mode.value: point_to_dict(phase, phase.now(now_s) if runs else None, controller, now_s)
            for mode, phase in phases
        },
        "last": {mode.value: point_to_dict(phase, phase.point(), controller, now_s) for mode, phase in phases},
        "last_iteration_age_s": idle_s,
        "totals": {mode.value: phase.totals() for mode, phase in phases},
        "provenance": _provenance(controller),
        "itl_s": controller.view(now_s, queue).itl_s if queue.running else None,
        "knobs": {knob.value: controller.knobs.get(knob) for knob in Knob},
        "bounds": {knob.value: [bounds.low, bounds.high] for knob, bounds in controller.bounds.ranges.items()},
        "immovable": {knob.value: reason for knob, reason in controller.bounds.immovable.items()},
        "given_up": _given_up(controller, now_s),
        "last_change": None if controller.last_change is None else explain(*controller.last_change),
        "last_change_age_s": None if not changes else now_s - controller.started_s - changes[-1].t_s,
        "changes": [
            {
                "t_s": entry.t_s,
                "iteration": entry.iteration,
                "knob": entry.change.knob.value,
                "old": entry.change.old,
                "new": entry.change.new,
                "reason": entry.change.reason,
                "policy": entry.change.policy,
            }
            for entry in changes
        ],
        "changes_total": {knob.value: total for knob, total in controller.changes.totals.items()},
        "running": queue.running,
        "waiting": queue.waiting,
        "peers_decoding": queue.peers_decoding,
        "kv_use": queue.kv_use,
        "capacity": {one.resource.value: _capacity(one) for one in queue.capacities},
        "binds": None if (first := binding(queue.capacities)) is None else first.resource.value,
        "decode_context_tokens": queue.decode_context_tokens,
        "slack_s": queue.slack_s,
        "retractions": queue.retractions,
        "cache_hit_rate": queue.cache_hit_rate,
        "uptime_s": now_s - controller.started_s,
    }


def _learned(controller: Controller) -> dict[str, Any]:
    """For each kind of step that ran: what is expected of it beside its prediction, how well, and what answers."""
    lines, pages = controller.in_flight.lines, {}
    for mode, shown in controller.in_flight.shown.items():
        line, names = lines[mode], ROW_SUMS if mode is ForwardMode.DECODE else PROMPT_SUMS
        pages[mode.value] = {
            "scale": line.scale,
            "add_s": line.add_s,
            "each_s": dict(zip(names, line.each_s, strict=False)),
            "spread": line.spread,
            "margin": line.margin(),
            **shown._asdict(),
            "margins": {str(rows): margin for rows, margin in shown.margins.items()},
        }
    return pages


def _given_up(controller: Controller, now_s: float) -> dict[str, Any] | None:
    """Whose targets between tokens are not kept, since when and why; None where all are."""
    least_s = controller.knobs.defended_s
    if not least_s:
        return None
    last = controller.changes.last(Knob.DEFENDED_FROM_US)
    since_s = None if last is None else now_s - controller.started_s - last.t_s
    why = None if last is None else last.change.reason
    return {"below_s": least_s, "since_s": since_s, "why": why, "says": _given_up_says(least_s, since_s, why)}


def _given_up_says(least_s: float, since_s: float | None, why: str | None) -> str:
    whose = f"below {least_s * 1e3:.0f} ms" if least_s < ANY_TARGET_S else "of any length"
    since = "" if since_s is None else f" for {since_s:.0f} s"
    return f"requests with a target between tokens {whose} have been given up{since}" + (f": {why}" if why else "")


def _capacity(one: Capacity) -> dict[str, Any]:
    """Use and size of what requests can run out of, and how many more are expected to fit."""
    return {"used": one.used, "size": one.size, "per_request": one.per_request, "more_requests": one.room}


def _provenance(controller: Controller) -> dict[str, Any] | None:
    """Where the figures of the last iteration come from, None before the first."""
    record = controller.last_record
    if record is None:
        return None
    return {"work": sorted(record.work.provenance), "seconds": record.seconds_source}


def _doubt(point: OperatingPoint, controller: Controller) -> str | None:
    record = controller.last_record
    if record is None:
        return None
    issued = record.work.issued.items()
    precision = max(issued, key=lambda one: one[1])[0] if issued else next(iter(controller.ceilings.flops_per_s))
    return doubt(point, controller.ceilings, precision, record.work.provenance, record.seconds_source)


def explain(queue: QueueState, decision: Decision) -> str:
    """One decision in one line for people: what was seen, what was predicted, what changed."""
    seen = f"{queue.running} running, {queue.waiting} waiting"
    if queue.relegated:
        seen += f" ({queue.relegated} of them cannot be in time)"
    first = binding(queue.capacities)
    if first is not None and first.room < 1:
        seen += f", no room left in {first.resource.value} ({first.used} of {first.size})"
    why: dict[str, list[str]] = {}
    for change in decision.changes:
        moved = f"{change.knob.value} {change.old} -> {change.new}"
        why.setdefault(f"{change.policy}: {change.reason}", []).append(moved)
    parts = (f"{', '.join(moved)} ({reason})" for reason, moved in why.items())
    return f"{seen}, KV {queue.kv_use:.0%} full: {'; '.join(parts) or 'nothing changes'}"


def log_line(controller: Controller, now_s: float) -> str:
    """One line for people: where prefill and decode lie, if they ran lately, and where the knobs stand."""
    parts = [
        f"{name}: {_describe(point, controller)}"
        for name, point in (
            ("prefill", controller.prefill.point(now_s)),
            ("decode", controller.decode.point(now_s)),
            ("mixed", controller.mixed.point(now_s)),
        )
        if point is not None
    ]
    knobs = ", ".join(f"{knob.value}={controller.knobs.get(knob)}" for knob in Knob)
    state = "" if controller.fallback_reason is None else f", FALLBACK ({controller.fallback_reason})"
    late = "".join(f", {one.says}" for one in controller.lateness.shown(now_s).values() if one.since_s is not None)
    given_up = _given_up(controller, now_s)
    lost = "" if given_up is None else f", {given_up['says']}"
    changes = sum(controller.changes.totals.values())
    return f"Roofline. {', '.join([*parts, knobs])}, #changes: {changes}{late}{lost}{state}"


def _describe(point: OperatingPoint, controller: Controller) -> str:
    wrong = _doubt(point, controller)
    if wrong is not None:
        return wrong
    return (
        f"{point.bound.value}-bound ({point.compute_fraction:.0%} of compute, {point.memory_fraction:.0%} of memory, "
        f"{point.intensity_flops_per_byte:.1f} FLOPs/byte)"
    )
