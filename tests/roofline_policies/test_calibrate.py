"""Calibration on the CPU: what is counted, how often, and what is kept."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from roofline_policies import calibrate as module  # noqa: E402
from roofline_policies.errors import EXIT_BAD_INPUT, InputError  # noqa: E402
from roofline_policies.hardware import Ceilings  # noqa: E402
from roofline_policies.work import Precision  # noqa: E402

CPU = torch.device("cpu")
KNOWN = Ceilings("some CPU", {Precision.FP32: 1e11}, 3e10, 10**10, None, "calibrated by a test")


class FakeTimer:
    """A timer on which a run takes ``run_s``, and the first one ``first_s``. Counts runs and calls."""

    def __init__(self, run_s: float, first_s: float | None = None) -> None:
        self.run_s = run_s
        self.first_s = run_s if first_s is None else first_s
        self.runs = 0
        self.calls = 0

    def __call__(self, operation: Callable[[], object], repeats: int) -> list[float]:
        times = [self.first_s if self.runs + i == 0 else self.run_s for i in range(repeats)]
        self.runs += repeats
        self.calls += 1
        return times


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ROOFLINE_CACHE_DIR", str(tmp_path / "kept"))
    return tmp_path / "kept"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces the measurement by KNOWN; lists the devices it was asked for."""
    asked: list[str] = []

    def fake(device: str, *_: object) -> Ceilings:
        asked.append(device)
        return KNOWN

    monkeypatch.setattr(module, "calibrate", fake)
    return asked


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16, Precision.FP16, Precision.FP8])
def test_flops_are_those_torch_counts(precision: Precision) -> None:
    run = module.product(CPU, precision)(64)
    with FlopCounterMode(display=False) as counter:
        run()
    assert counter.get_total_flops() == module.matmul_flops(64) == 2 * 64**3


def test_stream_bytes_are_those_of_the_buffers() -> None:
    size = 4 << 20
    moved = {kind: bytes_moved for kind, (_, bytes_moved) in module.streams(CPU, size).items()}
    assert moved == {"copy": 2 * size, "sum": size, "dot": 2 * size}


@pytest.mark.parametrize(
    ("run_s", "budget_s", "runs"),
    [
        (0.3, 1.0, 3),  # a fourth would end after 1.2 s
        (0.3, 0.0, 2),  # one to warm up and one that counts, whatever the budget
        (5.0, 1.0, 2),
        (1e-6, 1.0, 1 + module.MOST_REPEATS),
    ],
)
def test_repeats_fill_the_budget_and_do_not_exceed_it(run_s: float, budget_s: float, runs: int) -> None:
    timer = FakeTimer(run_s)
    assert module.best_s(lambda: None, timer, budget_s) == run_s
    assert timer.runs == runs


def test_a_slow_first_run_does_not_count() -> None:
    timer = FakeTimer(run_s=0.01, first_s=0.5)
    assert module.best_s(lambda: None, timer, 1.0) == 0.01
    assert timer.runs > 40
    assert timer.calls < timer.runs  # repeats are timed in chunks, one synchronise each


def test_sizes_grow_while_they_fit() -> None:
    made: list[int] = []

    def make(n: int) -> Callable[[], object]:
        made.append(n)
        return lambda: None

    def at_a_gigaflop(_: object, repeats: int) -> list[float]:
        return [module.matmul_flops(made[-1]) / 1e9] * repeats

    assert module.matmul_flops_per_s(make, (64, 128, 256, 4096), at_a_gigaflop, 1.0) == pytest.approx(1e9)
    assert made == [64, 128, 256]  # three products of 4096 would take 412 s


def test_sizes_stop_where_the_rate_collapses() -> None:
    made: list[int] = []

    def make(n: int) -> Callable[[], object]:
        made.append(n)
        return lambda: None

    def slower(_: object, repeats: int) -> list[float]:
        return [module.matmul_flops(made[-1]) / (1e12 / 4 ** len(made))] * repeats

    assert module.matmul_flops_per_s(make, (64, 128, 256, 512), slower, 10.0) == pytest.approx(1e12 / 4)
    assert made == [64, 128]


def test_cuda_times_with_events_and_synchronises_once(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    class FakeEvent:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            log.append("record")

        def elapsed_time(self, end: FakeEvent) -> float:
            assert log[-1] == "synchronize"
            return 250.0

    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("synchronize"))
    assert module._cuda_timer(lambda: log.append("run"), 3) == [0.25, 0.25, 0.25]
    assert log == ["record", "run", "record"] * 3 + ["synchronize"]


