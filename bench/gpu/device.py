"""Kernels on a CUDA device: the launches of a wrapper, their times in pairs, what the driver says of them."""

from __future__ import annotations

import ctypes
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from time import perf_counter
from typing import Any, NamedTuple

import torch

from bench.kernels.attention import Case
from bench.kernels.launching import kernel_named, launched_by
from roofline_policies.counting import Ledger

FLUSH_BYTES = 256 << 20
"""Written before each measurement; several times the L2 cache of any device (60 MB on an H200)."""

SHORTEST_S = 500e-6
"""A shorter kernel is launched several times in one measurement: events resolve half a microsecond."""

MOST_LAUNCHES = 200
WARP_THREADS = 32

Measure = Callable[[], float]
"""Seconds of one launch, measured afresh by each call."""


class KernelLaunch(NamedTuple):
    """A launch of a Triton kernel as its wrapper made it; `kwargs` holds the grid too."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def by(self, run: Callable[..., Any], **options: Any) -> Callable[[], Any]:
        """The same launch through another `run`, with further compile options."""
        return lambda: run(*self.args, **self.kwargs, **options)


@dataclass(frozen=True)
class Paired:
    """Seconds per launch of a kernel as it is and counting, measured alternately."""

    plain_s: tuple[float, ...]
    counted_s: tuple[float, ...]

    @property
    def ratios(self) -> tuple[float, ...]:
        """Counting over plain, pair by pair, in rising order."""
        return tuple(sorted(b / a for a, b in zip(self.plain_s, self.counted_s, strict=True)))

    @property
    def ratio(self) -> float:
        """The median of the pairs."""
        return statistics.median(self.ratios)


@dataclass(frozen=True)
class Loaded:
    """A kernel as the driver loaded it: registers per thread, 4-byte spills, resident blocks per multiprocessor."""

    registers: int
    spills: int
    resident_blocks: int


@dataclass(frozen=True)
class SnapshotCost:
    """Of one `Ledger.snapshot()`: seconds on the host, seconds on the stream, and whether the host waited for it."""

    host_s: tuple[float, ...]
    stream_s: tuple[float, ...]
    waited: bool


def paired(plain: Measure, counted: Measure, repeats: int) -> Paired:
    """Measures both `repeats` times, who goes first alternating, so that a drift of clocks meets both alike."""
    times: dict[Measure, list[float]] = {plain: [], counted: []}
    for repeat in range(repeats):
        for measure in (plain, counted) if repeat % 2 == 0 else (counted, plain):
            times[measure].append(measure())
    return Paired(tuple(times[plain]), tuple(times[counted]))


def launches_per_measurement(launch_s: float) -> int:
    """How many launches fill SHORTEST_S."""
    return max(1, min(MOST_LAUNCHES, ceil(SHORTEST_S / max(launch_s, 1e-9))))


def launches_of(case: Case) -> list[KernelLaunch]:
    """Runs a case once and keeps its launches; what they read is alive as long as they are."""
    kept: list[KernelLaunch] = []

    def keep(name: str) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            kept.append(KernelLaunch(name, args, kwargs))
            return kernel_named(name).run(*args, **kwargs)

        return run

    with launched_by({name: keep(name) for name in case.kernels}):
        case.launch()
    torch.cuda.synchronize()
    return kept


def captured(function: Callable[[], object], times: int = 1) -> torch.cuda.CUDAGraph:
    """A CUDA graph that does what `function` does, `times` over; it runs once beforehand, to compile and allocate."""
    function()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(times):
            function()
    return graph


class Stopwatch:
    """Times graphs with events, the L2 cache overwritten before each replay (so the host's launch is hidden too)."""

    def __init__(self) -> None:
        self._flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")

    def seconds(self, graph: torch.cuda.CUDAGraph) -> float:
        """One replay; waits for it."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._flush.zero_()
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3  # milliseconds

    def pair(self, plain: Callable[[], object], counted: Callable[[], object], repeats: int) -> Paired:
        """Seconds per launch of both, alternately."""
        first = captured(plain)
        self.seconds(first)
        times = launches_per_measurement(self.seconds(first))
        graphs = [captured(function, times) for function in (plain, counted)]
        for graph in graphs:
            self.seconds(graph)
        measures = [lambda graph=graph: self.seconds(graph) / times for graph in graphs]
        return paired(measures[0], measures[1], repeats)


def loaded(compiled: Any) -> Loaded:
    """What the driver says of a compiled kernel that has been launched.

    Raises:
        RuntimeError: the driver refuses to tell.
    """
    blocks, driver = ctypes.c_int(), ctypes.CDLL("libcuda.so.1")
    threads, shared = compiled.metadata.num_warps * WARP_THREADS, compiled.metadata.shared
    status = driver.cuOccupancyMaxActiveBlocksPerMultiprocessor(
        ctypes.byref(blocks), ctypes.c_void_p(compiled.function), ctypes.c_int(threads), ctypes.c_size_t(shared)
    )
    if status:
        raise RuntimeError(f"cuOccupancyMaxActiveBlocksPerMultiprocessor: CUDA error {status}")
    return Loaded(compiled.n_regs, compiled.n_spills, blocks.value)


def snapshot_cost(ledger: Ledger, repeats: int) -> SnapshotCost:
    """Takes snapshots behind a kernel that spins for about 50 ms: whoever waits for the stream is seen to."""
    ledger.snapshot().totals()
    host, stream = [], []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        ledger.snapshot()
        end.record()
        end.synchronize()
        stream.append(start.elapsed_time(end) / 1e3)
    torch.cuda.synchronize()
    torch.cuda._sleep(100_000_000)  # clock cycles
    for _ in range(repeats):
        before = perf_counter()
        ledger.snapshot()
        host.append(perf_counter() - before)
    waited = torch.cuda.current_stream().query()  # done already: someone waited for it
    torch.cuda.synchronize()
    return SnapshotCost(tuple(host), tuple(stream), waited)
