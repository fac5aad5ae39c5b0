"""The GPU measurement as far as it goes without a GPU: arguments, the refusal, pairs, what ncu prints, the table."""

from __future__ import annotations

import json
import stat
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.gpu import counting, device, ncu
from bench.gpu.counting import main, makers, with_hardware
from bench.gpu.device import Loaded, Paired, SnapshotCost, launches_per_measurement, paired
from bench.gpu.findings import Findings, Row, cells, table
from bench.gpu.ncu import Hardware, NcuError
from bench.kernels.attention import SERVING, serving_makers
from bench.kernels.closed_forms import Expected
from roofline_policies.errors import EXIT_BAD_INPUT, InputError
from roofline_policies.work import Precision

FACTS = {"name": "NVIDIA H200", "capability": "9.0", "torch": "2.14.1", "cuda": "13.0", "triton": "3.8.0"}
EXPECTED = Expected({"k": 600, "v": 400, "q": 0}, {"o": 50}, dot_flops=4000)
FULL = Row(
    "decode [GQA]",
    "_fwd_grouped_kernel_stage1",
    EXPECTED,
    500,
    Precision.BF16,
    exact=True,
    graph=True,
    counts={"load": 1000},
    times=Paired((100e-6, 102e-6, 98e-6), (101e-6, 102e-6, 99e-6)),
    plain=Loaded(80, 0, 6),
    counting=Loaded(86, 0, 5),
    held=Loaded(80, 0, 6),
    hardware=Hardware("_fwd_grouped_kernel_stage1", 4000, 750, 60),
)
EMPTY = Row(
    "kv indices", "create_flashinfer_kv_indices_triton", Expected({"table": 8}, {"indices": 16}), 0, Precision.BF16
)
SNAPSHOT = SnapshotCost((10e-6, 12e-6, 50e-6), (4e-6, 5e-6, 6e-6), waited=False)


