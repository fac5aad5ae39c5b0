"""``python -m bench.silicon`` from a file of runs to its page, with SGLang's real scheduler."""

from __future__ import annotations

import csv
import json
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import bench.silicon.__main__ as command
from roofline_policies.errors import EXIT_BAD_INPUT
from tests.bench.silicon.test_runs import GOOD

DENSE = {
    **GOOD, "run": "small", "model": "Qwen/Qwen3-32B", "device": "h100_sxm", "precision": "", "gemm_quant": "",
    "tp": "4", "moe_ep": "1", "input_tokens": "200", "output_tokens": "6", "concurrency": "2", "ttft_ms": "100",
    "tpot_ms": "10",
}  # fmt: skip


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    """The command takes SIGTERM for itself."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def written(folder: Path, *lines: Mapping[str, str]) -> str:
    file = folder / "runs.csv"
    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, tuple(GOOD))
        writer.writeheader()
        writer.writerows(lines)
    return f"runs={file}"


def test_runs_are_predicted_or_listed_with_the_reason_and_again_from_what_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    more = {**DENSE, "run": "more", "concurrency": "4", "ttft_ms": "150"}
    wide = {**DENSE, "run": "wide", "tp": "16"}
    split = {**DENSE, "run": "split", "moe_tp": "3", "moe_ep": "2"}
    other = {**DENSE, "run": "other", "model": "nobody/nothing"}
    odd = {**DENSE, "run": "odd", "tp": "7"}
    runs = written(tmp_path, DENSE, more, wide, split, other, odd)
    words = [runs, f"out_dir={tmp_path / 'out'}", "prompts_per_slot=3"]
    assert command.main(words) == 0
    printed = capsys.readouterr().out
    told = json.loads(printed.splitlines()[-1])
    assert (told["runs"], told["predicted"]) == (6, 2)
    reasons = {one["run"]: one["reason"] for one in told["refused"]}
    assert set(reasons) == {"wide", "split", "other", "odd"}
    assert "tp 16 on a machine of 8 devices" in reasons["wide"]
    assert "experts over 3 x 2 ranks, of 4" in reasons["split"]
    assert "no configuration of nobody/nothing" in reasons["other"]
    assert "--tp 7" in reasons["odd"]
    assert told["ranking"]["ttft"] == {"pairs": 1, "right": 1}
    result = json.loads((tmp_path / "out" / "silicon.json").read_text())
    for row in result["rows"]:
        for name in ("ttft", "tpot"):
            seconds = sum(
                value for part, value in row[f"{name}_parts"].items()
                if part.partition("_")[2] not in ("steps", "kernels", "eager_kernels", "rows", "requests")
            )  # fmt: skip
            front_s = result["constants"]["h100_sxm"]["front_s"] if name == "ttft" else 0.0
            assert seconds + front_s == pytest.approx(row["predicted"][name], rel=1e-6)
    page = (tmp_path / "out" / "silicon.html").read_text()
    assert "Not predicted" in page
    assert "nobody/nothing" in page
    # Everything is there: nothing runs, and the same bytes come out.
    monkeypatch.setattr(command, "run_each", None)
    assert command.main(words) == 0
    assert capsys.readouterr().out == printed


def test_a_file_with_a_run_that_cannot_be_ends_before_anything_is_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.silicon.settings.built", None)
    bad = {**DENSE, "run": "bad", "tpot_ms": "nan"}
    assert command.main([written(tmp_path, DENSE, bad), f"out_dir={tmp_path / 'out'}"]) == EXIT_BAD_INPUT
    assert "line 3 (bad): tpot_ms is nan" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("only=[none]", "is no run and in no group"),
        ("virtual=['device.no_such=1']", "no_such"),
        ("least_prompts_per_slot=2", "least_prompts_per_slot = 2"),
        ("arguments=none", "none"),
    ],
)
def test_mistakes_of_all_runs_are_the_users(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], word: str, told: str
) -> None:
    assert command.main([written(tmp_path, DENSE), f"out_dir={tmp_path / 'out'}", word]) == EXIT_BAD_INPUT
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
