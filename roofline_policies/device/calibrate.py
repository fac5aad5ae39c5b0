"""Calibration: measure a device's ceilings in ten seconds, and remember them.

What is measured, each as the best of many repeats (a ceiling is what the device can do when nothing disturbs it):

- FLOP/s by precision: square matrix products of random data, of growing size. FP32 is plain FP32 (no TF32).
- bytes/s: the best of three streams over buffers far larger than the last-level cache: a copy (bytes read and bytes
  written both count), a sum (one buffer read) and a dot product (two buffers read).

A best that hardly any repeat comes near was disturbed: its figure is measured again. If that does not help, or others
used the device when it began, the ceilings are marked (``Ceilings.caveat``), and measured anew at the next launch that
finds the device free. Of a GPU the clock is kept with them, so that they can follow it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from roofline_policies.device import calibration_file
from roofline_policies.device.calibration_file import Calibration, DeviceState
from roofline_policies.device.hardware import CALIBRATE, Ceilings
from roofline_policies.device.nvml import Nvml, open_nvml
from roofline_policies.device.occupied import cpu_busy
from roofline_policies.device.rates import (
    ATTEMPTS,
    SIZES,
    SPREAD_LIMIT,
    Progress,
    Rate,
    cpu_timer,
    cuda_timer,
    matmul_flops_per_s,
    product,
    settled,
    stream_buffer_bytes,
    stream_bytes_per_s,
)
from roofline_policies.errors import EXIT_BAD_INPUT, InputError
from roofline_policies.work import Precision

if TYPE_CHECKING:
    import torch

BUDGET_S = 10.0

AGAIN = 2
"""Attempts at each figure on a device on which ATTEMPTS did not help: launches there should not take a minute."""

OTHERS_FROM = SPREAD_LIMIT
"""Share of the time that others use a device, from which a measurement is marked: who takes a tenth of the time takes a
tenth of the rate, as far as repeats may differ. Load that never changes does not make repeats differ: beside 1.7 of two
cores a stream ran at 3.5 to 7 GB/s where it ran at 10.5 to 11 beside 1.3, and its repeats differed by 2%."""

ANEW = "they are measured anew at the next launch that finds the device free"

CLOCK_EVERY_S = 0.05
"""Time between two samples of the clock while products run: as short as NVML's own calls allow."""


def calibrate(
    device: str,
    threads: int | None = None,
    budget_s: float = BUDGET_S,
    progress: Progress = lambda _: None,
    attempts: int = ATTEMPTS,
) -> Calibration:
    """Measures a device's ceilings now.

    device: "cpu", "cuda" or "cuda:N".
    threads: CPU threads to measure with; None for as many as torch uses now. Of no meaning for CUDA.
    budget_s: seconds to spend, shared evenly among what is measured.
    progress: told, as it goes, what has been measured.
    attempts: see ``settled``; what is measured again takes its share of the budget again.

    Raises:
        InputError: there is no such device, or a number cannot be used.
    """
    import torch

    where, name, threads = _identify(device, threads)
    if not budget_s > 0:
        raise InputError("must be more than zero seconds", where="calibrate", key="budget_s", value=budget_s)
    timer = cuda_timer if where.type == "cuda" else cpu_timer
    rates: dict[Precision, Rate] = {}
    with _nvml(where) as nvml, _settings(where, threads):
        others = _others(where, nvml)
        precisions = [Precision.FP32, Precision.BF16, Precision.FP16]
        if where.type == "cuda" and torch.cuda.get_device_capability(where) >= (8, 9):
            precisions.append(Precision.FP8)
        share_s = budget_s / (len(precisions) + 1)
        with _clocks(nvml) as clocks_hz:
            for precision in precisions:
                measure = partial(matmul_flops_per_s, product(where, precision), SIZES[where.type], timer, share_s)
                try:
                    rate = settled(measure, precision, attempts, progress)
                except RuntimeError as error:
                    progress(f"{precision}: left out, the device does not offer it ({str(error).splitlines()[0]})")
                    continue
                rates[precision] = rate
                progress(f"{precision}: {rate.per_s / 1e12:.4g} TFLOP/s")
        memory_bytes = _memory_bytes(where)
        stream = partial(stream_bytes_per_s, where, stream_buffer_bytes(where, memory_bytes), timer, share_s, progress)
        memory = settled(stream, "memory", attempts, progress)
    with_threads = "" if threads is None else f", {threads} thread{'s' if threads > 1 else ''}"
    command = f"{CALIBRATE} --device {device}" + ("" if threads is None else f" --threads {threads}")
    spread = {precision.value: rate.spread for precision, rate in rates.items()} | {"memory": memory.spread}
    ceilings = Ceilings(
        device=name,
        flops_per_s={precision: rate.per_s for precision, rate in rates.items()},
        bytes_per_s=memory.per_s,
        memory_bytes=memory_bytes,
        usd_per_h=None,
        source=f"calibrated {datetime.now(UTC):%Y-%m-%d} by {command}, torch {torch.__version__}{with_threads}",
        clock_hz=median(clocks_hz) if clocks_hz else None,
        caveat=_caveat(others, spread),
    )
    return Calibration(ceilings, spread)