def test_calibration_of_this_cpu_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    threads_before, precision_before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    found = module.calibrated("cpu", threads=1, budget_s=1.0, progress=said.append)
    assert torch.get_num_threads() == threads_before
    assert torch.get_float32_matmul_precision() == precision_before

    assert found.compute_ceiling(Precision.FP32) > 0
    assert found.bytes_per_s > 0
    assert found.memory_bytes > 2**28
    assert found.usd_per_h is None
    assert found.source.endswith(f"torch {torch.__version__}, 1 thread")
    assert [line.split(":")[0] for line in said] == ["fp32", "bf16", "fp16", "copy", "sum", "dot"]

    def fail(*_: object) -> Ceilings:
        raise AssertionError("measured again")

    monkeypatch.setattr(module, "calibrate", fail)
    assert module.calibrated("cpu", threads=1) == found == module.cached("cpu", 1)


def test_a_precision_the_device_lacks_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def product(_: object, precision: Precision) -> Callable[[int], Callable[[], object]]:
        def make(n: int) -> Callable[[], object]:
            if precision is Precision.FP16:
                raise RuntimeError('"mm" not implemented for Half\nand more')
            return lambda: None

        return make

    monkeypatch.setattr(module, "product", product)
    monkeypatch.setattr(module, "stream_bytes_per_s", lambda *_: 1e9)
    monkeypatch.setattr(module, "_cpu_timer", FakeTimer(1e-3))
    said: list[str] = []
    found = module.calibrate("cpu", budget_s=1.0, progress=said.append)
    assert list(found.flops_per_s) == [Precision.FP32, Precision.BF16]
    assert said[2] == 'fp16: left out, the device does not offer it ("mm" not implemented for Half)'


def test_nothing_is_kept_at_first(folder: Path) -> None:
    assert module.cached("cpu", 1) is None
    assert not folder.exists()


def test_force_measures_again(measured: list[str]) -> None:
    for force in (False, False, True):
        assert module.calibrated("cpu", 1, force=force) == KNOWN
    assert measured == ["cpu", "cpu"]


def test_thread_counts_are_kept_apart(measured: list[str]) -> None:
    assert module.cache_file("cpu", 1) != module.cache_file("cpu", 2)
    module.calibrated("cpu", 1)
    assert module.cached("cpu", 2) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"key": {}}',
        json.dumps({"key": {"device": "another"}, "ceilings": KNOWN.to_dict()}),
        "BAD CEILINGS",
    ],
)
def test_a_spoilt_file_is_named_and_measured_again(
    text: str, measured: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    module.calibrated("cpu", 1)
    file = module.cache_file("cpu", 1)
    if text == "BAD CEILINGS":
        text = json.dumps(json.loads(file.read_text()) | {"ceilings": KNOWN.to_dict() | {"bytes_per_s": 0}})
    file.write_text(text)
    with caplog.at_level(logging.WARNING):
        assert module.calibrated("cpu", 1) == KNOWN
    assert str(file) in caplog.text
    assert measured == ["cpu", "cpu"]
    assert module.cached("cpu", 1) == KNOWN


def test_a_file_is_written_whole_or_not_at_all(
    folder: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(os, "replace", full)
    assert module.calibrated("cpu", 1) == KNOWN  # what was measured is still of use
    assert "the disk is full" in caplog.text
    assert list(folder.iterdir()) == []


def test_the_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert module.cache_file("cpu").parent == tmp_path / "kept"
    monkeypatch.delenv("ROOFLINE_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert module.cache_file("cpu").parent == tmp_path / "roofline-policies" / "ceilings"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert module.cache_file("cpu").parent == tmp_path / ".cache" / "roofline-policies" / "ceilings"


@pytest.mark.parametrize(
    ("arguments", "key"), [(("tpu", None), "device"), (("cuda:99", None), "device"), (("cpu", 0), "threads")]
)
def test_bad_input_is_named(arguments: tuple[str, int | None], key: str) -> None:
    with pytest.raises(InputError) as caught:
        module.calibrated(*arguments)
    assert caught.value.key == key
    with pytest.raises(InputError):
        module.calibrate("cpu", budget_s=0.0)


def test_the_command_prints_a_table_and_one_json_line(measured: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert module.main(["--threads", "1"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert len(table) > 3
    assert Ceilings.from_dict(json.loads(table[-1])) == KNOWN
    assert module.main(["--threads", "1", "--json"]) == 0
    assert capsys.readouterr().out.splitlines() == table[-1:]


def test_the_command_refuses_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert module.main(["--device", "tpu"]) == EXIT_BAD_INPUT
    assert capsys.readouterr().err == "calibrate: device = 'tpu': no such device; allowed: cpu, cuda, cuda:N\n"
