"""Our series on /metrics: names and labels, from processes of their own to the page that SGLang mounts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families as text_families

from roofline_policies.contract.decision import Knob
from roofline_policies.contract.view import ForwardMode
from tests import ROOT

PROCESS = Path(__file__).parent / "metrics_process.py"
ACCEPT = {
    "text": "text/plain;version=0.0.4",
    "text_1_0": "text/plain;version=1.0.0;escaping=allow-utf-8",
    "underscores": "text/plain;version=1.0.0;escaping=underscores",
    "openmetrics": "application/openmetrics-text;version=1.0.0",
    "openmetrics_underscores": "application/openmetrics-text;version=1.0.0;escaping=underscores",
    "openmetrics_utf8": "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8",
}
"""What Prometheus 2 and 3 and an OpenMetrics scraper ask for."""


def process(folder: Path, rank: int, runs_s: float, state: str, end: str) -> subprocess.Popen[str]:
    """A process that publishes; see metrics_process."""
    env = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)}
    command = [sys.executable, str(PROCESS), str(rank), str(runs_s), state, end]
    return subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def published(folder: Path, rank: int, runs_s: float, state: str = "busy", end: str = "killed") -> None:
    """Runs a process that publishes and ends."""
    process(folder, rank, runs_s, state, end).communicate(timeout=120)


@contextmanager
def publishing(folder: Path, rank: int, runs_s: float) -> Iterator[subprocess.Popen[str]]:
    """A process that has published and lives on."""
    with process(folder, rank, runs_s, "busy", "waits") as there:
        assert there.stdout is not None
        assert there.stdout.readline() == "published\n"
        yield there
        there.communicate(timeout=120)


def scraped(folder: Path, accept: str = ACCEPT["text"]) -> dict[str, dict[str, float]]:
    """Values by name and by their labels other than the served model's, as a parser of that format reads them."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(folder))
    encode, content_type = choose_encoder(accept)
    parse = openmetrics_families if "openmetrics" in content_type else text_families
    found: dict[str, dict[str, float]] = {}
    for family in parse(encode(registry).decode()):
        for sample in family.samples:
            assert sample.labels["model_name"] == "a model"
            labels = ",".join(value for key, value in sorted(sample.labels.items()) if key != "model_name")
            found.setdefault(sample.name, {})[labels] = sample.value
    return found


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the page is before the first request."""
    folder = tmp_path_factory.mktemp("fresh")
    published(folder, 0, 0.0)
    return folder


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half a second after two steps, while requests run."""
    folder = tmp_path_factory.mktemp("used")
    published(folder, 0, 2.5)
    return folder


def test_every_series_is_there_from_the_start(fresh: Path, used: Path) -> None:
    first, later = scraped(fresh), scraped(used)
    assert {name: set(values) for name, values in first.items()} == {name: set(v) for name, v in later.items()}
    phases = {f"0,{phase.value}" for phase in ForwardMode}
    by_phase = ("compute_ratio", "memory_bandwidth_ratio", "issued_flops_total", "prediction_error_ratio")
    for name in (f"roofline_{one}" for one in (*by_phase, "prediction_margin_ratio")):
        assert first[name] == dict.fromkeys(phases, 0.0)
    assert first["roofline_knob_changes_total"] == {f"0,{knob.value}": 0.0 for knob in Knob}
    assert first["roofline_knob"]["0,max_running_requests"] == 64
    assert first["roofline_policy_fallback"] == first["roofline_loop_seconds_count"] == {"0": 0.0}
    assert first["roofline_compute_ceiling_flops_per_second"] == {"0,bf16": 100.0}
    assert first["roofline_target_tightening_ratio"] == {"0,per_gap": 1.0, "0,mean": 1.0}
    assert first["roofline_late_gaps_ratio"] == {"0,per_gap": 0.0, "0,mean": 0.0}


def test_values(used: Path) -> None:
    page = scraped(used)
    assert page["roofline_compute_ratio"] == {"0,prefill": 0, "0,decode": 0.5, "0,mixed": 0}
    assert page["roofline_memory_bandwidth_ratio"]["0,decode"] == 0.4
    assert page["roofline_intensity_flops_per_byte"]["0,decode"] == 12.5
    assert page["roofline_prediction_error_ratio"] == {"0,prefill": 0, "0,decode": 0.5, "0,mixed": 0}  # 1 and 0
    assert page["roofline_prediction_margin_ratio"]["0,decode"] > 1
    assert page["roofline_prediction_margin_ratio"]["0,prefill"] == 0
    assert page["roofline_issued_flops_total"]["0,decode"] == 100
    assert page["roofline_forward_seconds_total"]["0,decode"] == 2.0
    assert page["roofline_new_tokens_total"] == {"0,prefill": 0, "0,decode": 16, "0,mixed": 0}
    assert page["roofline_knob"]["0,max_running_requests"] == 32
    assert page["roofline_knob_changes_total"]["0,max_running_requests"] == 1
    assert page["roofline_loop_seconds_sum"] == {"0": 2e-4}
    assert page["roofline_memory_ceiling_bytes_per_second"] == {"0": 10.0}


