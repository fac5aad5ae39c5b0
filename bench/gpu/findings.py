"""What a run of bench.gpu.counting found: a row for each kernel of each case, as a table and as JSON."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from io import StringIO
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.gpu.device import Loaded, Paired, SnapshotCost
from bench.gpu.ncu import Hardware
from bench.kernels.closed_forms import Expected
from roofline_policies.counting import Counts
from roofline_policies.work import Precision

TARGET = 0.01
"""Counting should cost less than that share of a kernel's time."""

COLUMNS = ("us", "counting / plain", "counts", "graph", "registers", "blocks per SM", "FLOPs / tensor", "DRAM read")


@dataclass(frozen=True)
class Row:
    """One kernel of one case; what was not measured is None.

    exact: whether one launch counts what the closed form says. graph: whether replays of a CUDA graph do, each.
    held: counting with at most the original's registers; None where it needs no more than those.
    compulsory_bytes: of keys and values; 0 where the kernel reads none.
    """

    case: str
    kernel: str
    expected: Expected
    compulsory_bytes: int
    precision: Precision
    exact: bool | None = None
    graph: bool | None = None
    counts: Mapping[str, int] | None = None
    times: Paired | None = None
    plain: Loaded | None = None
    counting: Loaded | None = None
    held: Loaded | None = None
    hardware: Hardware | None = None

    @property
    def wrong(self) -> bool:
        """Whether a count is not what it should be."""
        return self.exact is False or self.graph is False

    @property
    def tensor_ratio(self) -> float | None:
        """FLOPs counted per FLOP of the tensor pipes; None where there are none of either."""
        if self.hardware is None or not self.hardware.tensor_flops:
            return None
        return self.expected.dot_flops / self.hardware.tensor_flops

    @property
    def dram_position(self) -> float | None:
        """Where the DRAM bytes read lie between compulsory (0) and requested (1); None where that says nothing."""
        requested = sum(self.expected.loads.values())
        if self.hardware is None or not self.compulsory_bytes or requested <= self.compulsory_bytes:
            return None
        return (self.hardware.read_bytes - self.compulsory_bytes) / (requested - self.compulsory_bytes)

    def record(self) -> dict[str, Any]:
        """As one JSON object, times in seconds as measured."""
        numbers = asdict(replace(self, expected=Expected(dict(self.expected.loads), dict(self.expected.stores))))
        ratios = self.times.ratios if self.times else ()
        return numbers | {
            "expected": dict(named(self.expected.counts(self.precision))),
            "hardware": self.hardware._asdict() if self.hardware else None,
            "ratio": self.times.ratio if self.times else None,
            "ratio_spread": [ratios[0], ratios[-1]] if ratios else None,
            "tensor_ratio": self.tensor_ratio,
            "dram_position": self.dram_position,
        }


@dataclass(frozen=True)
class Findings:
    """All of a run. skipped: cases for which no time was left. failures: case -> what went wrong."""

    device: Mapping[str, str]
    rows: Sequence[Row]
    skipped: Sequence[str]
    failures: Mapping[str, str]
    snapshot: SnapshotCost | None
    ncu: str

    @property
    def right(self) -> bool:
        """Whether nothing is wrong with counts, cases or snapshots; a missed time target is not wrong."""
        waited = self.snapshot is not None and self.snapshot.waited
        return not self.failures and not waited and not any(row.wrong for row in self.rows)

    @property
    def missed(self) -> list[str]:
        """The kernels that counting makes slower than the target allows."""
        slow = [row for row in self.rows if row.times is not None and row.times.ratio > 1 + TARGET]
        return [f"{row.case}: {row.kernel}" for row in slow]

    def record(self) -> dict[str, Any]:
        """As one JSON object."""
        return {
            "device": dict(self.device),
            "right": self.right,
            "target": TARGET,
            "missed": self.missed,
            "skipped": list(self.skipped),
            "failures": dict(self.failures),
            "snapshot": asdict(self.snapshot) if self.snapshot else None,
            "ncu": self.ncu,
            "rows": [row.record() for row in self.rows],
        }

    def summary(self) -> dict[str, Any]:
        """The same without the single measurements and terms."""
        record, many = self.record(), ("times", "counts", "expected", "hardware")
        rows = [{key: value for key, value in row.items() if key not in many} for row in record["rows"]]
        if self.snapshot:
            medians = {name: statistics.median(getattr(self.snapshot, name)) for name in ("host_s", "stream_s")}
            record["snapshot"] = medians | {"waited": self.snapshot.waited}
        return record | {"rows": rows}


