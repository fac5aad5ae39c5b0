"""Where published traces lie, if they do (the project ships none), and how a trace of a test's own is read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from bench.traffic.notes import Tally
from bench.traffic.request import Request
from bench.traffic.trace import TraceKeys, read_trace
from tests import ROOT

FOLDER = Path(os.environ.get("ROOFLINE_TRACES") or ROOT.parent / "shared" / "traces")


def shared_trace(name: str) -> Path:
    """Path of a published trace; skips the test where it is absent."""
    path = FOLDER / name
    if not path.is_file():
        pytest.skip(f"{name} is not here; set ROOFLINE_TRACES to the folder that holds it")
    return path


def read(path: Path, kind: str = "trace", seed: int = 0, **keys: Any) -> list[Request]:
    """The requests of a trace as ``traffic=KIND`` reads them, no window cut."""
    return list(read_trace(TraceKeys(str(path), kind, **keys), seed, Tally()))
