"""The counters on the device, and how they are read without anyone waiting.

One buffer for a device, a row for each counting kernel, ``slots.STRIPES`` stripes of ``slots.WIDTH`` int64 in a row.
Kernels add to it, nobody ever resets it: a reading is a difference of two totals modulo 2**64, so a graph that is
replayed, a launch on another stream or a reader that comes late loses nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from roofline_policies.counting import slots
from roofline_policies.errors import RooflineError

ROWS = 128
"""Kernels that one ledger can hold; 1 MiB of counters."""

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

    host: (rows, WIDTH) int64, pinned where a device copies into it.
    ledger, number: whose, and its how manieth; the memory of one is used again IN_FLIGHT snapshots later.

    Raises:
        LedgerError: from ``totals``, where it was used again.
    """

    host: torch.Tensor
    rows: int
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
        return _as_totals(self.host[: self.rows])


def _as_totals(summed: torch.Tensor) -> Totals:
    return tuple(tuple(count % MODULUS for count in row[: slots.USED]) for row in summed.tolist())


class Ledger:
    """The counters of one device.

    device: where the counters lie; the CPU where kernels run in Triton's interpreter.

    Make it before CUDA graphs are captured: memory allocated during a capture belongs to the graph.
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
        self._buffer = torch.zeros((rows, slots.STRIPES, slots.WIDTH), dtype=torch.int64, device=self.device)
        self._names: list[str] = []
        self._side: torch.cuda.Stream | None = None
        self._staging: torch.Tensor | None = None
        self._hosts: list[torch.Tensor] = []
        self.snapshots = 0
        if self.device.type == "cuda":
            self._side = torch.cuda.Stream(self.device)
            self._staging = torch.zeros((IN_FLIGHT, rows, slots.WIDTH), dtype=torch.int64, device=self.device)
            self._hosts = list(torch.zeros((IN_FLIGHT, rows, slots.WIDTH), dtype=torch.int64, pin_memory=True))
            torch.cuda.synchronize(self.device)  # before any stream adds to what this one has just zeroed

    @property
    def names(self) -> Sequence[str]:
        """The kernels of the rows, in their order."""
        return tuple(self._names)

    @property
    def side_stream(self) -> torch.cuda.Stream | None:
        """The stream that copies and counting twins run on; None on the CPU."""
        return self._side

    def open_row(self, name: str) -> int:
        """A row for a kernel, with all counts 0.

        Raises:
            LedgerError: all rows are taken.
        """
        if len(self._names) == len(self._buffer):
            raise LedgerError(
                f"the ledger of {self.device} has no row left for {name}; "
                f"allowed: at most {len(self._buffer)} counting kernels; give others a Ledger of their own"
            )
        self._names.append(name)
        return len(self._names) - 1

    def row(self, number: int) -> torch.Tensor:
        """The counters a kernel adds to: (STRIPES * WIDTH,) int64 on the device."""
        return self._buffer[number].view(-1)

    def read(self) -> Totals:
        """The totals of everything queued so far; waits for the device, so not for a serving loop."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return _as_totals(self._buffer[: len(self._names)].sum(dim=1))

    def snapshot(self) -> Snapshot:
        """The totals as the current stream has them now, without waiting.

        The current stream adds up the stripes (one small kernel); a stream of the ledger's own copies the sums to
        pinned memory. Fewer than IN_FLIGHT may be unread: an older one is overwritten.
        """
        rows = len(self._names)
        place = self.snapshots % IN_FLIGHT
        self.snapshots += 1
        if self._side is None or self._staging is None:
            return Snapshot(self._buffer[:rows].sum(dim=1), rows, None, self, self.snapshots)
        staging, host = self._staging[place, :rows], self._hosts[place]
        current = torch.cuda.current_stream(self.device)
        torch.sum(self._buffer[:rows], dim=1, out=staging)
        self._side.wait_stream(current)
        arrived = torch.cuda.Event()
        with torch.cuda.stream(self._side):
            host[:rows].copy_(staging, non_blocking=True)
            arrived.record(self._side)
        return Snapshot(host, rows, arrived, self, self.snapshots)


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
