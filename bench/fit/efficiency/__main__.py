"""Fit a device's kernel efficiencies to tables of measured kernel times, and say how far off they are.

    python -m bench.fit.efficiency --tables DIR [--device NAME] [--out conf/efficiency/h200.yaml]

DIR holds tables in the layout of ai-dynamo/aiconfigurator, latencies in milliseconds: gemm_perf.parquet,
context_attention_perf.parquet and generation_attention_perf.parquet, and any of those for experts (moe), latent
attention (context_mla, generation_mla, mla_bmm), linear attention (gdn, kda), collectives (custom_allreduce, nccl) and
quantising (scale_matrix). The device is the one that they name.

Each kernel is fitted three times, to what is left when a fifth is held out: rows at random, whole shapes (n x k; heads
x KV heads; sizes of experts), whole batch sizes (m; requests; tokens). Errors are those of the held-out rows. What is
written is the fit without the held-out shapes, so that the errors shown for shapes are its own. Deterministic but for
the date. Needs numpy, scipy and pyarrow.

With --only, what other tables give is kept as the file has it. With --with NAME nothing is fitted: it says how far
another device's shipped coefficients are off.

Exit code 0; 2 where a table is missing or unusable. A file is written whole or not at all.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from bench.fit.efficiency import attention, collectives, experts, gemm, latent, states
from bench.fit.efficiency.fitting import SHIPPED, SPLITS, Error, Kernel, from_memory, measure, summary
from bench.fit.efficiency.tables import Floats, Table, check_device, read_table
from bench.fit.efficiency.transfer import errors_of
from bench.fit.efficiency.written import plain, read_written, source, write
from roofline_policies.device.hardware import Ceilings, from_catalogue, match_device, multiprocessors
from roofline_policies.errors import EXIT_BAD_INPUT, InputError
from roofline_policies.steps.efficiency import Efficiency, load_efficiency

Make = Callable[[Table, Ceilings, int], Iterator[Kernel]]

NEEDED: dict[str, Sequence[str]] = {
    gemm.FILE: gemm.COLUMNS,
    attention.DECODE_FILE: attention.DECODE_COLUMNS,
    attention.PREFILL_FILE: attention.PREFILL_COLUMNS,
}
MORE: tuple[tuple[str, Sequence[str], Make], ...] = (
    (experts.FILE, experts.COLUMNS, experts.kernels),
    (latent.DECODE_FILE, latent.COLUMNS, latent.decode_kernels),
    (latent.PREFILL_FILE, latent.COLUMNS, latent.prefill_kernels),
    (latent.PRODUCT_FILE, latent.PRODUCT_COLUMNS, latent.product_kernels),
    *((file, states.COLUMNS, states.kernels) for file in states.FILES),
    (collectives.SGLANG_FILE, collectives.SGLANG_COLUMNS, collectives.sglang_kernels),
    (collectives.NCCL_FILE, collectives.NCCL_COLUMNS, collectives.nccl_kernels),
    *((file, collectives.QUANTISE_COLUMNS, collectives.quantise_kernels) for file in collectives.QUANTISE_FILES),
)
"""Tables that a folder may do without."""

WORST = 0.25
"""Median error on held-out shapes above which a kernel of MORE is not written: what is stated serves as well."""

SPLITS_OF_ONE = ("collectives",)
"""Operations whose three splits are one."""


@dataclass(frozen=True, slots=True)
class Folder:
    """The tables of one device. name: in the catalogue. sms: its streaming multiprocessors."""

    tables: dict[str, Table]
    name: str
    ceilings: Ceilings
    sms: int


def read_folder(folder: Path, device: str | None) -> Folder:
    """Every table of a folder that is known here; all are read before anything is fitted.

    device: a name of the catalogue; None: the one that the tables name.

    Raises:
        InputError: a table is missing or unusable, of another device than the others, or of one that the catalogue has
            not, or whose multiprocessors it does not know.
    """
    tables = {}
    for name, columns in NEEDED.items():
        optional = attention.OPTIONAL if name != gemm.FILE else None
        tables[name] = read_table(folder / name, columns, optional)
    for name, columns, _ in MORE:
        if (folder / name).exists():
            tables[name] = read_table(folder / name, columns)
    if device is None:
        named = sorted({one for _, one in tables[gemm.FILE].who})
        device = match_device(named[0])
        if device is None:
            allowed = "a device of conf/hardware: add a file for it first"
            where = str(folder / gemm.FILE)
            raise InputError("is not in the catalogue", where=where, key="device", value=named[0], allowed=allowed)
    ceilings, sms = from_catalogue(device), multiprocessors(device)
    if sms is None:
        raise InputError("missing key", where=f"conf/hardware/{device}.yaml", key="sms")
    for table in tables.values():
        check_device(table, device, ceilings)
    return Folder(tables, device, ceilings, sms)


def kernels(folder: Folder, only: Sequence[str] = ()) -> Iterator[Kernel]:
    """Every kernel that the tables hold; ``only`` those of files whose names begin so.

    Raises:
        InputError: a table is unusable.
    """

    def wanted(name: str) -> bool:
        return not only or any(name.startswith(start) for start in only)

    tables, on = folder.tables, (folder.ceilings, folder.sms)
    if wanted(gemm.FILE):
        yield from gemm.kernels(tables[gemm.FILE], *on)
    if wanted(attention.DECODE_FILE) or wanted(attention.PREFILL_FILE):
        yield from attention.kernels(tables[attention.DECODE_FILE], tables[attention.PREFILL_FILE], *on)
    for name, _, make in MORE:
        if name in tables and wanted(name):
            yield from make(tables[name], *on)


def fit_all(folder: Folder, day: str, only: Sequence[str] = ()) -> tuple[dict[str, Any], list[Error]]:
    """The file's content, and the errors of every kernel and of each operation's kernels together.

    Raises:
        InputError: a table is unusable.
    """
    shipped: dict[str, Any] = {"gemm": {}, "decode": [], "prefill": []}
    errors: list[Error] = []
    pooled: dict[tuple[str, str], list[list[Floats]]] = {}
    left_out: dict[str, int] = {}
    for whole in kernels(folder, only):
        kernel, cached = from_memory(whole)
        left_out[kernel.operation] = left_out.get(kernel.operation, 0) + cached
        for split in (SHIPPED,) if kernel.operation in SPLITS_OF_ONE else SPLITS:
            found, held = measure(kernel, split)
            errors.append(summary(kernel.operation, kernel.name, split, held, cached))
            pooled.setdefault((kernel.operation, split), []).append(held)
            told = f"{kernel.operation}, {kernel.name}, {split}: median {errors[-1].median:.1%}"
            print(told, file=sys.stderr, flush=True)
            if split == SHIPPED and kernel.key == "gemm":
                shipped["gemm"][kernel.name] = plain(found)
            elif split == SHIPPED and kernel.key in ("decode", "prefill"):
                shipped[kernel.key].append(plain(found))
            elif split == SHIPPED and errors[-1].median > WORST:
                told = f"{kernel.operation}, {kernel.name}: not written, its median error is above {WORST:.0%}"
                print(told, file=sys.stderr, flush=True)
            elif split == SHIPPED:
                shipped.setdefault(kernel.key, []).append(plain(found))
    for (operation, split), parts in pooled.items():
        together = [np.concatenate(of) for of in zip(*parts, strict=True)]
        errors.append(summary(operation, "all", split, together, left_out[operation]))
    content = {"device": folder.name, "sms": folder.sms, "source": source(folder.tables, folder.ceilings), "date": day}
    content |= shipped
    return content, errors


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m bench.fit.efficiency", description=__doc__, formatter_class=raw)
    parser.add_argument("--tables", type=Path, required=True, help="folder of the tables")
    parser.add_argument("--out", type=Path, help="file to write the coefficients to")
    parser.add_argument("--device", help="catalogue name of the device they were measured on; default: what they name")
    told = "fit tables whose names begin so; of linear attention both, as they end in one list"
    parser.add_argument("--only", action="append", default=[], metavar="FILE", help=told)
    parser.add_argument("--with", dest="other", metavar="NAME", help="errors of that device's shipped coefficients")
    parser.add_argument("--date", default=date.today().isoformat(), help="what to date the fit with")
    args = parser.parse_args(argv)
    try:
        folder = read_folder(args.tables, args.device)
        if args.other:
            if args.out:
                raise InputError("writes nothing", where="command line", key="--with", allowed="without --out")
            of = load_efficiency(args.other)
            show({"device": folder.name, "with": args.other, "source": of.source},
                 errors_of(kernels(folder, args.only), of))  # fmt: skip
            return 0
        kept = read_written(args.out, folder.name) if args.only and args.out else {}
        content, errors = fit_all(folder, args.date, args.only)
        if args.out:
            content = kept | {key: value for key, value in content.items() if value}
            Efficiency.from_dict(content, "the fit")
            write(args.out, content)
    except InputError as error:
        print(error, file=sys.stderr)
        return EXIT_BAD_INPUT
    show({"device": folder.name, "source": content["source"]}, errors)
    return 0


def show(what: dict[str, Any], errors: Sequence[Error]) -> None:
    """A table, and a line of JSON."""
    print(f"{'operation':<18} {'kernel':<44} {'held out':<8} {'rows':>6} {'median':>7} {'P90':>7}   plain roofline")
    for e in errors:
        figures = f"{e.rows:6d} {e.median:7.1%} {e.p90:7.1%}  {e.roofline_median:7.1%} {e.roofline_p90:7.1%}"
        print(f"{e.operation:<18} {e.kernel:<44} {e.split:<8} {figures}")
    print(json.dumps({**what, "errors": [asdict(e) for e in errors]}))


if __name__ == "__main__":
    sys.exit(main())
