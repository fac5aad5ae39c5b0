"""Files of measured runs: what is read, and what is wrong with them."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from bench.silicon.runs import MeasuredRun, read_runs
from roofline_policies.errors import InputError

GOOD = {
    "run": "a", "model": "m/one", "device": "h200_sxm", "precision": "fp8", "gemm_quant": "fp8_block",
    "moe_quant": "", "sglang": "0.5.9", "tp": "4", "dp_attention": "", "moe_tp": "1", "moe_ep": "4",
    "input_tokens": "1000", "output_tokens": "101", "concurrency": "8", "ttft_ms": "250", "tpot_ms": "7.5",
    "measured": "2026-03-25",
}  # fmt: skip


def written(folder: Path, lines: Sequence[Mapping[str, str]], columns: Sequence[str] = tuple(GOOD)) -> Path:
    file = folder / "runs.csv"
    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(lines)
    return file


def test_a_run_is_read_in_seconds_and_ranks(tmp_path: Path) -> None:
    (run,) = read_runs(written(tmp_path, [GOOD]))
    assert run == MeasuredRun(
        "a", "m/one", "h200_sxm", "fp8", "fp8_block", "", "0.5.9", 4, 1, 1, 4, 1000, 101, 8, 0.25, 0.0075
    )
    assert run.group == "m/one fp8, h200_sxm tp4 ep4"


def test_columns_that_nobody_asks_for_may_be_there_or_not(tmp_path: Path) -> None:
    few = [name for name in GOOD if name not in ("precision", "measured", "dp_attention", "sglang")]
    (run,) = read_runs(written(tmp_path, [GOOD], [*few, "remark"]))
    assert (run.precision, run.sglang, run.dp_attention) == ("", "", 1)
    assert run.group == "m/one own precision, h200_sxm tp4 ep4"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"ttft_ms": "0"}, "ttft_ms is 0, not a number above 0"),
        ({"tpot_ms": "nan"}, "tpot_ms is nan, not a number above 0"),
        ({"tpot_ms": ""}, "tpot_ms is empty, not a number above 0"),
        ({"ttft_ms": "-3"}, "ttft_ms is -3, not a number above 0"),
        ({"ttft_ms": "inf"}, "ttft_ms is inf, not a number above 0"),
        ({"concurrency": "2.5"}, "concurrency is 2.5, not a whole number"),
        ({"tp": "eight"}, "tp is eight, not a number above 0"),
        ({"moe_ep": "0"}, "moe_ep is 0, not a number above 0"),
        ({"model": " "}, "model is empty"),
    ],
)
def test_values_that_cannot_be_are_all_named(tmp_path: Path, change: dict[str, str], told: str) -> None:
    file = written(tmp_path, [GOOD, {**GOOD, **change, "run": "b"}, {**GOOD, "run": "c", "output_tokens": "x"}])
    with pytest.raises(InputError) as refused:
        read_runs(file)
    assert f"line 3 (b): {told}" in str(refused.value)
    assert "line 4 (c): output_tokens is x" in str(refused.value)
    assert str(file) in str(refused.value)


def test_two_runs_of_one_name_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="line 3: run 'a' is that of line 2 as well"):
        read_runs(written(tmp_path, [GOOD, GOOD]))


def test_a_file_with_many_faults_says_how_many_more(tmp_path: Path) -> None:
    lines = [{**GOOD, "run": str(n), "ttft_ms": "0"} for n in range(15)]
    with pytest.raises(InputError, match=r"; and 3 more"):
        read_runs(written(tmp_path, lines))


@pytest.mark.parametrize("column", ["tpot_ms", "concurrency", "model", "moe_tp"])
def test_a_missing_column_is_named(tmp_path: Path, column: str) -> None:
    with pytest.raises(InputError, match=f"has no column {column}"):
        read_runs(written(tmp_path, [GOOD], [name for name in GOOD if name != column]))


def test_a_file_that_is_not_there_and_one_without_runs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_runs(tmp_path / "none.csv")
    with pytest.raises(InputError, match="has no run"):
        read_runs(written(tmp_path, []))
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00run")
    with pytest.raises(InputError, match="is not CSV"):
        read_runs(tmp_path / "bytes")
