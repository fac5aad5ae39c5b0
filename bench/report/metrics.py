"""From the records of one run to its metrics. Pure functions; every metric is defined in docs/metrics.md.

Quantiles are numpy's "linear" method: with n sorted values the q-quantile lies at position q (n - 1), linearly
interpolated. A metric that has no values to be made of is None, never zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from bench.report.drafts import draft_metrics
from bench.report.one_request import MISSED, chunk_gaps_s, e2e_s, gaps_s, meets, missed, tpot_s, ttft_s
from bench.report.percentiles import PERCENTILES, label, reported
from bench.report.records import ArmRun, Ending, RequestRecord, ServerSample
from bench.report.tail import tail
from bench.slo import JudgedSlo

Metrics = dict[str, Any]

RATIOS = (
    "goodput_per_s",
    "good_tokens_per_s",
    "weighted_goodput_per_s",
    "weighted_good_tokens_per_s",
    "attainment",
    "output_tokens_per_s",
    "requests_per_s",
    "ttft_p50_s",
    "ttft_p99_s",
    "itl_p50_s",
    "itl_p99_s",
    "tpot_p99_s",
    "e2e_p99_s",
    "duration_s",
)
"""Metrics compared between arms."""


def quantile(values: ArrayLike, q: float) -> float | None:
    """The ``q``-quantile (0..1), numpy's linear method; None of nothing."""
    known = np.asarray(values, dtype=np.float64)
    return float(np.quantile(known, q)) if known.size else None


def latencies(records: Sequence[RequestRecord], slo: JudgedSlo, percentiles: Sequence[float] = PERCENTILES) -> Metrics:
    """Attainment and the latency quantiles of these requests: the standard percentiles and those chosen."""
    met = sum(meets(record, slo) for record in records)
    tpots = _known(tpot_s(record) for record in records)
    row: Metrics = {"requests": len(records), "attainment": met / len(records) if records else None}
    found: dict[str, ArrayLike] = {
        "ttft": _known(ttft_s(record) for record in records),
        "itl": np.concatenate([gaps_s(record) for record in records]) if records else [],
        "icl": np.concatenate([chunk_gaps_s(record) for record in records]) if records else [],
        "tpot": tpots,
        "e2e": _known(e2e_s(record) for record in records),
    }
    for name, values in found.items():
        known = np.sort(np.asarray(values, dtype=np.float64))
        row |= {f"{name}_{label(one)}_s": quantile(known, one / 100) for one in reported(percentiles)}
    return row | {"tpot_mean_s": sum(tpots) / len(tpots) if tpots else None}


def summarise(
    run: ArmRun, slo: JudgedSlo, usd_per_h: float | None, percentiles: Sequence[float] = PERCENTILES
) -> Metrics:
    """Every metric of one run, ready for JSON.

    usd_per_h: price of the machine, None where unknown. percentiles: of the latencies, beside the standard ones.
    """
    records = run.records
    endings = _counts(str(record.ending) for record in records)
    lacks = [missed(record, slo) for record in records]
    good = [record for record, lack in zip(records, lacks, strict=True) if not lack]
    short = [record for record in records if record.ending is Ending.SHORT]
    chunks = sum(len(set(record.token_s)) for record in records)
    output = sum(record.output_tokens for record in records)
    prompt = sum(record.prompt_tokens for record in records if record.token_s)
    cached = sum(record.cached_tokens for record in records if record.token_s)
    begin = min((record.scheduled_s for record in records), default=0.0)
    duration = max((record.end_s for record in records), default=0.0) - begin
    phases = list(dict.fromkeys(record.phase for record in records))

    def per_s(amount: float) -> float | None:
        return amount / duration if duration > 0 else None

    def usd_per_million(tokens: int) -> float | None:
        return usd_per_h * duration / 3600 / tokens * 1e6 if usd_per_h is not None and tokens else None

    return {
        "arm": run.arm,
        "repeat": run.repeat,
        "status": "crashed" if run.crash else "ok",
        "crash": run.crash,
        "duration_s": duration,
        "completed": endings.get(Ending.COMPLETED, 0),
        "short": len(short),
        "short_share": _share(sum(r.output_tokens for r in short), sum(r.output_tokens_asked for r in short)),
        "empty": endings.get(Ending.EMPTY, 0),
        "aborted": endings.get(Ending.ABORTED, 0),
        "errors": endings.get(Ending.ERROR, 0),
        "error_kinds": _counts(record.error for record in records if record.error is not None),
        "output_tokens": output,
        "prompt_tokens": prompt,
        "output_tokens_per_s": per_s(output),
        "total_tokens_per_s": per_s(output + prompt),
        "requests_per_s": per_s(endings.get(Ending.COMPLETED, 0)),
        "goodput_per_s": per_s(len(good)),
        **tail(records, len(good)),
        "good_tokens_per_s": per_s(sum(record.prompt_tokens + record.output_tokens for record in good)),
        "weighted_goodput_per_s": per_s(sum(weight(record, slo) for record in good)),
        "weighted_good_tokens_per_s": per_s(
            sum(weight(record, slo) * (record.prompt_tokens + record.output_tokens) for record in good)
        ),
        "missed": {key: sum(key in lack for lack in lacks) for key in MISSED},
        "usd_per_million_output_tokens": usd_per_million(output),
        "usd_per_million_tokens": usd_per_million(output + prompt),
        "tokens_per_chunk": _share(output, chunks),
        **draft_metrics(run, output),
        "cache_hit_rate": _share(cached, prompt),
        "longest_wait_s": max((r.started_s - r.scheduled_s for r in records if r.started_s is not None), default=None),
        "longest_tenth_ttft_p99_s": longest_tenth_ttft_p99_s(records),
        "deferrals": run.deferrals,
        "slip_p99_s": quantile([r.sent_s - r.scheduled_s for r in records if r.sent_s is not None], 0.99),
        **latencies(records, slo, percentiles),
        **server_side(run.samples),
        "phases": {phase: latencies([r for r in records if r.phase == phase], slo, percentiles) for phase in phases},
        "classes": by_class(records, slo, percentiles),
    }


