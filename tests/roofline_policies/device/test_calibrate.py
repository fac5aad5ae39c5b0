"""Calibration on the CPU: what is counted, how often, and what is kept."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.roofline_policies.device.fake_pynvml import FakePynvml
from tests.roofline_policies.device.fake_timer import FakeTimer

torch = pytest.importorskip("torch")

from roofline_policies.device import calibrate as module  # noqa: E402
from roofline_policies.device.calibration_file import Calibration  # noqa: E402
from roofline_policies.device.hardware import Ceilings  # noqa: E402
from roofline_policies.device.nvml import Nvml, open_nvml  # noqa: E402
from roofline_policies.device.rates import SPREAD_LIMIT, Rate  # noqa: E402
from roofline_policies.errors import EXIT_BAD_INPUT, InputError  # noqa: E402
from roofline_policies.work import Precision  # noqa: E402

KNOWN = Ceilings("some CPU", {Precision.FP32: 1e11}, 3e10, 10**10, None, "calibrated by a test")
NOISY = replace(KNOWN, caveat="fp32: repeats differ by 34%")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ROOFLINE_CACHE_DIR", str(tmp_path / "kept"))
    return tmp_path / "kept"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces the measurement by KNOWN; lists the devices it was asked for."""
    asked: list[str] = []

    def fake(device: str, *_: object) -> Calibration:
        asked.append(device)
        return Calibration(KNOWN, {"fp32": 0.01, "memory": None})

    monkeypatch.setattr(module, "calibrate", fake)
    return asked


def test_calibration_of_this_cpu_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "cpu_busy", lambda: 0.0)  # stands in for a machine of one's own
    said: list[str] = []
    threads_before, precision_before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    found = module.calibrated("cpu", threads=1, budget_s=1.0, progress=said.append)
    assert torch.get_num_threads() == threads_before
    assert torch.get_float32_matmul_precision() == precision_before

    assert found.compute_ceiling(Precision.FP32) > 0
    assert found.bytes_per_s > 0
    assert found.memory_bytes > 2**28
    assert found.usd_per_h is None
    command = "python -m roofline_policies.device.calibrate --device cpu --threads 1"
    assert found.source.endswith(f" by {command}, torch {torch.__version__}, 1 thread")
    told = [line.split(":")[0] for line in said if "measured again" not in line]
    assert list(dict.fromkeys(told)) == ["fp32", "bf16", "fp16", "copy", "sum", "dot"]
    assert found.clock_hz is None

    def fail(*_: object) -> Calibration:
        raise AssertionError("measured again")

    assert module.cached("cpu", 1) == found
    kept = json.loads(module.cache_file("cpu", 1).read_text())
    assert set(kept["spread"]) == {"fp32", "bf16", "fp16", "memory"}
    noisy = [what for what, spread in kept["spread"].items() if spread is not None and spread > SPREAD_LIMIT]
    assert (found.caveat is None) is (noisy == [])
    monkeypatch.setattr(module, "calibrate", fail)
    if found.caveat is None:
        assert module.calibrated("cpu", threads=1) == found