def cache_file(device: str, threads: int | None = None) -> Path:
    """Where the ceilings of this device, this many threads and this torch are kept; see calibration_file.folder.

    Raises:
        InputError: there is no such device, or a number cannot be used.
    """
    key = _key(device, threads)
    slug = re.sub(r"[^a-z0-9]+", "-", " ".join(str(v) for v in key.values() if v is not None).lower()).strip("-")
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:8]
    return calibration_file.folder() / f"{slug}-{digest}.json"


def cached(device: str, threads: int | None = None) -> Ceilings | None:
    """The ceilings a calibration left, marked ones too, or None; see calibration_file.read.

    Raises:
        InputError: there is no such device, or a number cannot be used.
    """
    kept = calibration_file.read(cache_file(device, threads), _key(device, threads), _state(device))
    return None if kept is None else kept.ceilings


def calibrated(
    device: str,
    threads: int | None = None,
    budget_s: float = BUDGET_S,
    progress: Progress = lambda _: None,
    force: bool = False,
) -> Ceilings:
    """The kept ceilings of a device, else (or with ``force``) measured now and kept. Arguments as for ``calibrate``.

    Ceilings that are marked count as not kept, unless others use the device now: they would be marked again. They were
    measured ATTEMPTS times, and take AGAIN attempts from then on.

    Raises:
        InputError: there is no such device, or a number cannot be used.
    """
    kept = None if force else cached(device, threads)
    if kept is not None and (kept.caveat is None or _occupied(device)):
        return kept
    measured = calibrate(device, threads, budget_s, progress, ATTEMPTS if kept is None else AGAIN)
    calibration_file.write(cache_file(device, threads), _key(device, threads), _state(device), measured)
    return measured.ceilings