def weight(record: RequestRecord, slo: JudgedSlo) -> float:
    """What the request counts for: the weight of its class."""
    return slo.for_priority(record.priority).weight


def longest_tenth_ttft_p99_s(records: Sequence[RequestRecord]) -> float | None:
    """P99 TTFT of the requests with the longest prompts, a tenth of all or more where many are as long; None of none.

    A request without a first token counts with the time it was given, or one that is starved would be left out.
    """
    border = quantile([record.prompt_tokens for record in records], 0.9)
    if border is None:
        return None
    longest = (record for record in records if record.prompt_tokens >= border)
    waits = ((record, ttft_s(record)) for record in longest)
    return quantile([record.end_s - record.scheduled_s if wait is None else wait for record, wait in waits], 0.99)


def by_class(
    records: Sequence[RequestRecord], slo: JudgedSlo, percentiles: Sequence[float] = PERCENTILES
) -> dict[str, Metrics]:
    """Attainment and latency quantiles per priority, the highest first; ``none``: requests without one beside others.

    Empty where no request has a priority.
    """
    found = {record.priority for record in records}
    known = sorted((priority for priority in found if priority is not None), reverse=True)
    order: list[int | None] = [*known, *([None] if known and None in found else [])]
    return {
        "none" if priority is None else str(priority): latencies(
            [r for r in records if r.priority == priority], slo, percentiles
        )
        for priority in order
    }


def server_side(samples: Sequence[ServerSample]) -> Metrics:
    """What the server's own samples add; each None where no sample carries it."""
    use = [sample.load["kv_use"] for sample in samples if "kv_use" in sample.load]
    retracted = [sample.retractions for sample in samples if sample.retractions is not None]
    ranks = [sample.ranks[0] for sample in samples if sample.ranks]
    first, last = (ranks[0], ranks[-1]) if ranks else ({}, {})
    changes = {
        knob: int(n) - int((first.get("changes_total") or {}).get(knob, 0))
        for knob, n in (last.get("changes_total") or {}).items()
    }
    policy = last.get("policy") or {}
    policy_time = last.get("policy_time_s") or {}
    return {
        "kv_use_mean": sum(use) / len(use) if use else None,
        "kv_use_max": max(use, default=None),
        "retractions": retracted[-1] - retracted[0] if retracted else None,
        "knob_changes": sum(changes.values()) if ranks else None,
        "knob_changes_by_knob": changes,
        "policy_time_p50_s": policy_time.get("p50"),
        "policy_time_p99_s": policy_time.get("p99"),
        "policy_state": policy.get("state"),
        "fallback_reason": policy.get("fallback_reason"),
    }


def paired_ratios(rows: Sequence[Mapping[str, Any]], baseline: str) -> dict[str, dict[str, Any]]:
    """For each other arm, ``arm/baseline`` per metric: the ratio within each repeat, and its min, median and max.

    A repeat counts where both arms lived through it, both have the metric and the baseline's is not zero; ``pairs``
    says how many did. A crashed run gives no ratio, it stays visible in its own row.
    """
    by = {(row["arm"], row["repeat"]): row for row in rows if row["status"] == "ok"}
    repeats = sorted({row["repeat"] for row in rows})
    arms = [arm for arm in dict.fromkeys(row["arm"] for row in rows) if arm != baseline]
    compared: dict[str, dict[str, Any]] = {}
    for arm in arms:
        table: dict[str, Any] = {}
        for metric in RATIOS:
            pairs = [(by.get((arm, r), {}).get(metric), by.get((baseline, r), {}).get(metric)) for r in repeats]
            ratios = [ours / theirs for ours, theirs in pairs if ours is not None and theirs]
            if ratios:
                low, mid, high = min(ratios), median(ratios), max(ratios)
                table[metric] = {"min": low, "median": mid, "max": high, "values": ratios, "pairs": len(ratios)}
        compared[f"{arm}/{baseline}"] = table
    return compared


def median_over_repeats(rows: Sequence[Mapping[str, Any]], arm: str, metric: str) -> float | None:
    """The arm's median of one metric over the repeats that lived and have it; None where none does."""
    mine = (row for row in rows if row["arm"] == arm and row["status"] == "ok")
    values = [row[metric] for row in mine if row.get(metric) is not None]
    return float(median(values)) if values else None


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _counts(values: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    return counts
