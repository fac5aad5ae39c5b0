"""The metrics that tables of arms show, in order: titles, formats, and when there is something to show."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.report.percentiles import label

Rows = Sequence[Mapping[str, Any]]

GROUPED = 1.1
"""Tokens per chunk from which gaps of chunks are shown beside gaps of tokens; a busy client now and then reads two."""


def always(rows: Rows) -> bool:
    return True


def weighted(rows: Rows) -> bool:
    """Whether classes count for different amounts anywhere in these rows."""
    pairs = ((row.get("weighted_goodput_per_s"), row.get("goodput_per_s")) for row in rows)
    return any(None not in (heavy, plain) and heavy != plain for heavy, plain in pairs)


@dataclass(frozen=True, slots=True)
class Column:
    """One metric. scale: from the metric's unit to the shown one. when: whether these rows have anything to show."""

    title: str
    metric: str
    form: str
    scale: float = 1.0
    when: Callable[[Rows], bool] = always

    def text(self, row: Mapping[str, Any], absent: str) -> str:
        """The row's value as shown; ``absent`` where it has none."""
        value = row.get(self.metric)
        return absent if value is None else format(value * self.scale, self.form)


def latency_columns(name: str, title: str, unit: str, percentiles: Sequence[float]) -> list[Column]:
    """A column for each percentile of a latency; ``unit``: s or ms. Gaps of chunks appear where chunks hold tokens."""
    form, scale = (".2f", 1.0) if unit == "s" else (".1f", 1e3)
    when = _grouped if name == "icl" else always
    return [
        Column(f"{title} {label(one).upper()} {unit}", f"{name}_{label(one)}_s", form, scale, when)
        for one in percentiles
    ]


def columns(percentiles: Sequence[float]) -> list[Column]:
    """Every column of a table of arms, with these percentiles of the latencies."""
    return [
        Column("goodput req/s", "goodput_per_s", ".2f"),
        Column("good req/s arriving", "goodput_arrivals_per_s", ".2f"),
        Column("weighted goodput /s", "weighted_goodput_per_s", ".2f", when=weighted),
        Column("weighted good tok/s", "weighted_good_tokens_per_s", ".0f", when=weighted),
        Column("SLO met %", "attainment", ".1f", 100.0),
        Column("output tok/s", "output_tokens_per_s", ".1f"),
        Column("$/M output tok", "usd_per_million_output_tokens", ".2f"),
        *latency_columns("ttft", "TTFT", "s", percentiles),
        *latency_columns("itl", "ITL", "ms", percentiles),
        Column("TPOT mean ms", "tpot_mean_s", ".1f", 1e3),
        Column("tokens per chunk", "tokens_per_chunk", ".2f", when=_grouped),
        Column("drafts accepted %", "draft_acceptance", ".1f", 100.0, when=_any("draft_acceptance")),
        Column("rejected drafts/tok", "drafts_rejected_per_token", ".2f", when=_any("drafts_rejected_per_token")),
        *latency_columns("icl", "ICL", "ms", percentiles),
        *latency_columns("e2e", "E2E", "s", percentiles),
        Column("KV max %", "kv_use_max", ".0f", 100.0),
        Column("retractions", "retractions", ".0f"),
        Column("longest wait s", "longest_wait_s", ".2f", when=_any("longest_wait_s")),
        Column("deferrals", "deferrals", ".0f", when=_any("deferrals")),
        Column("cache hit %", "cache_hit_rate", ".1f", 100.0),
        Column("knob changes", "knob_changes", ".0f"),
        Column("policy P99 µs", "policy_time_p99_s", ".0f", 1e6),
        Column("send slip P99 ms", "slip_p99_s", ".1f", 1e3),
        *endings(),
        Column("regret %", "regret", ".1f", 100.0, when=_any("regret")),
    ]


def endings() -> list[Column]:
    """How many requests were not completed, by how they ended: errors always, the others where there are any."""
    rare = [Column(f"{one} answers", one, ".0f", when=_more_than_none(one)) for one in ("short", "empty", "aborted")]
    return [*rare, Column("errors", "errors", ".0f")]


def brief(percentiles: Sequence[float]) -> tuple[dict[str, str], dict[str, str]]:
    """What is shown with an arm per line, as two tables of 100 columns of text: metrics and their short headings."""
    latencies = {
        f"{name}_{label(one)}_s": f"{name.upper()}\n{label(one).upper()} {unit}"
        for name, unit in (("ttft", "s"), ("itl", "ms"))
        for one in percentiles
    }
    first = {"goodput_per_s": "good\nreq/s", "attainment": "SLO\nmet %", **latencies}
    second = {
        "goodput_arrivals_per_s": "good/s\nof arr.",
        "weighted_goodput_per_s": "wght'd\ngood/s",
        "output_tokens_per_s": "out\ntok/s",
        "kv_use_max": "KV\nmax %",
        "retractions": "re-\ntract",
        "longest_wait_s": "longest\nwait s",
        "deferrals": "de-\nferred",
        "cache_hit_rate": "hit\n%",
        "knob_changes": "knobs\nmoved",
        "short": "\nshort",
        "empty": "\nempty",
        "aborted": "\nabort",
        "errors": "\nerrors",
        "regret": "regret\n%",
    }
    return first, second


def _any(metric: str) -> Callable[[Rows], bool]:
    return lambda rows: any(row.get(metric) is not None for row in rows)


def _more_than_none(metric: str) -> Callable[[Rows], bool]:
    return lambda rows: any(row.get(metric) for row in rows)


def _grouped(rows: Rows) -> bool:
    return any((row.get("tokens_per_chunk") or 0.0) >= GROUPED for row in rows)
