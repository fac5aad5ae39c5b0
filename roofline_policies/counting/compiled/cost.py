"""What counting costs a kernel in machine code: the same launches compiled with and without it, side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from io import StringIO
from typing import Any, NamedTuple, Protocol

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from roofline_policies.counting.compiled.machine_code import (
    Launch,
    MachineCode,
    compile_for,
    compile_launch,
    read,
    record_launches,
    same_machine_code,
)
from roofline_policies.counting.compiled.sass import main_loops
from roofline_policies.counting.kernel import CountedKernel
from roofline_policies.counting.ledger import Ledger
from roofline_policies.counting.rewriting.source import LEDGER
from roofline_policies.counting.sites import Audit

_COLUMNS = ("main_loop_instructions", "registers", "spill_store_bytes", "shared_bytes", "barriers", "resident_blocks")


class Case(Protocol):
    """Host code that launches kernels, with a name to tell it by. Its tensors may be on the meta device."""

    @property
    def name(self) -> str: ...
    @property
    def launch(self) -> Callable[[], object]: ...


class CostRow(NamedTuple):
    """A row of the cost table; without ``counted``, the original alone.

    same_without_ledger: whether the counting form compiled without a ledger is the original, bit for bit; None where
        that was not tried.
    audit: of the counting form's TTIR.
    """

    kernel: str
    original: MachineCode
    counted: MachineCode | None = None
    same_without_ledger: bool | None = None
    audit: Audit | None = None


def launches_of(case: Case) -> list[tuple[str, Launch]]:
    """The launches of a case, under names for the table; nothing runs.

    Raises:
        MachineCodeError: it launches no Triton kernel.
    """
    return [(f"{case.name}: {launch.kernel.__name__}", launch) for launch in record_launches(case.launch)]


def compare(name: str, launch: Launch, counting: CountedKernel, *, capability: int = 90) -> Iterator[CostRow]:
    """Compiles one launch as it is and counting.

    counting: the counting form of its kernel, in mode "inline".
    A second row follows where counting leaves room for fewer resident blocks: the counting form held to the registers
    of the original (``maxnreg``).

    Raises:
        MachineCodeError: one of them does not compile. A kernel that is given functions to call is compiled with them
            as they are, and they do not count.
    """
    original = compile_for(launch, capability=capability)
    twin = replace(launch, kernel=counting.twin)
    without_ledger = compile_for(twin, capability=capability)
    with_ledger = replace(twin, kwargs=twin.kwargs | {LEDGER: Ledger("cpu", rows=1).row(0)})
    compiled = compile_launch(with_ledger, capability=capability)
    counted = read(compiled.kernel, capability=capability)
    audited = counting.twin.audit(compiled)
    yield CostRow(name, original, counted, same_machine_code(original, without_ledger), audited)
    if counted.resident_blocks < original.resident_blocks:
        limit = {"maxnreg": original.registers}
        limited = compile_for(replace(with_ledger, kwargs=with_ledger.kwargs | limit), capability=capability)
        yield CostRow(f"{name}, maxnreg={original.registers}", original, limited)


def cost_record(row: CostRow) -> dict[str, Any]:
    """A row as one JSON object: [original, counted] per column, or [original] alone; all main loops' instructions."""
    codes = [code for code in (row.original, row.counted) if code is not None]
    columns = {name: [getattr(code, name) for code in codes] for name in _COLUMNS}
    record: dict[str, Any] = {"kernel": row.kernel, **columns, "main_loops": [_loops(code) for code in codes]}
    if row.audit is not None:
        record["audit"] = asdict(row.audit)
    return record if row.same_without_ledger is None else record | {"same_without_ledger": row.same_without_ledger}


def cost_table(rows: Iterable[CostRow]) -> str:
    """The rows as text; a cell that counting changed reads "original -> counted"."""
    headings = [name.replace("_", " ") for name in _COLUMNS]
    table = Table("kernel", *headings, "all main loops", "same without a ledger", box=box.ASCII2)
    for row in rows:
        cells = []
        for name in _COLUMNS:
            before, after = getattr(row.original, name), getattr(row.counted or row.original, name)
            growth = f" ({after / before - 1:+.1%})" if name == "main_loop_instructions" and before else ""
            cells.append(_change(str(before), str(after), growth))
        loops = [", ".join(map(str, _loops(code))) for code in (row.original, row.counted or row.original)]
        several = any("," in one for one in loops)
        same = "" if row.same_without_ledger is None else "yes" if row.same_without_ledger else "NO"
        table.add_row(escape(row.kernel), *cells, _change(*loops) if several else "", same)
    out = StringIO()
    Console(file=out, width=200).print(table)
    return out.getvalue()


def _loops(code: MachineCode) -> list[int]:
    """Instructions of each main loop, in the order of the code."""
    return [len(loop.body) for loop in main_loops(code.loops)]


def _change(before: str, after: str, growth: str = "") -> str:
    return before if before == after else f"{before} -> {after}{growth}"