def test_a_precision_the_device_lacks_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def product(_: object, precision: Precision) -> Callable[[int], Callable[[], object]]:
        def make(n: int) -> Callable[[], object]:
            if precision is Precision.FP16:
                raise RuntimeError('"mm" not implemented for Half\nand more')
            return lambda: None

        return make

    monkeypatch.setattr(module, "product", product)
    monkeypatch.setattr(module, "stream_bytes_per_s", lambda *_: Rate(1e9, 0.0))
    monkeypatch.setattr(module, "cpu_timer", FakeTimer(1e-3))
    said: list[str] = []
    found = module.calibrate("cpu", budget_s=1.0, progress=said.append).ceilings
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
        "BAD SPREAD",
        "BAD STATE",
        "NO SPREAD",
        "NO FORMAT",
        "LATER FORMAT",
        "HALF",
    ],
)
def test_a_spoilt_file_is_named_and_measured_again(
    text: str, measured: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    module.calibrated("cpu", 1)
    file = module.cache_file("cpu", 1)
    kept = json.loads(file.read_text())
    spoilt = {
        "BAD CEILINGS": kept | {"ceilings": KNOWN.to_dict() | {"bytes_per_s": 0}},
        "BAD SPREAD": kept | {"spread": {"fp32": "wide"}},
        "BAD STATE": kept | {"state": {"colour": "red"}},
        "NO SPREAD": {key: value for key, value in kept.items() if key != "spread"},
        "NO FORMAT": {"key": kept["key"], "ceilings": kept["ceilings"]},  # as it was written before there was one
        "LATER FORMAT": kept | {"format": kept["format"] + 1},
    }
    file.write_text(file.read_text()[:60] if text == "HALF" else json.dumps(spoilt[text]) if text in spoilt else text)
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


def test_a_folder_that_cannot_be_written_costs_nothing_but_the_time(
    measured: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a file").write_text("in the way")
    monkeypatch.setenv("ROOFLINE_CACHE_DIR", str(tmp_path / "a file"))
    for _ in range(2):
        assert module.calibrated("cpu", 1) == KNOWN
    assert measured == ["cpu", "cpu"]
    assert "could not keep the calibration in" in caplog.text


def test_a_user_without_a_home_has_a_folder(monkeypatch: pytest.MonkeyPatch, measured: list[str]) -> None:
    def no_home(_: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("ROOFLINE_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "expanduser", no_home)
    assert module.cache_file("cpu").parent.name == f"roofline-policies-{os.getuid()}"


def test_a_noisy_measurement_is_kept_with_its_mark_and_measured_anew_the_next_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[object] = []
    outcomes = [NOISY, NOISY, KNOWN]

    def fake(device: str, threads: object, budget_s: object, progress: object, attempts: int) -> Calibration:
        asked.append(attempts)
        return Calibration(outcomes[len(asked) - 1], {"fp32": 0.34})

    busy = [0.0]
    monkeypatch.setattr(module, "cpu_busy", lambda: busy[0])
    monkeypatch.setattr(module, "calibrate", fake)
    assert module.main(["--threads", "1", "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["caveat"] == NOISY.caveat
    assert told.err == f"these ceilings may be too low: {NOISY.caveat}; {module.ANEW}\n"
    assert module.cached("cpu", 1) == NOISY
    busy[0] = 0.4  # measured now, it would be marked again
    assert module.calibrated("cpu", 1) == NOISY
    assert asked == [3]
    busy[0] = 0.09
    assert module.calibrated("cpu", 1) == NOISY
    assert module.calibrated("cpu", 1) == KNOWN
    assert module.calibrated("cpu", 1) == KNOWN
    assert asked == [3, 2, 2]


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> FakePynvml:
    """NVML, stood in for, beside a measurement that runs on this CPU."""
    fake = FakePynvml()
    fake.answers["nvmlDeviceGetUtilizationRates"] = SimpleNamespace(gpu=0)
    monkeypatch.setitem(sys.modules, "pynvml", fake)

    @contextmanager
    def nvml(_: object) -> Iterator[Nvml | None]:
        with open_nvml(0) as opened:
            yield opened

    monkeypatch.setattr(module, "_nvml", nvml)
    monkeypatch.setattr(module, "cpu_timer", FakeTimer(1e-3))
    return fake


def test_a_device_that_another_process_uses_is_marked(watched: FakePynvml) -> None:
    assert module.calibrate("cpu", budget_s=0.5).ceilings.caveat is None
    watched.answers["nvmlDeviceGetUtilizationRates"] = SimpleNamespace(gpu=37)
    ceilings = module.calibrate("cpu", budget_s=0.5).ceilings
    assert ceilings.caveat == "the device was 37% busy before it was measured"
    watched.every = 999
    assert module.calibrate("cpu", budget_s=0.5).ceilings.caveat is None  # nobody can tell


def test_a_cpu_that_other_processes_use_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steady load makes no repeat differ from another."""
    monkeypatch.setattr(module, "cpu_timer", FakeTimer(1e-3))
    caveats = []
    for busy in (0.0, 0.09, 0.1, 0.65, None):
        monkeypatch.setattr(module, "cpu_busy", lambda share=busy: share)
        caveats.append(module.calibrate("cpu", budget_s=0.5).ceilings.caveat)
    said = "the device was {} busy before it was measured"
    assert caveats == [None, None, said.format("10%"), said.format("65%"), None]


@pytest.mark.parametrize(("percent", "mask", "clock_hz"), [(90, 0x4, 1.5e9), (90, 0x1, None), (0, 0x0, None)])
def test_the_clock_of_the_device_at_work_is_kept_with_its_ceilings(
    watched: FakePynvml, monkeypatch: pytest.MonkeyPatch, percent: int, mask: int, clock_hz: float | None
) -> None:
    def works(*_: object) -> Rate:
        watched.answers["nvmlDeviceGetUtilizationRates"] = SimpleNamespace(gpu=percent)
        watched.answers["nvmlDeviceGetCurrentClocksThrottleReasons"] = mask
        time.sleep(0.02)
        return Rate(1e12, 0.01)

    monkeypatch.setattr(module, "CLOCK_EVERY_S", 0.001)
    monkeypatch.setattr(module, "matmul_flops_per_s", works)
    ceilings = module.calibrate("cpu", budget_s=0.5).ceilings
    assert ceilings.clock_hz == clock_hz
    if clock_hz is not None:
        assert ceilings.at_clock(0.75e9).compute_ceiling(Precision.FP32) == pytest.approx(5e11)


def test_ceilings_of_another_driver_or_power_limit_are_measured_again(
    watched: FakePynvml, measured: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        module.calibrated("cpu", 1)
    watched.answers["nvmlDeviceGetEnforcedPowerLimit"] = 450_000
    module.calibrated("cpu", 1)
    assert "under a power limit of 600 W, this is 450 W" in caplog.text
    watched.answers["nvmlSystemGetDriverVersion"] = "580.1"
    module.calibrated("cpu", 1)
    assert "with driver 570.86.15, this is 580.1" in caplog.text
    watched.answers["nvmlDeviceGetEnforcedPowerLimit"] = 450_200  # the same limit, rounded otherwise
    module.calibrated("cpu", 1)
    watched.fails |= {"nvmlDeviceGetEnforcedPowerLimit": 3, "nvmlSystemGetDriverVersion": 3}
    module.calibrated("cpu", 1)
    assert measured == ["cpu"] * 3


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