def main(arguments: list[str] | None = None) -> int:
    """The command: a table, then one JSON line, on stdout; progress on stderr. Returns the exit code."""
    parser = argparse.ArgumentParser(prog=CALIBRATE, description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    parser.add_argument("--threads", type=int, help="CPU threads to measure with (default: as many as torch uses)")
    parser.add_argument("--force", action="store_true", help="measure again even where a calibration is kept")
    parser.add_argument("--json", action="store_true", help="print the JSON line only")
    options = parser.parse_args(arguments)
    try:
        ceilings = calibrated(options.device, options.threads, progress=_to_stderr, force=options.force)
        file = cache_file(options.device, options.threads)
    except InputError as error:
        print(error, file=sys.stderr)
        return EXIT_BAD_INPUT
    if ceilings.caveat is not None:
        _to_stderr(f"these ceilings may be too low: {ceilings.caveat}; {ANEW}")
    if not options.json:
        print(f"{ceilings.device} ({ceilings.source})")
        for precision, rate in ceilings.flops_per_s.items():
            ridge = ceilings.ridge_flops_per_byte(precision)
            print(f"  {precision:<7}{rate / 1e12:>12.4g} TFLOP/s   ridge at {ridge:.4g} FLOPs/byte")
        print(f"  memory {ceilings.bytes_per_s / 1e9:>12.4g} GB/s, {ceilings.memory_bytes / 1e9:.4g} GB")
        if ceilings.clock_hz is not None:
            print(f"  at an SM clock of {ceilings.clock_hz / 1e9:.4g} GHz")
        print(f"  kept in {file}")
    print(json.dumps(ceilings.to_dict()))
    return 0


def _others(device: torch.device, nvml: Nvml | None) -> float | None:
    """The share of the time that others use a device while this process leaves it alone; None where nobody can tell."""
    if nvml is None:
        return cpu_busy() if device.type == "cpu" else None
    sample = nvml.sample()
    return None if sample is None else sample.utilization


def _occupied(device: str) -> bool:
    where, _, _ = _identify(device, None)
    with _nvml(where) as nvml:
        return (_others(where, nvml) or 0.0) >= OTHERS_FROM


def _caveat(others: float | None, spread: Mapping[str, float | None]) -> str | None:
    """Why what was measured may be too low, None where nothing says so. others: see ``_others``, before it began."""
    found = [
        f"{what}: repeats differ by {share:.0%}"
        for what, share in spread.items()
        if share is not None and share > SPREAD_LIMIT
    ]
    if others is not None and others >= OTHERS_FROM:
        found.append(f"the device was {others:.0%} busy before it was measured")
    return ", ".join(found) or None


@contextmanager
def _nvml(device: torch.device) -> Iterator[Nvml | None]:
    """NVML's view of a CUDA device, None for others and where there is none."""
    import torch

    nvml = None
    if device.type == "cuda":
        nvml = open_nvml(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
    try:
        yield nvml
    finally:
        if nvml is not None:
            nvml.close()


@contextmanager
def _clocks(nvml: Nvml | None) -> Iterator[list[float]]:
    """The SM clocks of a device at work, Hz, as they are sampled while the context lasts; ready when it has ended."""
    found: list[float] = []
    if nvml is None:
        yield found
        return
    stop = threading.Event()

    def sample() -> None:
        while not stop.wait(CLOCK_EVERY_S):
            now = nvml.sample()
            if now is not None and now.busy and now.sm_clock_hz is not None:
                found.append(now.sm_clock_hz)

    thread = threading.Thread(target=sample, name="roofline-clocks", daemon=True)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()


def _state(device: str) -> DeviceState:
    where, _, _ = _identify(device, None)
    with _nvml(where) as nvml:
        sample = None if nvml is None else nvml.sample()
        driver = None if nvml is None else nvml.driver
    return DeviceState(driver, None if sample is None else sample.power_limit_w)


def _identify(device: str, threads: int | None) -> tuple[torch.device, str, int | None]:
    """The device for torch, its name, and the threads that tell (None for CUDA)."""
    import torch

    found = re.fullmatch(r"cpu|cuda(?::(\d+))?", device)
    if found is None:
        raise InputError("no such device", where="calibrate", key="device", value=device, allowed="cpu, cuda, cuda:N")
    if threads is not None and threads < 1:
        raise InputError("must be at least 1", where="calibrate", key="threads", value=threads)
    if device == "cpu":
        return torch.device("cpu"), cpu_name(), threads or torch.get_num_threads()
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = int(found[1]) if found[1] else (torch.cuda.current_device() if count else 0)
    if index >= count:
        problem = f"torch sees {count} CUDA device{'' if count == 1 else 's'}"
        raise InputError(problem, where="calibrate", key="device", value=device)
    return torch.device("cuda", index), torch.cuda.get_device_name(index), None


def _key(device: str, threads: int | None) -> dict[str, Any]:
    import torch

    _, name, threads = _identify(device, threads)
    return {"device": name, "threads": threads, "torch": torch.__version__}


@contextmanager
def _settings(device: torch.device, threads: int | None) -> Iterator[None]:
    """Threads, the current device and plain FP32 for the time of a measurement; as they were afterwards."""
    import torch

    threads_before, precision_before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    cuda_before = torch.cuda.current_device() if device.type == "cuda" else None
    try:
        torch.set_float32_matmul_precision("highest")
        if threads is not None:
            torch.set_num_threads(threads)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        yield
    finally:
        torch.set_float32_matmul_precision(precision_before)
        torch.set_num_threads(threads_before)
        if cuda_before is not None:
            torch.cuda.empty_cache()  # whoever loads a model next wants the memory
            torch.cuda.set_device(cuda_before)


def cpu_name() -> str:
    """The processor as the operating system names it."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine() or "unknown CPU"


def _memory_bytes(device: torch.device) -> int:
    import torch

    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
