"""Prometheus series beside SGLang's own, on the server's /metrics, when it was launched with --enable-metrics."""

from __future__ import annotations

from roofline_policies.controller import Controller, State
from roofline_policies.decision import Knob
from roofline_policies.status import LoopTimer
from roofline_policies.window import Phase


class Metrics:
    """Series named ``roofline:*``, labelled with the served model's name and the data-parallel rank.

    Constructed in the scheduler process after SGLang has chosen its multi-process directory: prometheus_client reads
    that when it is first imported.
    """

    def __init__(self, *, model_name: str, dp_rank: int) -> None:
        from prometheus_client import Counter, Gauge

        self._served = (model_name, str(dp_rank))
        served = ("model_name", "dp_rank")

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"roofline:{name}", text, [*served, *labels], multiprocess_mode="mostrecent")

        self._knob = gauge("knob", "Current value of a scheduler knob.", "knob")
        self._compute = gauge("compute_fraction", "Share of the compute ceiling reached.", "phase")
        self._memory = gauge("memory_fraction", "Share of the memory bandwidth ceiling reached.", "phase")
        self._intensity = gauge("intensity_flops_per_byte", "Issued FLOPs per compulsory byte.", "phase")
        self._fallback = gauge("fallback", "1 while the launch settings hold because the policy failed.")
        self._loop_s = gauge("loop_seconds", "Time the loop takes per iteration.", "quantile")
        self._changes = Counter("roofline:knob_changes", "Knob changes.", [*served, "knob"])
        self._counted = dict.fromkeys(Knob, 0)

    def publish(self, controller: Controller, timer: LoopTimer) -> None:
        """Set every series to the controller's present state."""
        served = self._served
        for knob in Knob:
            value = controller.knobs.get(knob)
            if value is not None:
                self._knob.labels(*served, knob.value).set(float(value))
            total = controller.changes.totals[knob]
            self._changes.labels(*served, knob.value).inc(total - self._counted[knob])
            self._counted[knob] = total
        for mode, phase in controller.phases.items():
            self._place(mode.value, phase)
        self._fallback.labels(*served).set(float(controller.state is State.FALLBACK))
        cost = timer.to_dict()
        for quantile in ("p50", "p99"):
            seconds = cost[quantile]
            if seconds is not None:
                self._loop_s.labels(*served, quantile).set(seconds)

    def _place(self, name: str, phase: Phase) -> None:
        point = phase.point()
        if point is None:
            return
        self._compute.labels(*self._served, name).set(point.compute_fraction)
        self._memory.labels(*self._served, name).set(point.memory_fraction)
        self._intensity.labels(*self._served, name).set(point.intensity_flops_per_byte)
