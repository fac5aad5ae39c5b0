"""Counting attention kernels on a CUDA device: what it costs, whether the counts are right. Run once, keep the files.

    python -m bench.gpu.counting --out results/gpu_counting

For each serving case of bench/kernels, through SGLang's own wrappers:

- time of each kernel as it is and counting, alternately, the L2 cache overwritten before each measurement;
- counts of one launch, and of replays of a captured CUDA graph, against the closed forms: equal integers;
- registers and resident blocks from the driver: as it is, counting, and counting held to the original's registers;
- where `ncu` is there and permitted: FLOPs of the tensor pipes, DRAM bytes between compulsory and requested;
- once: what a snapshot of the ledger costs, and that it waits for nothing.

Exit code 0; 1 where a count, a graph or a case is wrong; 2 where it cannot run. A missed time target is no error.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from errno import EACCES
from pathlib import Path
from time import perf_counter

import torch
import triton

from bench.gpu.device import KernelLaunch, Stopwatch, captured, launches_of, loaded, snapshot_cost
from bench.gpu.findings import Findings, Row, named, table
from bench.gpu.ncu import Hardware, NcuError, profile
from bench.kernels import closed_forms
from bench.kernels.attention import SERVING, Case, serving_makers
from bench.kernels.launching import MODULES, kernel_named, launched_by
from roofline_policies.counting import CountedKernel, counted, ledger_of
from roofline_policies.errors import EXIT_BAD_INPUT, InputError
from roofline_policies.work import Precision

WHERE = "bench.gpu.counting"
QUICK = ("decode GQA 32/8, 128", "decode MLA 16, 576/512", "extend GQA 32/8, 128", "kv indices")
REPEATS, QUICK_REPEATS, FEWEST_REPEATS = 15, 5, 5
BUDGET_S = 420.0
"""No further case is begun, and ncu is stopped, once so much time has passed."""

REPLAYS = 50
SNAPSHOTS = 20

Maker = Callable[[], Case]


class Bench:
    """Measures cases; the counting kernels are made once, for all of them."""

    def __init__(self, repeats: int) -> None:
        self._repeats = repeats
        self._stopwatch = Stopwatch()
        self.ledger = ledger_of("cuda")
        self._counting: dict[str, CountedKernel] = {}

    def kernel(self, name: str) -> CountedKernel:
        if name not in self._counting:
            self._counting[name] = counted(kernel_named(name), ledger=self.ledger)
        return self._counting[name]

    def rows(self, case: Case) -> list[Row]:
        """Everything about one case but the hardware counters."""
        launches = launches_of(case)
        rows = expected_rows(case, launches)
        once = self._increase(case, self._run_counting(case))
        graph = captured(self._run_counting(case))

        def replay() -> None:
            for _ in range(REPLAYS):
                graph.replay()

        replayed = self._increase(case, replay)
        measured = []
        for row, launch in zip(rows, launches, strict=True):
            each = named(row.expected.counts(row.precision))
            row = replace(row, counts=dict(once[row.kernel]), exact=once[row.kernel] == each)
            row = replace(row, graph=replayed[row.kernel] == {name: count * REPLAYS for name, count in each.items()})
            measured.append(self._costs(row, launch))
        return measured

    def _run_counting(self, case: Case) -> Callable[[], None]:
        runs = {name: self.kernel(name).run for name in case.kernels}

        def run() -> None:
            with launched_by(runs):
                case.launch()

        return run

    def _increase(self, case: Case, function: Callable[[], None]) -> dict[str, Counter[str]]:
        """What each kernel of a case counts while `function` runs."""
        before = {name: named(self.kernel(name).counts()) for name in case.kernels}
        function()
        after = {name: named(self.kernel(name).counts()) for name in case.kernels}
        for name, increase in after.items():
            increase.subtract(before[name])
        # A precision counted by an earlier case, and not by this one, stays at zero.
        bytes_ = ("load", "store", "atomic", "other_flops")
        return {
            name: Counter({key: count for key, count in increase.items() if count or key in bytes_})
            for name, increase in after.items()
        }

    def _costs(self, row: Row, launch: KernelLaunch) -> Row:
        original, counting = kernel_named(row.kernel), self.kernel(row.kernel)
        plain, twin = loaded(launch.by(original.run)()), loaded(launch.by(counting.run)())
        held = None
        if twin.registers > plain.registers:
            held = loaded(launch.by(counting.run, maxnreg=plain.registers)())
        times = self._stopwatch.pair(launch.by(original.run), launch.by(counting.run), self._repeats)
        return replace(row, plain=plain, counting=twin, held=held, times=times)


def expected_rows(case: Case, launches: Sequence[KernelLaunch]) -> list[Row]:
    """What the closed forms say of the launches of a case, kernel by kernel."""
    names = [launch.name for launch in launches]
    if names != list(case.kernels):
        raise RuntimeError(f"{case.name}: launched {', '.join(names)}; expected {', '.join(case.kernels)}")
    splits = launches[0].kwargs["grid"][2] if "num_kv_splits" in case.inputs and len(launches) == 2 else 1
    compulsory, precision = closed_forms.compulsory_load_bytes(case), closed_forms.precision_of(case)
    forms = closed_forms.of_case(case, splits)
    return [Row(case.name, name, forms[name], compulsory if forms[name].kv_bytes else 0, precision) for name in names]


def makers(quick: bool) -> dict[str, Maker]:
    """The cases by name, not yet made."""
    all_of_them = {case.name: make for case, make in zip(SERVING, serving_makers("cuda"), strict=True)}
    return {name: make for name, make in all_of_them.items() if not quick or name in QUICK}


def measure(cases: Mapping[str, Maker], repeats: int, deadline_s: float, progress: Callable[[str], None]) -> Findings:
    """Everything but the hardware counters; no case is begun after `deadline_s` on `perf_counter`'s clock."""
    bench, rows, skipped = Bench(repeats), [], []
    failures: dict[str, str] = {}
    for at, (name, make) in enumerate(cases.items(), 1):
        if perf_counter() > deadline_s:
            skipped.append(name)
            continue
        progress(f"case {at} of {len(cases)}: {name}")
        try:
            rows += bench.rows(make())
        except Exception as error:  # one case that fails must not cost the run the others
            failures[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            progress(f"  failed: {failures[name]}")
        torch.cuda.empty_cache()
    progress("snapshots of the ledger")
    return Findings(device_facts(), rows, skipped, failures, snapshot_cost(bench.ledger, SNAPSHOTS), "not run")


def with_hardware(findings: Findings, command: Sequence[str], timeout_s: float) -> Findings:
    """The same with what ncu reads while `command` launches the cases once, uncounted; or with why there is none."""
    if timeout_s <= 0:
        return replace(findings, ncu="no time left")
    try:
        seen = profile(command, MODULES, Precision.BF16, timeout_s)
        by_row: dict[tuple[str, str], Hardware] = {}
        order = [(case.name, kernel) for case in SERVING if f"--case={case.name}" in command for kernel in case.kernels]
        if [kernel for _, kernel in order] != [one.kernel for one in seen]:
            raise NcuError(f"ncu saw {len(seen)} launches; expected {len(order)}")
        by_row = dict(zip(order, seen, strict=True))
    except NcuError as error:
        return replace(findings, ncu=str(error))
    rows = [replace(row, hardware=by_row.get((row.case, row.kernel))) for row in findings.rows]
    return replace(findings, rows=rows, ncu="read")


def launch_once(names: Sequence[str]) -> None:
    """What ncu watches: each case compiled and run, then run once more between cudaProfilerStart and -Stop."""
    for name, make in makers(quick=False).items():
        if name in names:
            case = make()
            case.launch()
            torch.cuda.synchronize()
            torch.cuda.profiler.start()
            case.launch()
            torch.cuda.synchronize()
            torch.cuda.profiler.stop()
            del case
            torch.cuda.empty_cache()


def device_facts() -> dict[str, str]:
    """The device and what runs on it."""
    major, minor = torch.cuda.get_device_capability()
    return {
        "name": torch.cuda.get_device_name(),
        "capability": f"{major}.{minor}",
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "triton": triton.__version__,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """The command: a table, then one JSON line, on stdout; progress on stderr. Returns the exit code."""
    parser = argparse.ArgumentParser(prog=f"python -m {WHERE}", description=__doc__, formatter_class=_Raw)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where counting.json goes")
    parser.add_argument("--quick", action="store_true", help="four cases, few repeats, no ncu: a minute or two")
    parser.add_argument("--repeats", type=int, help=f"pairs per kernel (default: {REPEATS}, quick {QUICK_REPEATS})")
    parser.add_argument("--case", action="append", default=[], help=argparse.SUPPRESS)  # for the process under ncu
    options = parser.parse_args(argv)
    started = perf_counter()
    repeats = (QUICK_REPEATS if options.quick else REPEATS) if options.repeats is None else options.repeats
    try:
        if repeats < FEWEST_REPEATS:
            raise InputError("too few", where=WHERE, key="repeats", value=repeats, allowed=f"at least {FEWEST_REPEATS}")
        require_cuda()
        _writable(options.out)
    except InputError as error:
        print(error, file=sys.stderr)
        return EXIT_BAD_INPUT
    if options.case:
        launch_once(options.case)
        return 0
    findings = measure(makers(options.quick), repeats, started + BUDGET_S, _to_stderr)
    raw = options.out / "counting.json"
    raw.write_text(json.dumps(findings.record()) + "\n", encoding="utf-8")  # already: ncu may take the rest with it
    if not options.quick:
        _to_stderr("hardware counters")
        torch.cuda.empty_cache()
        measured = dict.fromkeys(row.case for row in findings.rows)
        command = [sys.executable, "-m", WHERE, "--out", str(options.out), *(f"--case={name}" for name in measured)]
        findings = with_hardware(findings, command, started + BUDGET_S - perf_counter())
        raw.write_text(json.dumps(findings.record()) + "\n", encoding="utf-8")
    print(table(findings), end="")
    print(f"raw: {raw}")
    print(json.dumps(findings.summary()))
    return 0 if findings.right else 1


def require_cuda() -> None:
    """Refuses a machine that has nothing to measure on.

    Raises:
        InputError: torch sees no CUDA device, or Triton interprets kernels instead of compiling them.
    """
    if triton.knobs.runtime.interpret:
        raise InputError("kernels are not compiled", where=WHERE, key="TRITON_INTERPRET", value="1", allowed="unset")
    if not torch.cuda.is_available():
        raise InputError("torch sees no CUDA device", where=WHERE, allowed="a machine with an NVIDIA GPU")


def _writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(EACCES, os.strerror(EACCES))
    except OSError as error:
        problem = f"cannot be written ({error.strerror})"
        raise InputError(
            problem, where=WHERE, key="out", value=str(folder), allowed="a folder that can be made"
        ) from None


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class _Raw(argparse.RawDescriptionHelpFormatter):
    """Help that keeps the line breaks above."""


if __name__ == "__main__":
    sys.exit(main())
