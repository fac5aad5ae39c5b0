"""Prometheus series beside SGLang's own, on the server's /metrics, when it was launched with --enable-metrics."""

from __future__ import annotations

import atexit
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from roofline_policies.contract.decision import Knob
from roofline_policies.contract.view import ForwardMode
from roofline_policies.control.controller import Controller, State
from sglang_patches.observe.drafts import DraftTotals, draft_s, prices, window_now

PUBLISH_EVERY_S = 0.5
"""Most age in seconds of a gauge while the server is busy. When nothing is left to do they are set at once. Scrapes
are seconds apart as a rule, so no one would see gauges that are set more often; a judgement."""

LOOP_BUCKETS_S = (5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 1e-1)
"""Bounds of the histogram of the loop's time per iteration, seconds. Measured iterations are tens to some hundreds of
microseconds (``make bench``), so the first four tell them apart; the others are for what should not happen."""

TOTALS: Mapping[str, tuple[str, str]] = MappingProxyType({
    "iterations": ("roofline_iterations_total", "Iterations whose forward pass is over."),
    "new_tokens": ("roofline_new_tokens_total", "Prompt and output tokens computed."),
    "issued_flops": ("roofline_issued_flops_total", "FLOPs issued, padding included; a multiply-add is two."),
    "useful_flops": ("roofline_useful_flops_total", "FLOPs without padding."),
    "compulsory_bytes": ("roofline_compulsory_bytes_total", "Bytes that had to move between device and memory."),
    "requested_bytes": ("roofline_requested_bytes_total", "Bytes that kernels asked for."),
    "seconds": ("roofline_forward_seconds_total", "Seconds of forward passes."),
})  # fmt: skip
"""Counters by the key of Phase.totals."""


