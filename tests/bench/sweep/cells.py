"""Cells of a sweep as tests need them: metric rows made up, grids too small to take time."""

from __future__ import annotations

from typing import Any

from bench.composition import read_config
from bench.sweep.settings import SweepSettings

FIXED = "fixed: {grid: {prefill_chunk_tokens: [2048], max_running_requests: [64]}}"
TINY = ("traffic.max_requests=6", "traffic.max_output_tokens=6", "traffic.max_prompt_tokens=300")


def row(arm: str, met: int, of: int = 100, seconds: float = 10.0) -> dict[str, Any]:
    """Metrics of a run in which ``met`` of its requests met the SLO."""
    latencies = {"requests": of, "attainment": met / of}
    shown = dict.fromkeys(
        ("ttft_p50_s", "ttft_p99_s", "itl_p99_s", "cache_hit_rate", "longest_wait_s", "policy_state", "fallback_reason")
    )
    return {
        "arm": arm, "status": "ok", "crash": None, "goodput_per_s": met / seconds, **latencies, **shown,
        "good_tokens_per_s": 10 * met / seconds, "weighted_goodput_per_s": met / seconds,
        "weighted_good_tokens_per_s": 10 * met / seconds, "duration_s": seconds,
        "missed": {"not_completed": 0, "ttft": of - met, "gap": 0, "mean": 0, "e2e": 0},
        "total_tokens_per_s": 10 * (of + met) / 2 / seconds,
        "longest_tenth_ttft_p99_s": (of - met) / seconds, "usd_per_million_tokens": None, "classes": {},
        "retractions": 0, "deferrals": 3, "errors": 0, "phases": {"chat": latencies},
    }  # fmt: skip


def crashed(arm: str) -> dict[str, Any]:
    """Metrics of a run that was none."""
    nothing = dict.fromkeys(
        ("goodput_per_s", "attainment", "good_tokens_per_s", "weighted_goodput_per_s", "weighted_good_tokens_per_s",
         "longest_tenth_ttft_p99_s")
    )  # fmt: skip
    nothing = {**nothing, "phases": {}}
    return {**row(arm, 0), **nothing, "status": "crashed", "crash": "ValueError: <no> such flag"}


def overrides(*more: str, arms: str = f"{{default: {{}}, {FIXED}}}") -> list[str]:
    """What makes a sweep of two loads and two arms over six short requests."""
    grid = "+axes.load={low: ['traffic.rate_scale=1'], high: ['traffic.rate_scale=2']}"
    return ["axes=none", grid, "~arms", f"+arms={arms}", f"overrides={[*TINY]}", *more]


def settings(*more: str, **named: str) -> SweepSettings:
    """The same, checked."""
    return SweepSettings.from_config(read_config("sweep", overrides(*more, **named)))
