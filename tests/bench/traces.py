"""Where published traces lie, if they do: the project ships none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

FOLDER = Path(os.environ.get("ROOFLINE_TRACES") or Path(__file__).parents[3] / "shared" / "traces")


def shared_trace(name: str) -> Path:
    """Path of a published trace; skips the test where it is absent."""
    path = FOLDER / name
    if not path.is_file():
        pytest.skip(f"{name} is not here; set ROOFLINE_TRACES to the folder that holds it")
    return path
