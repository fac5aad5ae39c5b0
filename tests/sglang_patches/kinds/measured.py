"""What SGLang's model runner, torch and the walk say of each kind: measured once for all tests of a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch

from bench.tiny_models import KINDS, build

REQUESTS = [(20, 0), (37, 0)], [(20, 11), (3, 70)]
"""(new rows, rows before them) of two batches: fresh prompts, and prompts behind what is cached."""

FOLDER = tempfile.TemporaryDirectory(prefix="roofline-kinds-")


@cache
def measured(kind: str) -> tuple[Path, dict[str, Any]]:
    """The checkpoint of a kind, and what ``walked`` prints of it; quantized kinds in 16 bits, the others in 32."""
    stored = KINDS[kind].stored is not None
    dtype = torch.bfloat16 if stored else torch.float32
    model = build(Path(FOLDER.name) / kind, kind, dtype=dtype)
    command = [sys.executable, "-m", "tests.sglang_patches.kinds.walked", str(model), str(dtype).removeprefix("torch.")]
    # Torch's compiler refuses to run below what counts.
    environment = os.environ | {"TORCHDYNAMO_DISABLE": "1", "PYTHONDONTWRITEBYTECODE": "", "TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [*command, *("+".join(f"{new},{prefix}" for new, prefix in batch) for batch in REQUESTS)],
        capture_output=True, text=True, env=environment, timeout=600, check=False,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("WALKED ")]
    assert lines, done.stdout + done.stderr
    return model, json.loads(lines[0].removeprefix("WALKED "))
