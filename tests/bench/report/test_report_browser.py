"""The report in a real browser, where there is one: every figure is drawn, nothing is fetched, nothing fails."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from bench.report.rendering import write_report
from tests.bench.report.test_report import RUNS, result_of

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
QUIET = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
QUIET += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]


def opened(page: Path, folder: Path) -> tuple[str, list[str]]:
    """The page's document once its scripts have run, and what the browser complained of. folder: for its profile."""
    assert BROWSER is not None
    command = [BROWSER, *QUIET, f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr"]
    command += ["--virtual-time-budget=20000", "--dump-dom", page.as_uri()]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return ran.stdout, re.findall(r"CONSOLE.*(?:Error|Refused|Failed).*", ran.stderr)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_every_figure_is_drawn(tmp_path: Path) -> None:
    document, complaints = opened(write_report(tmp_path / "report.html", result_of(RUNS), RUNS), tmp_path)
    for figure in ("latency", "load", "knobs", "roofline"):
        drawn = document.partition(f'<div id="{figure}"')[2]
        assert 'class="main-svg"' in drawn.partition("<h2>")[0], figure
    assert complaints == []
