"""Hardware counters of kernels, read by Nsight Compute (`ncu`) in a process of their own."""

from __future__ import annotations

import csv
import shutil
import subprocess
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from roofline_policies.errors import RooflineError
from roofline_policies.work import Precision

READ, WRITTEN = "dram__bytes_read.sum", "dram__bytes_write.sum"
TENSOR: Mapping[Precision, str] = {
    Precision.BF16: "sm__ops_path_tensor_src_bf16_dst_fp32.sum",
    Precision.FP16: "sm__ops_path_tensor_src_fp16_dst_fp32.sum",
}
"""Operations of the tensor pipes, a multiply-add as two."""

NOT_PERMITTED = "ERR_NVGPUCTRPERM"


class NcuError(RooflineError):
    """Hardware counters cannot be read: `ncu` is missing, not permitted, or failed."""


class Hardware(NamedTuple):
    """What the device counted for one kernel: FLOPs of the tensor pipes, bytes of DRAM."""

    kernel: str
    tensor_flops: int
    read_bytes: int
    written_bytes: int


def profile(command: Sequence[str], kernels: Collection[str], precision: Precision, timeout_s: float) -> list[Hardware]:
    """Runs `command` under ncu, between cudaProfilerStart and cudaProfilerStop; the launches of `kernels`, in order.

    Caches are emptied before each kernel, clocks are left as they are.

    Raises:
        NcuError: see there.
    """
    program = shutil.which("ncu")
    if program is None:
        raise NcuError("ncu is not on PATH")
    options = ["--csv", "--page", "raw", "--print-units", "base", "--profile-from-start", "off", "--target-processes"]
    options += ["all", "--clock-control", "none", "--cache-control", "all", "--kernel-name-base", "function"]
    options += ["--kernel-name", f"regex:^({'|'.join(kernels)})$"]
    options += ["--metrics", ",".join((READ, WRITTEN, TENSOR[precision]))]
    try:
        done = subprocess.run(
            [program, *options, *command], capture_output=True, text=True, timeout=max(1.0, timeout_s), check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NcuError(f"ncu: {error}") from error
    if NOT_PERMITTED in done.stdout + done.stderr:
        raise NcuError(f"ncu is not permitted to read hardware counters ({NOT_PERMITTED})")
    if done.returncode:
        last = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise NcuError(f"ncu: exit code {done.returncode}: {last[-1] if last else 'no output'}")
    return parse(done.stdout, kernels, precision)


def parse(text: str, kernels: Collection[str], precision: Precision) -> list[Hardware]:
    """The launches of `kernels` in what `ncu --csv --page raw --print-units base` prints.

    Raises:
        NcuError: it holds no table with these metrics.
    """
    lines = text.splitlines()
    start = next((at for at, line in enumerate(lines) if line.startswith('"ID"')), None)
    rows = [] if start is None else list(csv.DictReader(lines[start:]))
    if not rows or any(metric not in rows[0] for metric in (READ, WRITTEN, TENSOR[precision])):
        raise NcuError("ncu printed no table of the metrics asked for")
    return [
        Hardware(row["Kernel Name"], *(_whole(row[metric]) for metric in (TENSOR[precision], READ, WRITTEN)))
        for row in rows[1:]  # the first row holds the units
        if row["Kernel Name"] in kernels
    ]


def _whole(cell: str) -> int:
    return round(float(cell.replace(",", ""))) if cell else 0
