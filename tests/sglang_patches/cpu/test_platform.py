"""When the CPU stand-in acts, what it answers for, and that SGLang takes it up."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from sglang_patches.cpu import platform, standin, threads

ENVIRONMENT = (
    "SGLANG_USE_CPU_ENGINE",
    "SGLANG_NCCL_SO_PATH",
    threads.OMP_THREADS,
    threads.CORE_BINDING,
    threads.CHOSEN_HERE,
)


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A process without the stand-in, without its variables, on a host where it would act; all restored afterwards."""
    monkeypatch.setattr(sys, "meta_path", [f for f in sys.meta_path if not isinstance(f, standin.StandInFinder)])
    monkeypatch.setattr(os, "environ", {k: v for k, v in os.environ.items() if k not in ENVIRONMENT})
    for name in [name for name in sys.modules if name.partition(".")[0] == standin.PACKAGE]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(platform.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(platform, "has_cuda_driver", lambda: False)
    monkeypatch.setattr(platform, "has_other_accelerator", lambda: False)
    monkeypatch.setattr(platform, "kernel_wheel", lambda: None)
    yield monkeypatch
    for name in [name for name in sys.modules if name.partition(".")[0] == standin.PACKAGE]:
        del sys.modules[name]


def cpu_wheel(tmp_path: Path) -> Path:
    (tmp_path / "common_ops.so").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("what", "value"),
    [
        ("has_cuda_driver", lambda: True),
        ("has_other_accelerator", lambda: True),
    ],
)
def test_inert_where_a_device_is_present(clean: pytest.MonkeyPatch, what: str, value: Any) -> None:
    clean.setattr(platform, what, value)
    environment, finders = dict(os.environ), list(sys.meta_path)
    assert platform.activate() is None
    assert (dict(os.environ), sys.meta_path) == (environment, finders)


