"""Rates of a device: products and streams, each as the best of many repeats, and how far the repeats differ."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import quantiles
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

from roofline_policies.work import Precision

if TYPE_CHECKING:
    import torch

Operation = Callable[[], object]
Timer = Callable[[Operation, int], list[float]]
"""Runs an operation so many times and gives the seconds each run took."""
Progress = Callable[[str], None]

SIZES = {"cpu": (256, 512, 1024, 2048, 4096), "cuda": (1024, 2048, 4096, 8192, 16384)}
"""Of products, smallest first, up to that of a layer of a large model; how far they go is for the budget to say."""

DTYPES = {
    Precision.FP32: "float32",
    Precision.BF16: "bfloat16",
    Precision.FP16: "float16",
    Precision.FP8: "float8_e4m3fn",
}
MOST_REPEATS = 50
"""Of one operation. A judgement: their lower quartile, twelve of them, tells how far they differ."""

CHUNK_S = 0.1
"""Repeats are timed in chunks of about this long, so that a slow start corrects itself. A judgement."""

SPREAD_LIMIT = 0.1
"""A best that the others do not come within this share of was disturbed. On two cores under a load of nine, the lower
quartile of 50 products was 6 to 17% slower than their best."""

ATTEMPTS = 3
"""Measurements at most of a figure whose repeats differ by more than SPREAD_LIMIT."""


class Rate(NamedTuple):
    """The best rate of some repeats, per second, and how far its repeats differ; see Calibration."""

    per_s: float
    spread: float | None


class Timing(NamedTuple):
    """The shortest of some repeats, seconds, and how far they differ; see Calibration."""

    best_s: float
    spread: float | None


def matmul_flops(n: int) -> int:
    """FLOPs of one ``n x n`` by ``n x n`` product, a multiply-add counted as two."""
    return 2 * n**3


def timing(operation: Operation, timer: Timer, budget_s: float) -> Timing:
    """How long ``operation`` takes: one run to warm up, then as many repeats as the budget holds.

    There is always one repeat, and never more than MOST_REPEATS.
    """
    best = spent = sum(timer(operation, 1))
    repeats, times = 1, list[float]()
    while repeats:
        times += timer(operation, repeats)
        best = min(best, *times)
        left = MOST_REPEATS - len(times)
        repeats = min(left, int(max(0.0, budget_s - spent - sum(times)) / best), max(1, int(CHUNK_S / best)))
    return Timing(best, quantiles(times, n=4, method="inclusive")[0] / best - 1 if len(times) > 1 else None)


def settled(measure: Callable[[], Rate], what: str, attempts: int, progress: Progress) -> Rate:
    """A rate that is measured again, ``attempts`` times at most, until its best is met by more than one repeat.

    The best of all attempts. Its spread: by how much the lower quartile of the steadiest attempt, or the best of
    another attempt, is slower than that; None for a single repeat.
    """
    found = [measure()]
    while True:
        best = max(rate.per_s for rate in found)
        slower = [best / rate.per_s * (1 + rate.spread) - 1 for rate in found if rate.spread is not None]
        slower += [best / second.per_s - 1 for second in sorted(found, key=lambda rate: rate.per_s)[-2:-1]]
        spread = min(slower, default=None)
        if (spread is not None and spread <= SPREAD_LIMIT) or len(found) >= attempts:
            return Rate(best, spread)
        why = "there was time for one repeat" if spread is None else f"repeats differ by {spread:.0%}"
        progress(f"{what}: {why}, measured again")
        found.append(measure())


def matmul_flops_per_s(make: Callable[[int], Operation], sizes: tuple[int, ...], timer: Timer, budget_s: float) -> Rate:
    """The best rate of square products over ``sizes``, FLOP/s.

    make: gives the product of that size, its operands ready. A larger size is tried while it should fit the budget and
        while the rate does not collapse (an emulated precision gets slower with size).

    Raises:
        RuntimeError: the device does not multiply matrices of this precision.
    """
    start, best = perf_counter(), Rate(0.0, None)
    for n in sizes:
        left_s = budget_s - (perf_counter() - start)
        if best.per_s and 3 * matmul_flops(n) / best.per_s > left_s:
            break
        took = timing(make(n), timer, left_s / 2)
        rate = Rate(matmul_flops(n) / took.best_s, took.spread)
        best = max(best, rate, key=lambda one: one.per_s)
        if rate.per_s < best.per_s / 2:
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
) -> Rate:
    """The best rate among ``streams``, bytes/s."""
    start, best = perf_counter(), Rate(0.0, None)
    moves = streams(device, size_bytes)
    for done, (kind, (operation, moved)) in enumerate(moves.items()):
        took = timing(operation, timer, (budget_s - (perf_counter() - start)) / (len(moves) - done))
        rate = Rate(moved / took.best_s, took.spread)
        best = max(best, rate, key=lambda one: one.per_s)
        progress(f"{kind}: {rate.per_s / 1e9:.4g} GB/s")
    return best


def cpu_timer(operation: Operation, repeats: int) -> list[float]:
    """The host's clock around every run."""
    times = []
    for _ in range(repeats):
        start = perf_counter()
        operation()
        times.append(perf_counter() - start)
    return times


def cuda_timer(operation: Operation, repeats: int) -> list[float]:
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


def stream_buffer_bytes(device: torch.device, memory_bytes: int) -> int:
    """A buffer of four times the last-level cache or more, and never more than a sixteenth of the memory."""
    if device.type == "cuda":
        return min(1 << 30, memory_bytes // 16)
    try:  # e.g. "32768K"
        cache = Path("/sys/devices/system/cpu/cpu0/cache/index3/size").read_text(encoding="utf-8").strip()
        cache_bytes = int(cache.removesuffix("K")) << 10
    except (OSError, ValueError):
        cache_bytes = 32 << 20
    return min(max(128 << 20, 4 * cache_bytes), memory_bytes // 16)