class Metrics:
    """Series named ``roofline_*``, labelled with the served model's name and the data-parallel rank; docs/metrics.md
    lists them. All of them are there from the start, and gauges are 0 where nothing runs.

    Constructed in the scheduler process after SGLang has chosen its multi-process directory: prometheus_client reads
    that when it is first imported. Gauges of a process end with it, or, where it was killed, with the next server that
    uses the directory; counters stay.

    Source of the names: Prometheus, "Metric and label naming": base units, ``_total`` for counters, ``_ratio`` for
    shares; no colon, which is for recording rules.
    """

    def __init__(
        self, controller: Controller, *, model_name: str, dp_rank: int, drafts: DraftTotals | None = None
    ) -> None:
        from prometheus_client import Counter, Gauge, Histogram

        served = ("model_name", "dp_rank")
        values = (model_name, str(dp_rank))
        phases = tuple(ForwardMode)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"roofline_{name}", text, [*served, *labels], multiprocess_mode="livemostrecent")

        def by_phase(gauge: Gauge) -> dict[ForwardMode, Gauge]:
            return {phase: gauge.labels(*values, phase.value) for phase in phases}

        knob = gauge("knob", "Current value of a scheduler knob.", "knob")
        changes = Counter("roofline_knob_changes_total", "Knob changes.", [*served, "knob"])
        peak = gauge("compute_ceiling_flops_per_second", "Compute ceiling at the device's clock now.", "precision")
        self._knobs = {one: knob.labels(*values, one.value) for one in Knob if controller.launch.get(one) is not None}
        self._changes = {one: changes.labels(*values, one.value) for one in Knob}
        self._peaks = {one: peak.labels(*values, one.value) for one in controller.ceilings.flops_per_s}
        self._bandwidth = gauge("memory_ceiling_bytes_per_second", "Memory bandwidth ceiling.").labels(*values)
        self._compute = by_phase(gauge("compute_ratio", "Share of the compute ceiling that is reached now.", "phase"))
        self._memory = by_phase(
            gauge("memory_bandwidth_ratio", "Share of the bandwidth ceiling that is reached now.", "phase")
        )
        self._intensity = by_phase(
            gauge("intensity_flops_per_byte", "Issued FLOPs per compulsory byte now, 0 while none runs.", "phase")
        )
        self._error = by_phase(
            gauge("prediction_error_ratio", "Median error of the last predictions, 0 before the first.", "phase")
        )
        self._margin = by_phase(
            gauge("prediction_margin_ratio", "Factor that steps hardly ever exceed, 0 before the first.", "phase")
        )
        tightening = gauge("target_tightening_ratio", "Factor by which a target is tightened; 1: not.", "target")
        self._tightening = {kind: tightening.labels(*values, kind) for kind in ("per_gap", "mean")}
        late = gauge("late_gaps_ratio", "Share of recent gaps planned in time that were late.", "target")
        self._late = {kind: late.labels(*values, kind) for kind in self._tightening}
        self._fallback = gauge("policy_fallback", "1 while the launch settings hold because the policy failed.")
        self._fallback = self._fallback.labels(*values)
        self._loop_s = Histogram(
            "roofline_loop_seconds", "Time the loop takes per iteration.", served, buckets=LOOP_BUCKETS_S
        ).labels(*values)
        self._drafts = drafts
        if drafts is not None:
            moves = Knob.SPECULATION_WINDOW in controller.bounds.ranges
            windows = controller.bounds.values(Knob.SPECULATION_WINDOW) if moves else (drafts.launched,)
            ratio = gauge("draft_acceptance_ratio", "Share accepted of the drafts that got there.", "position")
            steps = Counter("roofline_draft_steps_total", "Decode steps by drafts per request.", [*served, "window"])
            self._positions = [ratio.labels(*values, str(place + 1)) for place in range(max(windows))]
            self._steps = {window: steps.labels(*values, str(window)) for window in windows}
            self._drafted = Counter("roofline_drafts_total", "Drafts verified.", served).labels(*values)
            self._accepted = Counter("roofline_drafts_accepted_total", "Drafts accepted.", served).labels(*values)
            self._draft_s = gauge("draft_seconds", "What a draft adds to a step now, predicted.").labels(*values)
            self._yield = gauge("step_tokens", "Tokens that a decode step yields per request.").labels(*values)
        totals = {key: Counter(name, text, [*served, "phase"]) for key, (name, text) in TOTALS.items()}
        self._totals = {
            phase: {key: counter.labels(*values, phase.value) for key, counter in totals.items()} for phase in phases
        }
        self._counted: dict[object, float] = {}
        self._next_s, self._busy = float("-inf"), False
        self._set(controller, float("-inf"), busy=False)
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            _forget_the_dead(Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]))

    def iteration(self, loop_s: float) -> None:
        """Count what the loop took in one iteration, seconds."""
        self._loop_s.observe(loop_s)

    def publish(self, controller: Controller, now_s: float, *, busy: bool) -> None:
        """Set every series to the controller's present state, where that is due.

        busy: whether anything runs or waits. The first call without that sets everything at once: a scheduler that
        sleeps while it is idle may not be back for a while.
        """
        if now_s >= self._next_s or busy is not self._busy:
            self._next_s, self._busy = now_s + PUBLISH_EVERY_S, busy
            self._set(controller, now_s, busy=busy)

    def _set(self, controller: Controller, now_s: float, *, busy: bool) -> None:
        for knob, gauge in self._knobs.items():
            gauge.set(float(controller.knobs.get(knob) or 0))
        for knob, counter in self._changes.items():
            self._up_to(counter, knob, controller.changes.totals[knob])
        for precision, gauge in self._peaks.items():
            gauge.set(controller.ceilings.flops_per_s[precision])
        self._bandwidth.set(controller.ceilings.bytes_per_s)
        self._fallback.set(float(controller.state is State.FALLBACK))
        for kind, shown_late in controller.lateness.shown(now_s).items():
            self._tightening[kind].set(shown_late.tightened)
            self._late[kind].set(shown_late.late or 0.0)
        if self._drafts is not None:
            self._set_drafts(self._drafts, controller, now_s, busy=busy)
        learned = controller.in_flight
        shown, lines = learned.shown, learned.lines
        for mode, phase in controller.phases.items():
            self._error[mode].set(shown[mode].median_error or 0.0 if mode in shown else 0.0)
            self._margin[mode].set(lines[mode].margin() if mode in lines else 0.0)
            point = phase.now(now_s) if busy else None
            self._compute[mode].set(0.0 if point is None else point.compute_fraction)
            self._memory[mode].set(0.0 if point is None else point.memory_fraction)
            self._intensity[mode].set(0.0 if point is None else point.intensity_flops_per_byte)
            for key, total in phase.totals().items():
                self._up_to(self._totals[mode][key], (mode, key), total)

    def _set_drafts(self, drafts: DraftTotals, controller: Controller, now_s: float, *, busy: bool) -> None:
        for gauge, share in zip(self._positions, controller.acceptance.of_mix(), strict=False):
            gauge.set(share)
        for window, counter in self._steps.items():
            self._up_to(counter, ("draft steps", window), drafts.by_window.get(window, 0))
        self._up_to(self._drafted, "drafted", drafts.drafted)
        self._up_to(self._accepted, "accepted", drafts.accepted)
        view = controller.view(now_s, controller.queue) if busy else None
        self._draft_s.set(0.0 if view is None else draft_s(prices(view), window_now(view, drafts)) or 0.0)
        self._yield.set(0.0 if view is None else view.tokens_per_request or 0.0)

    def _up_to(self, counter: object, key: object, total: float) -> None:
        more = total - self._counted.get(key, 0)
        if more:
            counter.inc(more)  # type: ignore[attr-defined]
            self._counted[key] = total


def _forget_the_dead(folder: Path) -> None:
    """Have gauges end with their process: this one's when it ends, those of processes that were killed now."""
    from prometheus_client.multiprocess import mark_process_dead

    atexit.register(mark_process_dead, os.getpid())
    numbers = {file.stem.rpartition("_")[2] for file in folder.glob("gauge_live*.db")}
    for number in (int(one) for one in numbers if one.isdecimal()):
        try:
            os.kill(number, 0)
        except ProcessLookupError:
            mark_process_dead(number)  # type: ignore[no-untyped-call]
        except PermissionError:
            continue  # it lives, as another user's
