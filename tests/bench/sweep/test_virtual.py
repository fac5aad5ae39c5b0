"""A real sweep, small enough to wait for: killed, taken up again, and then asked for once more."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import ROOT
from tests.bench.sweep.cells import FIXED, overrides

PATIENCE_S = 300


def sweep(folder: Path, *more: str) -> subprocess.Popen[str]:
    arms = f"{{{FIXED}, default: {{}}, broken: {{server_args: [--no-such-flag]}}}}"
    command = [sys.executable, "-m", "bench.sweep", *overrides(f"out_dir={folder}", "processes=1", *more, arms=arms)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(folder: Path) -> list[str]:
    path = folder / "results.jsonl"
    return path.read_text().split("\n")[:-1] if path.exists() else []


def ended(process: subprocess.Popen[str]) -> tuple[str, str]:
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    return out.splitlines()[-1], err


@pytest.mark.slow
def test_a_killed_sweep_is_taken_up_again_and_then_there_is_nothing_to_run(tmp_path: Path) -> None:
    process = sweep(tmp_path)
    deadline = time.monotonic() + PATIENCE_S
    while not finished(tmp_path) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    kept = finished(tmp_path)
    assert 1 <= len(kept) < 6

    line, _ = ended(sweep(tmp_path))
    assert finished(tmp_path)[: len(kept)] == kept
    assert len(finished(tmp_path)) == 6
    result = json.loads(line)
    for cell in result["cells"]:
        assert cell["arms"]["default"]["ratio"] == pytest.approx(1.0)
        assert cell["arms"]["default"]["attainment"] == 1.0
        assert cell["arms"]["broken"]["status"] == "crashed"
        assert "--no-such-flag" in cell["arms"]["broken"]["crash"] or "SystemExit" in cell["arms"]["broken"]["crash"]
    assert [row["crashes"] for row in result["summary"]] == [0, 0, 2]

    again, told = ended(sweep(tmp_path))
    assert again == line
    assert "6 of 6 results are in" in told.replace("\n", " ")
    assert len(finished(tmp_path)) == 6
