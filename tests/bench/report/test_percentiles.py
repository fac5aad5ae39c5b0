"""Percentiles that are chosen: in rows, tables, pages and keys of results; what cannot be one is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from bench.composition import read_config
from bench.live.settings import LiveSettings
from bench.report.columns import brief, columns
from bench.report.metrics import summarise
from bench.report.percentiles import PERCENTILES, label, read_percentiles, reported
from bench.report.records import ArmRun
from bench.report.rendering import shown_columns, verdict_table, write_report
from bench.slo import JudgedSlo
from bench.sweep.keys import cell_digest
from bench.sweep.page import shown_columns as sweep_columns
from bench.virtual.settings import Experiment
from roofline_policies.errors import InputError
from tests.bench.report.test_itl import streamed
from tests.bench.report.test_report import result_of, run
from tests.bench.sweep.cells import settings as sweep_settings

SLO = JudgedSlo(1.0, 0.1)


def test_keys_are_named_as_people_say_them() -> None:
    assert [label(one) for one in (50.0, 99.0, 99.9, 0.5, 100.0, 99.999)] == [
        "p50", "p99", "p99.9", "p0.5", "p100", "p99.999"
    ]  # fmt: skip
    assert reported((99.9, 50.0)) == [50.0, 90.0, 95.0, 99.0, 99.9]


def test_every_latency_has_the_standard_percentiles_and_the_chosen() -> None:
    rng = np.random.default_rng(3)
    records = []
    for place in range(40):
        times = np.cumsum(rng.uniform(0.01, 0.4, 12))
        records.append(streamed(*((float(at), 1) for at in times), index=place))
    row = summarise(ArmRun("x", 0, tuple(records), ()), SLO, None, (99.9, 75.0))
    arrivals = np.asarray([one.token_s for one in records])
    values = {
        "ttft": arrivals[:, 0], "itl": np.diff(arrivals).ravel(), "icl": np.diff(arrivals).ravel(),
        "tpot": (arrivals[:, -1] - arrivals[:, 0]) / 11, "e2e": arrivals[:, -1],
    }  # fmt: skip
    for name, known in values.items():
        for percent in (50, 75, 90, 95, 99, 99.9):
            expected = np.percentile(known, percent)
            assert row[f"{name}_p{percent}_s"] == pytest.approx(expected), (name, percent)
            assert row["phases"][""][f"{name}_p{percent}_s"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "percentiles = []: is not a list of percentiles"),
        (99, "percentiles = 99: is not a list of percentiles"),
        ("p99", "percentiles = 'p99': is not a list of percentiles"),
        ([50, "p99"], "percentiles = 'p99': is not a finite number"),
        ([True], "percentiles = True: is not a finite number"),
        ([float("nan")], "percentiles = nan: is not a finite number"),
        ([50, None], "percentiles = None: is not a finite number"),
        ([0], "percentiles = 0: is out of range"),
        ([50, -1], "percentiles = -1: is out of range"),
        ([100.5], "percentiles = 100.5: is out of range"),
        ([50, 99, 50.0], "percentiles = 50: is there twice"),
    ],
)
def test_what_is_no_percentile_is_refused(value: object, message: str) -> None:
    with pytest.raises(InputError) as refused:
        read_percentiles({"percentiles": value}, "live")
    assert str(refused.value).startswith(f"live: {message}; allowed: a list of different numbers > 0 and <= 100")


def test_null_and_absent_are_the_standard_ones_and_order_does_not_matter() -> None:
    assert read_percentiles({}, "live") == read_percentiles({"percentiles": None}, "live") == PERCENTILES
    assert read_percentiles({"percentiles": [99.9, 50]}, "live") == (50.0, 99.9)


def test_all_three_commands_take_them(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"vocab_size": 1000, "max_position_embeddings": 1024}')
    chosen = "percentiles=[50,99.9]"
    live = LiveSettings.from_config(read_config("live", [f"model_path={tmp_path}", chosen]))
    experiment, _ = Experiment.from_config(read_config("virtual", [chosen, "traffic.max_requests=2"]))
    swept = sweep_settings(chosen)
    found = [live.percentiles, experiment.percentiles, swept.percentiles, swept.cells[0].experiment.percentiles]
    assert found == [(50.0, 99.9)] * 4
    bad = {**read_config("virtual", ["traffic.max_requests=2"]), "percentiles": [101]}
    with pytest.raises(InputError, match="virtual: percentiles = 101: is out of range"):
        Experiment.from_config(bad)
    with pytest.raises(InputError, match="sweep: percentiles = 101: is out of range"):
        sweep_settings("percentiles=[101]")


def test_a_result_without_a_percentile_that_is_asked_for_is_stale() -> None:
    standard = cell_digest("run", SLO, None)
    assert cell_digest("run", SLO, None, (50.0, 99.0)) == standard  # it holds those
    assert cell_digest("run", SLO, None, (50.0, 99.9)) != standard


def test_tables_and_pages_show_what_was_chosen(tmp_path: Path) -> None:
    runs = [run("static", 0, 0.5)]
    rows = [summarise(one, SLO, 2.0, (50.0, 99.9)) for one in runs]
    result = {**result_of(runs), "runs": rows, "percentiles": [50.0, 99.9]}
    titles = [column.title for column in shown_columns(result)]
    for title in ("TTFT P50 s", "TTFT P99.9 s", "ITL P50 ms", "ITL P99.9 ms", "E2E P50 s", "E2E P99.9 s"):
        assert title in titles
    assert not any("P99 " in title and title.startswith(("TTFT", "ITL", "E2E")) for title in titles)
    assert "ITL P99.9 ms" in write_report(tmp_path / "r.html", result, runs).read_text("utf-8")
    assert "TTFT P99.9 s" in [column.title for column in sweep_columns((50.0, 99.9))]


def test_the_standard_table_has_p90_and_p95_of_each_latency() -> None:
    titles = {column.title for column in columns(PERCENTILES)}
    for percent in (50, 90, 95, 99):
        assert {f"TTFT P{percent} s", f"ITL P{percent} ms", f"E2E P{percent} s"} <= titles
        assert {f"ttft_p{percent}_s", f"itl_p{percent}_s"} <= set(brief(PERCENTILES)[0])


LARGE: dict[str, Any] = {
    "regret": -1.235, "deferrals": 12345, "longest_wait_s": 123.4, "output_tokens_per_s": 12345.6, "retractions": 4321,
    "ttft_p99_s": 120.55, "itl_p99_s": 1.2345, "short": 30, "aborted": 7, "knob_changes": 1234, "cache_hit_rate": 0.5,
}  # fmt: skip


@pytest.mark.parametrize("arms", [3, 12])
def test_no_figure_is_cut_off_in_100_columns(arms: int) -> None:
    result = result_of([run(f"exclusive_c{512 * place}_r64", 0, 0.5) for place in range(arms)])
    for row in result["runs"]:
        row |= LARGE
    console = Console(width=100)
    with console.capture() as capture:
        console.print(verdict_table(result))
    text = capture.get()
    assert "…" not in text
    for figure in ("-123.5", "12345.6", "4321", "120.55", "1234.5", "123.40", "12345", "1234"):
        assert text.count(figure) >= arms, figure