@pytest.mark.parametrize("accept", ACCEPT.values(), ids=ACCEPT)
def test_names_labels_and_values_are_the_same_in_every_format(used: Path, accept: str) -> None:
    assert scraped(used, accept) == scraped(used)


def test_names_are_as_prometheus_asks_for(used: Path) -> None:
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(used))
    for family in registry.collect():
        assert re.fullmatch(r"roofline_[a-z_]+", family.name), family.name
        for sample in family.samples:
            if family.type == "counter":
                assert sample.name.endswith("_total")
            for key in ("le", "quantile"):
                if key in sample.labels:
                    float(sample.labels[key])
            assert all(re.fullmatch(r"[a-z_]+", key) for key in sample.labels)


def test_the_documentation_lists_the_series(used: Path) -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    table = page.partition("## Series of a server\n")[2]
    rows = [line.split("|") for line in table.splitlines() if line.startswith("| `roofline_")]
    listed = {name: kind.strip() for _, names, kind, *_ in rows for name in re.findall(r"`(\w+)`", names)}
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(used))
    there = {family.name + "_total" * (family.type == "counter"): family.type for family in registry.collect()}
    assert listed == there


def test_when_nothing_is_left_to_do_gauges_are_zero_at_once_and_counters_stay(tmp_path: Path) -> None:
    published(tmp_path, 0, 2.0, "idle")
    page = scraped(tmp_path)
    for name in ("roofline_compute_ratio", "roofline_memory_bandwidth_ratio", "roofline_intensity_flops_per_byte"):
        assert set(page[name].values()) == {0.0}
    assert page["roofline_issued_flops_total"]["0,decode"] == 100
    assert page["roofline_knob"]["0,max_running_requests"] == 32


def test_a_phase_that_no_longer_runs_is_zero_while_others_do(tmp_path: Path) -> None:
    """Its steps took a second: after two of them none is in flight."""
    published(tmp_path, 0, 4.5)
    assert set(scraped(tmp_path)["roofline_compute_ratio"].values()) == {0.0}


def test_data_parallel_ranks_are_told_apart(tmp_path: Path) -> None:
    with publishing(tmp_path, 0, 2.5), publishing(tmp_path, 1, 0.0):
        page = scraped(tmp_path)
    assert page["roofline_compute_ratio"]["0,decode"] == 0.5
    assert page["roofline_compute_ratio"]["1,decode"] == 0.0
    assert page["roofline_knob"]["1,max_running_requests"] == 64
    assert len(page["roofline_loop_seconds_count"]) == 2


def only_counts(page: dict[str, dict[str, float]], rank: str) -> None:
    """Of this rank there are counts and no gauges."""
    for name, values in page.items():
        here = {labels for labels in values if labels.startswith(rank)}
        counts = name.endswith("_total") or name.startswith("roofline_loop_seconds")
        assert bool(here) is counts, name
    assert page["roofline_issued_flops_total"][f"{rank},decode"] == 100


def test_a_process_that_ends_in_order_takes_its_gauges_with_it_and_its_counts_stay(tmp_path: Path) -> None:
    with publishing(tmp_path, 1, 2.5):
        published(tmp_path, 0, 2.5, end="orderly")
        page = scraped(tmp_path)
    only_counts(page, "0")
    assert page["roofline_compute_ratio"]["1,decode"] == 0.5


def test_the_gauges_of_a_process_that_was_killed_go_when_the_next_server_starts(tmp_path: Path) -> None:
    """As with a directory that somebody chose, which outlives the server."""
    with publishing(tmp_path, 2, 2.5):
        published(tmp_path, 1, 2.5, end="killed")
        assert scraped(tmp_path)["roofline_compute_ratio"]["1,decode"] == 0.5
        published(tmp_path, 0, 2.5)
        page = scraped(tmp_path)
    only_counts(page, "1")
    assert page["roofline_compute_ratio"]["0,decode"] == page["roofline_compute_ratio"]["2,decode"] == 0.5