def test_inert_where_a_cpu_build_of_the_kernels_is_installed(clean: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clean.setattr(platform, "kernel_wheel", lambda: cpu_wheel(tmp_path))
    assert platform.activate() is None
    assert not standin.is_installed()


@pytest.mark.parametrize(("system", "machine"), [("darwin", "x86_64"), ("linux", "aarch64")])
def test_inert_on_other_machines(clean: pytest.MonkeyPatch, system: str, machine: str) -> None:
    clean.setattr(sys, "platform", system)
    clean.setattr(platform.platform, "machine", lambda: machine)
    assert platform.activate() is None
    assert not standin.is_installed()


def test_inert_where_the_user_turned_cpu_mode_off(clean: pytest.MonkeyPatch) -> None:
    os.environ["SGLANG_USE_CPU_ENGINE"] = "0"
    assert platform.activate() is None
    assert not standin.is_installed()


def test_asking_for_cpu_mode_outranks_another_accelerator(clean: pytest.MonkeyPatch) -> None:
    clean.setattr(platform, "has_other_accelerator", lambda: True)
    os.environ["SGLANG_USE_CPU_ENGINE"] = "1"
    assert platform.activate() is not None


def test_inert_where_the_kernels_are_imported_already(clean: pytest.MonkeyPatch) -> None:
    clean.setitem(sys.modules, standin.PACKAGE, sys)
    assert platform.activate() is None
    assert not standin.is_installed()


def test_acts_once_where_nothing_else_can_serve(clean: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "sm90").mkdir()
    clean.setattr(platform, "kernel_wheel", lambda: tmp_path)
    name = platform.activate()
    assert name == platform.activate() == "sglang_patches.cpu.defaults.RooflineCpuPlatform"
    assert sum(isinstance(finder, standin.StandInFinder) for finder in sys.meta_path) == 1
    assert os.environ["SGLANG_USE_CPU_ENGINE"] == "1"
    assert int(os.environ[threads.OMP_THREADS]) >= 1


def test_what_the_user_set_stays(clean: pytest.MonkeyPatch) -> None:
    os.environ |= {"SGLANG_NCCL_SO_PATH": "/mine.so", threads.OMP_THREADS: "7"}
    platform.activate()
    assert os.environ["SGLANG_NCCL_SO_PATH"] == "/mine.so"
    assert os.environ[threads.OMP_THREADS] == "7"
    assert threads.CHOSEN_HERE not in os.environ


def test_finder_answers_for_the_kernel_package_only() -> None:
    finder = standin.StandInFinder()
    for name in ("sgl_kernel", "sgl_kernel.kvcacheio", "sgl_kernel.a.b"):
        spec = finder.find_spec(name)
        assert isinstance(spec, ModuleSpec)
        assert spec.loader is finder
    for name in ("sgl_kernel_npu", "sglang", "sgl", "torch.sgl_kernel", "json"):
        assert finder.find_spec(name) is None


def test_every_public_name_imports_and_a_missing_one_refuses_by_name(clean: pytest.MonkeyPatch) -> None:
    standin.install()
    package = importlib.import_module("sgl_kernel")
    assert package.assign_req_to_token_pool_cpu is not None
    operation = package.no_such_operation
    assert operation is package.no_such_operation
    with pytest.raises(
        NotImplementedError, match=r"sgl_kernel\.no_such_operation is not available without a CUDA driver"
    ):
        operation(1, out=2)
    submodule = importlib.import_module("sgl_kernel.kvcacheio")
    with pytest.raises(NotImplementedError, match=r"sgl_kernel\.kvcacheio\.transfer_kv"):
        submodule.transfer_kv()
    with pytest.raises(NotImplementedError, match=r"sgl_kernel\.spatial\.streams"):
        package.spatial.streams()


def test_a_class_like_name_is_a_class_that_cannot_be_made(clean: pytest.MonkeyPatch) -> None:
    standin.install()
    missing = importlib.import_module("sgl_kernel.moe").ScaleKind
    assert not isinstance(3, missing)
    assert missing.__name__ == "ScaleKind"
    with pytest.raises(NotImplementedError, match=r"sgl_kernel\.moe\.ScaleKind"):
        missing(1)


def test_private_names_stay_absent(clean: pytest.MonkeyPatch) -> None:
    standin.install()
    package = importlib.import_module("sgl_kernel")
    assert not hasattr(package, "__file__")
    assert not hasattr(package, "_private")
    assert not hasattr(package.anything, "__wrapped__")
    assert repr(package.anything) == "<missing operation sgl_kernel.anything>"


def test_pure_python_submodules_come_from_the_installed_wheel(clean: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "scalar_type.py").write_text("marker = 42\n")
    standin.install(tmp_path)
    assert importlib.import_module("sgl_kernel.scalar_type").marker == 42
    with pytest.raises(NotImplementedError):
        importlib.import_module("sgl_kernel.version").anything()


def test_cuda_wheel_is_told_by_its_architecture_folders(tmp_path: Path) -> None:
    assert not platform.is_cuda_wheel(cpu_wheel(tmp_path))
    (tmp_path / "sm100").mkdir()
    assert platform.is_cuda_wheel(tmp_path)


@pytest.mark.parametrize(
    ("cores", "ranks", "each"), [(1, 1, 1), (2, 1, 1), (16, 1, 15), (2, 2, 1), (17, 4, 4), (8, 9, 1)]
)
def test_threads_leave_a_core_for_the_client(cores: int, ranks: int, each: int) -> None:
    assert threads.choose_threads(cores, ranks) == each


@pytest.mark.parametrize(
    ("cores", "ranks", "groups"),
    [([0, 1], 2, "0|1"), ([4, 5, 6, 7], 2, "4,5|6,7"), ([3], 2, "3|3"), ([0, 1, 2], 2, "0|1")],
)
def test_core_groups(cores: list[int], ranks: int, groups: str) -> None:
    assert threads.core_groups(cores, ranks) == groups


@pytest.mark.parametrize(
    ("quota", "most"), [("max 100000", 10**6), ("100000 100000", 1), ("50000 100000", 1), ("junk", 10**6)]
)
def test_usable_cores_respects_the_cgroup_quota(tmp_path: Path, quota: str, most: int) -> None:
    file = tmp_path / "cpu.max"
    file.write_text(quota)
    assert threads.usable_cores(file) == min(most, len(os.sched_getaffinity(0)))


def test_one_rank_needs_no_binding() -> None:
    environment: dict[str, str] = {}
    threads.set_default(environment)
    before = dict(environment)
    threads.share_among_ranks(environment, ranks=1, numa_nodes=1)
    assert environment == before


def test_ranks_beyond_the_numa_nodes_are_told_their_cores() -> None:
    environment: dict[str, str] = {}
    threads.set_default(environment)
    threads.share_among_ranks(environment, ranks=2, numa_nodes=2)
    assert threads.CORE_BINDING not in environment
    threads.share_among_ranks(environment, ranks=2, numa_nodes=1)
    assert environment[threads.CORE_BINDING].count("|") == 1
    assert environment[threads.OMP_THREADS] == str(threads.choose_threads(threads.usable_cores(), 2))


def test_ranks_keep_what_the_user_chose() -> None:
    environment = {threads.OMP_THREADS: "3", threads.CORE_BINDING: "5|6"}
    threads.share_among_ranks(environment, ranks=2, numa_nodes=1)
    assert environment == {threads.OMP_THREADS: "3", threads.CORE_BINDING: "5|6"}


PROBE = """
import json, os, sys, warnings
warnings.simplefilter("ignore")
import sglang.srt.platforms as platforms
import torch
from types import SimpleNamespace
kind = type(platforms.current_platform)
def filled(name, **given):
    defaults = dict(device="cpu", max_total_tokens=None, mem_fraction_static=None, tp_size=1, pp_size=1, dp_size=1)
    arguments = SimpleNamespace(**(defaults | {"moe_runner_backend": "auto"} | given))
    platforms.current_platform.apply_server_args_defaults(arguments)
    return getattr(arguments, name)
def kv_tokens(**given):
    return filled("max_total_tokens", **given)
def experts(**given):
    return filled("moe_runner_backend", **given)
print("PROBE", json.dumps({
    "platform": f"{kind.__module__}.{kind.__name__}",
    "cpu_mode": os.environ.get("SGLANG_USE_CPU_ENGINE"),
    "standin": any(type(finder).__name__ == "StandInFinder" for finder in sys.meta_path),
    "amx_claimed": hasattr(torch.ops.sgl_kernel, "convert_weight_packed"),
    "kv_tokens": [
        kv_tokens(), kv_tokens(max_total_tokens=77), kv_tokens(mem_fraction_static=0.5), kv_tokens(device="x")
    ],
    "experts": [experts(), experts(moe_runner_backend="deep_gemm"), experts(device="x")],
}))
"""


def probe(**environment: str) -> dict[str, Any]:
    """What a fresh process finds after SGLang's first import."""
    kept = {k: v for k, v in os.environ.items() if k not in ENVIRONMENT}
    done = subprocess.run(
        [sys.executable, "-c", PROBE], env=kept | environment, capture_output=True, text=True, timeout=300
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("PROBE ")]
    assert lines, done.stderr
    found: dict[str, Any] = json.loads(lines[0].removeprefix("PROBE "))
    return found


@pytest.mark.slow
@pytest.mark.skipif(platform.has_cuda_driver(), reason="a CUDA driver is present")
def test_sglang_takes_the_platform_at_its_first_import() -> None:
    pytest.importorskip("sglang")
    assert probe() == {
        "platform": "sglang_patches.cpu.defaults.RooflineCpuPlatform",
        "cpu_mode": "1",
        "standin": True,
        "amx_claimed": False,
        "kv_tokens": [65536, 77, None, None],
        "experts": ["triton", "deep_gemm", "auto"],
    }


@pytest.mark.slow
def test_sglang_is_left_alone_when_cpu_mode_is_off() -> None:
    pytest.importorskip("sglang")
    found = probe(SGLANG_USE_CPU_ENGINE="0")
    assert not found["standin"]
    assert "sglang_patches" not in found["platform"]