def findings(**changes: Any) -> Findings:
    whole: dict[str, Any] = {"rows": [FULL, EMPTY], "skipped": [], "failures": {}, "snapshot": SNAPSHOT, "ncu": "read"}
    return Findings(FACTS, **whole | changes)


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting.torch.cuda, "is_available", lambda: False)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A GPU that is not there: what `measure` is asked for, and (key "found") what it answers."""
    asked: dict[str, Any] = {"found": findings()}

    def measure(cases: Any, repeats: int, deadline_s: float, progress: Any) -> Findings:
        asked.update(cases=list(cases), repeats=repeats)
        return asked["found"]

    def hardware(found: Findings, command: Any, timeout_s: float) -> Findings:
        asked.update(command=list(command), timeout_s=timeout_s)
        return found

    monkeypatch.setattr(counting, "require_cuda", lambda: None)
    monkeypatch.setattr(counting, "serving_makers", lambda device: serving_makers("meta"))
    monkeypatch.setattr(counting, "measure", measure)
    monkeypatch.setattr(counting, "with_hardware", hardware)
    monkeypatch.setattr(counting.torch.cuda, "empty_cache", lambda: None)
    return asked


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_it_refuses_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path / "new")]) == EXIT_BAD_INPUT
    said = capsys.readouterr()
    assert said.err == "bench.gpu.counting: torch sees no CUDA device; allowed: a machine with an NVIDIA GPU\n"
    assert said.out == ""
    assert not (tmp_path / "new").exists()


def test_it_refuses_to_measure_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting.triton.knobs.runtime, "interpret", True)
    with pytest.raises(InputError, match=r"TRITON_INTERPRET = '1': kernels are not compiled; allowed: unset"):
        counting.require_cuda()


@pytest.mark.parametrize("repeats", ["0", "4", "-1"])
def test_too_few_repeats(repeats: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path), "--repeats", repeats]) == EXIT_BAD_INPUT
    message = f"bench.gpu.counting: repeats = {repeats}: too few; allowed: at least 5\n"
    assert capsys.readouterr().err == message


@pytest.mark.parametrize("arguments", [[], ["--out"], ["--out", "x", "--repeats", "many"], ["--out", "x", "--fast"]])
def test_arguments_that_cannot_be_read(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == EXIT_BAD_INPUT
    assert "usage: python -m bench.gpu.counting" in capsys.readouterr().err


@pytest.mark.usefixtures("measured")
def test_a_folder_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["--out", str(tmp_path / "file" / "below")]) == EXIT_BAD_INPUT
    said = capsys.readouterr().err
    assert said.startswith("bench.gpu.counting: out = ")
    assert said.endswith("cannot be written (Not a directory); allowed: a folder that can be made\n")


def test_it_prints_a_table_and_one_json_line_and_keeps_the_samples(
    measured: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--out", str(tmp_path / "new" / "folder")]) == 0
    *printed, last = capsys.readouterr().out.splitlines()
    assert any("decode [GQA]: _fwd_grouped_kernel_stage1" in line for line in printed)
    summary = json.loads(last)
    raw = json.loads((tmp_path / "new" / "folder" / "counting.json").read_text())
    assert summary["right"] is raw["right"] is True
    assert summary["rows"][0]["ratio"] == raw["rows"][0]["ratio"] == pytest.approx(1.01, rel=1e-3)
    assert raw["rows"][0]["times"]["plain_s"] == [100e-6, 102e-6, 98e-6]
    assert raw["rows"][0]["hardware"]["read_bytes"] == 750
    assert raw["rows"][0]["expected"]["bf16_flops"] == 4000
    assert "times" not in summary["rows"][0]
    assert summary["snapshot"] == {"host_s": 12e-6, "stream_s": 5e-6, "waited": False}
    assert measured["repeats"] == counting.REPEATS
    assert measured["cases"] == [case.name for case in SERVING]
    assert measured["timeout_s"] <= counting.BUDGET_S
    assert measured["command"][1:3] == ["-m", "bench.gpu.counting"]
    assert "--case=decode [GQA]" in measured["command"]


def test_quick_is_few_cases_and_no_ncu(measured: dict[str, Any], tmp_path: Path) -> None:
    assert main(["--out", str(tmp_path), "--quick"]) == 0
    assert measured["cases"] == list(counting.QUICK)
    assert measured["repeats"] == counting.QUICK_REPEATS
    assert "command" not in measured


@pytest.mark.parametrize(
    "changes",
    [
        {"failures": {"decode": "RuntimeError: no"}},
        {"snapshot": SnapshotCost((1.0,), (1.0,), waited=True)},
        {"rows": [replace(FULL, exact=False)]},
        {"rows": [replace(FULL, graph=False)]},
    ],
)
def test_what_is_wrong_is_in_the_exit_code(changes: dict[str, Any], measured: dict[str, Any], tmp_path: Path) -> None:
    measured["found"] = findings(**changes)
    assert main(["--out", str(tmp_path), "--quick"]) == 1


def test_a_missed_target_is_no_error(measured: dict[str, Any], tmp_path: Path) -> None:
    slow = replace(FULL, times=Paired((1.0,), (1.02,)))
    measured["found"] = findings(rows=[slow], skipped=["unified"])
    assert main(["--out", str(tmp_path), "--quick"]) == 0
    assert measured["found"].missed == ["decode [GQA]: _fwd_grouped_kernel_stage1"]


def test_makers_make_the_serving_cases(measured: dict[str, Any]) -> None:
    made = makers(quick=False)
    assert [make().name for make in made.values()] == list(made)
    assert set(counting.QUICK) < set(made)


# --- the table --------------------------------------------------------------------------------------------------------


def test_a_full_row() -> None:
    assert cells(FULL) == [
        "100.0",
        "1.0100 (1.0000 to 1.0102)",
        "equal",
        "equal",
        "80 -> 86 (held: 80)",
        "6 -> 5 (held: 6)",
        "1.0000",
        "inside (50.0%)",
    ]


def test_an_empty_row() -> None:
    assert cells(EMPTY) == ["-"] * 8


def test_what_is_wrong_stands_out() -> None:
    bad = replace(
        FULL,
        exact=False,
        graph=False,
        times=Paired((1.0,), (1.5,)),
        held=Loaded(80, 3, 6),
        hardware=FULL.hardware._replace(read_bytes=400, tensor_flops=2000) if FULL.hardware else None,
    )
    assert cells(bad)[1:] == [
        "1.5000 (1.5000 to 1.5000) missed",
        "WRONG",
        "WRONG",
        "80 -> 86 (held: 80), 3 spills",
        "6 -> 5 (held: 6)",
        "2.0000",
        "OUTSIDE (-20.0%)",
    ]


def test_a_kernel_that_needs_no_more_registers() -> None:
    same = replace(FULL, counting=FULL.plain, held=None)
    assert cells(same)[4:6] == ["80", "6"]


def test_the_table_tells_the_rest_in_lines() -> None:
    text = table(findings(failures={"verify": "ValueError: [red]"}, skipped=["a", "b"], ncu="ncu is not on PATH"))
    assert text.isascii()
    *_, facts, snapshot, hardware, skipped, failed, target = text.splitlines()
    assert facts == "device: NVIDIA H200, CUDA 13.0, torch 2.14.1, Triton 3.8.0"
    assert snapshot == "snapshot of the ledger: 12.0 us on the host, 5.0 us on the stream; waits for nothing"
    assert hardware == "hardware counters: ncu is not on PATH"
    assert skipped == "skipped, no time left: a; b"
    assert failed == "FAILED: verify: ValueError: [red]"
    assert target == "target, at most 1% slower: kept"
    assert "decode [GQA]: _fwd_grouped_kernel_stage1" in text


def test_a_snapshot_that_waits_is_told() -> None:
    assert "WAITS for the stream" in table(findings(snapshot=SnapshotCost((1.0,), (1.0,), waited=True)))


# --- pairs ------------------------------------------------------------------------------------------------------------


def test_pairs_alternate() -> None:
    order: list[str] = []

    def measure(name: str, seconds: float) -> Any:
        return lambda: order.append(name) or seconds

    found = paired(measure("plain", 2.0), measure("counted", 3.0), 3)
    assert order == ["plain", "counted", "counted", "plain", "plain", "counted"]
    assert found == Paired((2.0, 2.0, 2.0), (3.0, 3.0, 3.0))
    assert found.ratio == 1.5


def test_ratios_are_of_pairs() -> None:
    assert Paired((1.0, 2.0, 4.0), (1.1, 2.0, 8.0)).ratios == (1.0, 1.1, 2.0)


@pytest.mark.parametrize(("seconds", "launches"), [(1.0, 1), (500e-6, 1), (200e-6, 3), (1e-9, 200), (0.0, 200)])
def test_short_kernels_are_launched_several_times(seconds: float, launches: int) -> None:
    assert launches_per_measurement(seconds) == launches


def test_a_driver_that_refuses_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Driver:
        def cuOccupancyMaxActiveBlocksPerMultiprocessor(self, *arguments: Any) -> int:
            return 400

    class Compiled:
        function, n_regs, n_spills = 1, 80, 0

        class metadata:
            num_warps, shared = 4, 0

    monkeypatch.setattr(device.ctypes, "CDLL", lambda name: Driver())
    with pytest.raises(RuntimeError, match="CUDA error 400"):
        device.loaded(Compiled)


# --- ncu --------------------------------------------------------------------------------------------------------------

METRICS = f'"{ncu.READ}","{ncu.WRITTEN}","{ncu.TENSOR[Precision.BF16]}"'
PRINTED = f"""==PROF== Connected to process 7
some program's own line
"ID","Process ID","Kernel Name",{METRICS}
"","","","byte","byte",""
"0","7","vectorized_elementwise_kernel","1","2","0"
"1","7","_fwd_kernel","1,024","96","4096"
"2","7","_fwd_kernel_stage2","12.0","",""
"""


def test_what_ncu_prints_is_read() -> None:
    assert ncu.parse(PRINTED, {"_fwd_kernel", "_fwd_kernel_stage2"}, Precision.BF16) == [
        Hardware("_fwd_kernel", 4096, 1024, 96),
        Hardware("_fwd_kernel_stage2", 0, 12, 0),
    ]


@pytest.mark.parametrize("text", ["", "nothing", '"ID","Kernel Name"\n"",""\n"1","_fwd_kernel"\n', '"ID"\n'])
def test_what_is_no_table_is_refused(text: str) -> None:
    with pytest.raises(NcuError, match="no table"):
        ncu.parse(text, {"_fwd_kernel"}, Precision.BF16)


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    program = folder / "ncu"
    program.write_text(f"#!{sys.executable}\nimport sys, time\n{body}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder))


def read(timeout_s: float = 20.0) -> list[Hardware]:
    return ncu.profile(["program", "--argument"], {"_fwd_kernel"}, Precision.BF16, timeout_s)


def test_ncu_runs_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, f"assert sys.argv[-2:] == ['program', '--argument']\nprint({PRINTED!r})")
    assert read() == [Hardware("_fwd_kernel", 4096, 1024, 96)]


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("print('==ERROR== ERR_NVGPUCTRPERM - no permission'); sys.exit(1)", "not permitted to read hardware counters"),
        ("print('no luck', file=sys.stderr); sys.exit(3)", "exit code 3: no luck"),
        ("sys.exit(3)", "exit code 3: no output"),
        ("time.sleep(60)", "timed out"),
    ],
)
def test_ncu_that_fails_says_why(body: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, body)
    with pytest.raises(NcuError, match=problem):
        read(timeout_s=1.0 if "sleep" in body else 20.0)


def test_without_ncu_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = with_hardware(findings(ncu="not run"), ["program"], 10.0)
    assert found.ncu == "ncu is not on PATH"
    assert found.rows[0].hardware == FULL.hardware


def test_no_time_left_for_ncu() -> None:
    assert with_hardware(findings(), ["program"], -1.0).ncu == "no time left"


def test_hardware_goes_to_the_rows_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(case for case in SERVING if len(case.kernels) == 2)
    rows = [Row(case.name, kernel, EXPECTED, 500, Precision.BF16) for kernel in case.kernels]
    seen = [Hardware(kernel, at, at, at) for at, kernel in enumerate(case.kernels)]
    monkeypatch.setattr(counting, "profile", lambda *arguments: seen)
    found = with_hardware(findings(rows=rows), [f"--case={case.name}"], 10.0)
    assert found.ncu == "read"
    assert [row.hardware for row in found.rows] == seen
    monkeypatch.setattr(counting, "profile", lambda *arguments: seen[:1])
    assert with_hardware(findings(rows=rows), [f"--case={case.name}"], 10.0).ncu == "ncu saw 1 launches; expected 2"