def named(counts: Counts) -> Counter[str]:
    """Counts by name, as numbers that can be added and subtracted."""
    flops = {f"{precision}_flops": count for precision, count in counts.dot_flops.items()}
    bytes_ = {"load": counts.load_bytes, "store": counts.store_bytes, "atomic": counts.atomic_bytes}
    return Counter({**bytes_, "other_flops": counts.other_dot_flops, **flops})


def table(findings: Findings) -> str:
    """The rows as text, then a line for each thing that is not about one kernel."""
    rendered = Table("case: kernel", *COLUMNS, box=box.ASCII2)
    for row in findings.rows:
        rendered.add_row(escape(f"{row.case}: {row.kernel}"), *cells(row))
    out = StringIO()
    console = Console(file=out, width=200)
    console.print(rendered)
    for line in lines(findings):
        console.print(escape(line), highlight=False, soft_wrap=True)
    return out.getvalue()


def cells(row: Row) -> list[str]:
    """The cells of one row, in the order of COLUMNS; "-" for what was not measured."""
    time, ratio = "-", "-"
    if row.times:
        low, high = row.times.ratios[0], row.times.ratios[-1]
        time = f"{1e6 * statistics.median(row.times.plain_s):.1f}"
        missed = " missed" if row.times.ratio > 1 + TARGET else ""
        ratio = f"{row.times.ratio:.4f} ({low:.4f} to {high:.4f}){missed}"
    registers, blocks = "-", "-"
    if row.plain and row.counting:
        registers, blocks = (_steps(row, what) for what in ("registers", "resident_blocks"))
        if row.held and row.held.spills > row.plain.spills:
            registers += f", {row.held.spills - row.plain.spills} spills"
    tensor = "-" if row.tensor_ratio is None else f"{row.tensor_ratio:.4f}"
    dram = "-"
    if row.dram_position is not None:
        dram = f"{'inside' if 0 <= row.dram_position <= 1 else 'OUTSIDE'} ({row.dram_position:.1%})"
    return [time, ratio, _verdict(row.exact), _verdict(row.graph), registers, blocks, tensor, dram]


def lines(findings: Findings) -> list[str]:
    """What is not about one kernel."""
    facts = findings.device
    told = [f"device: {facts['name']}, CUDA {facts['cuda']}, torch {facts['torch']}, Triton {facts['triton']}"]
    if findings.snapshot:
        host, stream = (statistics.median(getattr(findings.snapshot, one)) * 1e6 for one in ("host_s", "stream_s"))
        waits = "WAITS for the stream" if findings.snapshot.waited else "waits for nothing"
        told.append(f"snapshot of the ledger: {host:.1f} us on the host, {stream:.1f} us on the stream; {waits}")
    told.append(f"hardware counters: {findings.ncu}")
    if findings.skipped:
        told.append(f"skipped, no time left: {'; '.join(findings.skipped)}")
    told += [f"FAILED: {case}: {problem}" for case, problem in findings.failures.items()]
    missed = f"missed by {len(findings.missed)} kernels" if findings.missed else "kept"
    told.append(f"target, at most {TARGET:.0%} slower: {missed}")
    return told


def _steps(row: Row, what: str) -> str:
    plain, counting = getattr(row.plain, what), getattr(row.counting, what)
    changed = str(plain) if plain == counting else f"{plain} -> {counting}"
    return f"{changed} (held: {getattr(row.held, what)})" if row.held else changed


def _verdict(found: bool | None) -> str:
    return "-" if found is None else "equal" if found else "WRONG"
