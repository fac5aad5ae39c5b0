"""Calibration: measure a device's ceilings in ten seconds, and remember them.

What is measured, each as the best of many repeats (a ceiling is what the device can do when nothing disturbs it):

- FLOP/s by precision: square matrix products of random data, of growing size. FP32 is plain FP32 (no TF32).
- bytes/s: the best of three streams over buffers far larger than the last-level cache: a copy (bytes read and bytes
  written both count), a sum (one buffer read) and a dot product (two buffers read).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import platform
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from roofline_policies.errors import EXIT_BAD_INPUT, InputError
from roofline_policies.hardware import CALIBRATE, Ceilings
from roofline_policies.work import Precision

if TYPE_CHECKING:
    import torch

Operation = Callable[[], object]
Timer = Callable[[Operation, int], list[float]]
"""Runs an operation so many times and gives the seconds each run took."""
Progress = Callable[[str], None]

BUDGET_S = 10.0
SIZES = {"cpu": (256, 512, 1024, 2048, 4096), "cuda": (1024, 2048, 4096, 8192, 16384)}
DTYPES = {
    Precision.FP32: "float32",
    Precision.BF16: "bfloat16",
    Precision.FP16: "float16",
    Precision.FP8: "float8_e4m3fn",
}
MOST_REPEATS = 50
CHUNK_S = 0.1  # repeats are timed in chunks of about this long, so that a slow start corrects itself

logger = logging.getLogger(__name__)


def matmul_flops(n: int) -> int:
    """FLOPs of one ``n x n`` by ``n x n`` product, a multiply-add counted as two."""
    return 2 * n**3


def best_s(operation: Operation, timer: Timer, budget_s: float) -> float:
    """The shortest time of ``operation``, seconds: one run to warm up, then as many repeats as the budget holds.

    There is always one repeat, and never more than MOST_REPEATS.
    """
    best = spent = sum(timer(operation, 1))
    left = MOST_REPEATS
    repeats = 1
    while repeats:
        times = timer(operation, repeats)
        best, spent, left = min(best, *times), spent + sum(times), left - repeats
        repeats = min(left, int(max(0.0, budget_s - spent) / best), max(1, int(CHUNK_S / best)))
    return best


def matmul_flops_per_s(
    make: Callable[[int], Operation], sizes: tuple[int, ...], timer: Timer, budget_s: float
) -> float:
    """The best rate of square products over ``sizes``, FLOP/s.

    make: gives the product of that size, its operands ready. A larger size is tried while it should fit the budget and
        while the rate does not collapse (an emulated precision gets slower with size).

    Raises:
        RuntimeError: the device does not multiply matrices of this precision.
    """
    start, best = perf_counter(), 0.0
    for n in sizes:
        left_s = budget_s - (perf_counter() - start)
        if best and 3 * matmul_flops(n) / best > left_s:
            break
        rate = matmul_flops(n) / best_s(make(n), timer, left_s / 2)
        best = max(best, rate)
        if rate < best / 2:
            break
    return best


def product(device: torch.device, precision: Precision) -> Callable[[int], Operation]:
    """For a size ``n``: the product of two random ``n x n`` matrices of that precision on that device."""
    import torch

    dtype = getattr(torch, DTYPES[precision])

    def make(n: int) -> Operation:
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        if precision is Precision.FP8:
            one = torch.ones((), device=device)
            b = b.t()  # the FP8 product takes its second operand column by column
            return lambda: torch._scaled_mm(a, b, one, one, out_dtype=torch.bfloat16, use_fast_accum=True)
        out = torch.empty_like(a)
        return lambda: torch.mm(a, b, out=out)

    return make


def streams(device: torch.device, size_bytes: int) -> dict[str, tuple[Operation, int]]:
    """What only moves memory, with the bytes one run moves: two buffers of ``size_bytes``, random data."""
    import torch

    block = torch.rand(1 << 18, device=device)  # 1 MiB, repeated: random enough, and quick to make
    a = block.repeat(size_bytes // block.nbytes)
    b = a.clone()
    return {
        "copy": (lambda: b.copy_(a), 2 * a.nbytes),
        "sum": (lambda: a.sum(), a.nbytes),
        "dot": (lambda: torch.dot(a, b), 2 * a.nbytes),
    }


def stream_bytes_per_s(
    device: torch.device, size_bytes: int, timer: Timer, budget_s: float, progress: Progress
) -> float:
    """The best rate among ``streams``, bytes/s."""
    start, best = perf_counter(), 0.0
    moves = streams(device, size_bytes)
    for done, (kind, (operation, moved)) in enumerate(moves.items()):
        rate = moved / best_s(operation, timer, (budget_s - (perf_counter() - start)) / (len(moves) - done))
        best = max(best, rate)
        progress(f"{kind}: {rate / 1e9:.4g} GB/s")
    return best


def calibrate(
    device: str, threads: int | None = None, budget_s: float = BUDGET_S, progress: Progress = lambda _: None
) -> Ceilings:
    """Measures a device's ceilings now.

    device: "cpu", "cuda" or "cuda:N".
    threads: CPU threads to measure with; None for as many as torch uses now. Of no meaning for CUDA.
    budget_s: seconds to spend, shared evenly among what is measured.
    progress: told, as it goes, what has been measured.

    Raises:
        InputError: there is no such device, or a number cannot be used.
    """
    import torch

    where, name, threads = _identify(device, threads)
    if not budget_s > 0:
        raise InputError("must be more than zero seconds", where="calibrate", key="budget_s", value=budget_s)
    start = perf_counter()
    timer = _cuda_timer if where.type == "cuda" else _cpu_timer
    rates: dict[Precision, float] = {}
    with _settings(where, threads):
        precisions = [Precision.FP32, Precision.BF16, Precision.FP16]
        if where.type == "cuda" and torch.cuda.get_device_capability(where) >= (8, 9):
            precisions.append(Precision.FP8)
        for done, precision in enumerate(precisions):
            share_s = (budget_s - (perf_counter() - start)) / (len(precisions) + 1 - done)
            try:
                rate = matmul_flops_per_s(product(where, precision), SIZES[where.type], timer, share_s)
            except RuntimeError as error:
                progress(f"{precision}: left out, the device does not offer it ({str(error).splitlines()[0]})")
                continue
            rates[precision] = rate
            progress(f"{precision}: {rate / 1e12:.4g} TFLOP/s")
        memory_bytes = _memory_bytes(where)
        buffer_bytes = _stream_bytes(where, memory_bytes)
        bytes_per_s = stream_bytes_per_s(where, buffer_bytes, timer, budget_s - (perf_counter() - start), progress)
    with_threads = "" if threads is None else f", {threads} thread{'s' if threads > 1 else ''}"
    return Ceilings(
        device=name,
        flops_per_s=rates,
        bytes_per_s=bytes_per_s,
        memory_bytes=memory_bytes,
        usd_per_h=None,
        source=f"calibrated {datetime.now(UTC):%Y-%m-%d}, torch {torch.__version__}{with_threads}",
    )


def cache_file(device: str, threads: int | None = None) -> Path:
    """Where the ceilings of this device, this many threads and this torch are kept.

    The folder is $ROOFLINE_CACHE_DIR, else roofline-policies/ceilings under $XDG_CACHE_HOME or ~/.cache.

    Raises:
        InputError: there is no such device, or a number cannot be used.
    """
    key = _key(device, threads)
    slug = re.sub(r"[^a-z0-9]+", "-", " ".join(str(v) for v in key.values() if v is not None).lower()).strip("-")
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:8]
    folder = os.environ.get("ROOFLINE_CACHE_DIR")
    if not folder:
        folder = str(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "roofline-policies" / "ceilings")
    return Path(folder).expanduser() / f"{slug}-{digest}.json"


def cached(device: str, threads: int | None = None) -> Ceilings | None:
    """The ceilings a calibration left, or None. A file that cannot be used is named in a warning and counts as none.

    Raises:
        InputError: there is no such device, or a number cannot be used.
    """
    file = cache_file(device, threads)
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept["key"] != _key(device, threads):
            raise ValueError("it is about another device")
        return Ceilings.from_dict(kept["ceilings"], str(file))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, InputError) as error:
        logger.warning("ignoring the calibration in %s: %s", file, error)
        return None


def calibrated(
    device: str,
    threads: int | None = None,
    budget_s: float = BUDGET_S,
    progress: Progress = lambda _: None,
    force: bool = False,
) -> Ceilings:
    """The kept ceilings of a device, else (or with ``force``) measured now and kept. Arguments as for ``calibrate``.

    Raises:
        InputError: there is no such device, or a number cannot be used.
    """
    kept = None if force else cached(device, threads)
    if kept is not None:
        return kept
    measured = calibrate(device, threads, budget_s, progress)
    file = cache_file(device, threads)
    try:
        _write(file, json.dumps({"key": _key(device, threads), "ceilings": measured.to_dict()}, indent=1) + "\n")
    except OSError as error:
        logger.warning("could not keep the calibration in %s: %s", file, error)
    return measured


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
    if not options.json:
        print(f"{ceilings.device} ({ceilings.source})")
        for precision, rate in ceilings.flops_per_s.items():
            ridge = ceilings.ridge_flops_per_byte(precision)
            print(f"  {precision:<7}{rate / 1e12:>12.4g} TFLOP/s   ridge at {ridge:.4g} FLOPs/byte")
        print(f"  memory {ceilings.bytes_per_s / 1e9:>12.4g} GB/s, {ceilings.memory_bytes / 1e9:.4g} GB")
        print(f"  kept in {file}")
    print(json.dumps(ceilings.to_dict()))
    return 0


def _identify(device: str, threads: int | None) -> tuple[torch.device, str, int | None]:
    """The device for torch, its name, and the threads that tell (None for CUDA)."""
    import torch

    found = re.fullmatch(r"cpu|cuda(?::(\d+))?", device)
    if found is None:
        raise InputError("no such device", where="calibrate", key="device", value=device, allowed="cpu, cuda, cuda:N")
    if threads is not None and threads < 1:
        raise InputError("must be at least 1", where="calibrate", key="threads", value=threads)
    if device == "cpu":
        return torch.device("cpu"), _cpu_name(), threads or torch.get_num_threads()
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


def _cpu_timer(operation: Operation, repeats: int) -> list[float]:
    times = []
    for _ in range(repeats):
        start = perf_counter()
        operation()
        times.append(perf_counter() - start)
    return times


def _cuda_timer(operation: Operation, repeats: int) -> list[float]:
    """Events around every run on the current stream, one synchronise at the end."""
    import torch

    marks = []
    for _ in range(repeats):
        marks.append([torch.cuda.Event(enable_timing=True) for _ in range(2)])
        marks[-1][0].record()
        operation()
        marks[-1][1].record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1e3 for start, end in marks]  # milliseconds


def _cpu_name() -> str:
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


def _stream_bytes(device: torch.device, memory_bytes: int) -> int:
    """A buffer of four times the last-level cache or more, and never more than a sixteenth of the memory."""
    if device.type == "cuda":
        return min(1 << 30, memory_bytes // 16)
    try:  # e.g. "32768K"
        cache = Path("/sys/devices/system/cpu/cpu0/cache/index3/size").read_text(encoding="utf-8").strip()
        cache_bytes = int(cache.removesuffix("K")) << 10
    except (OSError, ValueError):
        cache_bytes = 32 << 20
    return min(max(128 << 20, 4 * cache_bytes), memory_bytes // 16)


def _write(file: Path, text: str) -> None:
    """Writes a whole file or nothing: another process sees the old one or the new one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=file.name, suffix=".new")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as new:
            new.write(text)
        os.replace(name, file)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
