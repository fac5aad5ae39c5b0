"""The counters on the device, and how they are read without anyone waiting.

A row for each counting kernel, ``slots.STRIPES`` stripes of ``slots.WIDTH`` int64 in a row. Kernels add to it, nobody
ever resets it: a reading is a difference of two totals modulo 2**64, so a graph that is replayed, a launch on another
stream or a reader that comes late loses nothing. A row that was given back goes to another kernel as it is, with the
totals it has.

Rows lie in blocks. A ledger that is full gets another block beside those it has, which never move: CUDA graphs and
kernels under way hold their addresses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock

import torch

from roofline_policies.counting import slots
from roofline_policies.errors import RooflineError

ROWS = 128
"""Kernels that a new ledger has room for; 1 MiB of counters."""

MODULUS = 2**64
"""Counters wrap there; a difference is right as long as less than this is counted between two readings."""

IN_FLIGHT = 64
"""Snapshots that may wait to be read at once; a scheduler has two steps in flight."""


class LedgerError(RooflineError):
    """A ledger cannot be used as asked."""


Totals = tuple[tuple[int, ...], ...]
"""For each row, its ``slots.USED`` counts, modulo 2**64."""


def difference(later: Totals, earlier: Totals) -> Totals:
    """What was counted between two readings, modulo 2**64. Rows that are new in ``later`` count from zero."""
    none = (0,) * slots.USED
    return tuple(
        tuple(
            (new - old) % MODULUS
            for new, old in zip(row, earlier[number] if number < len(earlier) else none, strict=True)
        )
        for number, row in enumerate(later)
    )


@dataclass(frozen=True)
class Snapshot:
    """The totals at one point of a stream, on their way to the host.

    names: the kernels of the rows at that point.
    host: for each block (rows of it, WIDTH) int64, pinned where a device copies into it.
    ledger: whose counters these are. number: which of its snapshots, counted from the first; its memory is used again
    IN_FLIGHT snapshots later.

    Raises:
        LedgerError: from ``totals``, where it was used again.
    """

    names: tuple[str, ...]
    host: tuple[torch.Tensor, ...]
    arrived: torch.cuda.Event | None
    ledger: Ledger
    number: int

    def ready(self) -> bool:
        """Whether the totals have arrived; never waits."""
        return self.arrived is None or self.arrived.query()

    def totals(self) -> Totals:
        """The totals; waits for them where they have not arrived."""
        if self.arrived is not None:
            if self.ledger.snapshots - self.number >= IN_FLIGHT:
                raise LedgerError(
                    f"snapshot {self.number} of the ledger of {self.ledger.device} was overwritten by number "
                    f"{self.ledger.snapshots}; allowed: to leave fewer than {IN_FLIGHT} unread"
                )
            self.arrived.synchronize()
        return _as_totals(self.host)


def _as_totals(summed: Sequence[torch.Tensor]) -> Totals:
    rows = [row for block in summed for row in block.tolist()]
    return tuple(tuple(count % MODULUS for count in row[: slots.USED]) for row in rows)


class _Block:
    """Rows that were made together: their counters, and where the sums of IN_FLIGHT snapshots wait to be read."""

    def __init__(self, rows: int, device: torch.device) -> None:
        self.counters = torch.zeros((rows, slots.STRIPES, slots.WIDTH), dtype=torch.int64, device=device)
        self.staging = torch.zeros((IN_FLIGHT, 0, slots.WIDTH), dtype=torch.int64)
        self.hosts: list[torch.Tensor] = []
        if device.type == "cuda":
            self.staging = torch.zeros((IN_FLIGHT, rows, slots.WIDTH), dtype=torch.int64, device=device)
            self.hosts = list(torch.zeros((IN_FLIGHT, rows, slots.WIDTH), dtype=torch.int64, pin_memory=True))
            torch.cuda.synchronize(device)  # before any stream adds to what this one has just zeroed

    def __len__(self) -> int:
        return len(self.counters)


class Ledger:
    """The counters of one device.

    device: where the counters lie; the CPU where kernels run in Triton's interpreter.
    rows: kernels there is room for at first. Where three quarters are taken there is made room for as many again; while
        a CUDA graph is captured that cannot be: memory allocated then belongs to the graph.

    Make it before CUDA graphs are captured.
    """

    def __init__(self, device: torch.device | str, rows: int = ROWS) -> None:
        self.device = torch.device(device)
        if self.device.type == "cuda":
            if torch.cuda.is_current_stream_capturing():
                raise LedgerError(
                    f"the ledger of {self.device} cannot be made while a CUDA graph is captured; "
                    "allowed: call ledger_of(device), or launch a counting kernel once, before the capture"
                )
            index = torch.cuda.current_device() if self.device == torch.device("cuda") else self.device.index
            self.device = torch.device("cuda", index)
        self._side = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self._names: list[str] = []
        self._opened_at: list[tuple[int, ...]] = []
        self._blocks = [_Block(rows, self.device)]
        self._opening = Lock()
        self._closed: list[int] = []
        self.snapshots = 0

    @property
    def names(self) -> Sequence[str]:
        """The kernels of the rows, in their order; of a row that was given back, the one that had it last."""
        return tuple(self._names)

    @property
    def rows(self) -> int:
        """How many kernels there is room for now."""
        return sum(map(len, self._blocks))

    @property
    def side_stream(self) -> torch.cuda.Stream | None:
        """The stream that copies and counting twins run on; None on the CPU."""
        return self._side

    def open_row(self, name: str) -> int:
        """A row for a kernel; what it counts is the difference to ``opened_at``.

        One that was given back where there is one. The device is waited for then, as it is where there is made room.

        Raises:
            LedgerError: all rows are taken, and a CUDA graph is captured.
        """
        capturing = self.device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        with self._opening:
            if self._closed and not capturing:
                number = self._closed.pop()
                # The kernel that had it may still be running: this waits for it.
                self._names[number], self._opened_at[number] = name, self.totals_of(number)
                return number
            if not capturing and len(self._names) >= self.rows - self.rows // 4:
                self._blocks.append(_Block(self.rows, self.device))
            if len(self._names) == self.rows:
                raise LedgerError(
                    f"the ledger of {self.device} has no row left for {name}, and gets none while a CUDA graph is "
                    f"captured; allowed: to launch {name} once before the capture, or a Ledger with more than "
                    f"{self.rows} rows"
                )
            self._names.append(name)
            self._opened_at.append((0,) * slots.USED)
            return len(self._names) - 1

    def opened_at(self, number: int) -> tuple[int, ...]:
        """What a row held when it was opened."""
        return self._opened_at[number]

    def close_row(self, number: int) -> None:
        """Give a row back. Nothing may be launched that adds to it any more, nor a graph replayed that does."""
        self._closed.append(number)  # without the lock: a garbage collection that calls this may begin anywhere

    def row(self, number: int) -> torch.Tensor:
        """The counters a kernel adds to: (STRIPES * WIDTH,) int64 on the device."""
        for block in self._blocks:
            if number < len(block):
                return block.counters[number].view(-1)
            number -= len(block)
        raise IndexError(number)

    def totals_of(self, number: int) -> tuple[int, ...]:
        """The totals of one row, of everything queued so far; waits for the device."""
        self._wait()
        (total,) = _as_totals([self.row(number).view(1, slots.STRIPES, slots.WIDTH).sum(dim=1)])
        return total

    def read(self) -> Totals:
        """The totals of everything queued so far; waits for the device, so not for a serving loop."""
        self._wait()
        return _as_totals([block.counters[:used].sum(dim=1) for block, used in self._used()])

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _used(self) -> list[tuple[_Block, int]]:
        """The blocks with rows that were opened, and how many of each."""
        left, used = len(self._names), []
        for block in self._blocks:
            if left > 0:
                used.append((block, min(left, len(block))))
            left -= len(block)
        return used

    def snapshot(self) -> Snapshot:
        """The totals as the current stream has them now, without waiting.

        The current stream adds up the stripes (one small kernel for each block); a stream of the ledger's own copies
        the sums to pinned memory. Fewer than IN_FLIGHT may be unread: an older one is overwritten.
        """
        names, used = tuple(self._names), self._used()
        place = self.snapshots % IN_FLIGHT
        self.snapshots += 1
        if self._side is None:
            summed = tuple(block.counters[:rows].sum(dim=1) for block, rows in used)
            return Snapshot(names, summed, None, self, self.snapshots)
        current = torch.cuda.current_stream(self.device)
        places = [(block.staging[place, :rows], block.hosts[place][:rows]) for block, rows in used]
        for (block, rows), (staging, _) in zip(used, places, strict=True):
            torch.sum(block.counters[:rows], dim=1, out=staging)
        self._side.wait_stream(current)
        arrived = torch.cuda.Event()
        with torch.cuda.stream(self._side):
            for staging, host in places:
                host.copy_(staging, non_blocking=True)
            arrived.record(self._side)
        return Snapshot(names, tuple(host for _, host in places), arrived, self, self.snapshots)


_LEDGERS: dict[torch.device, Ledger] = {}


def ledger_of(device: torch.device | str) -> Ledger:
    """The one ledger of ``device`` that kernels count into unless they are given another; made when first asked for."""
    device = torch.device(device)
    if device == torch.device("cuda"):  # the current one
        device = torch.device("cuda", torch.cuda.current_device())
    ledger = _LEDGERS.get(device)
    if ledger is None:
        ledger = _LEDGERS[device] = Ledger(device)
    return ledger
