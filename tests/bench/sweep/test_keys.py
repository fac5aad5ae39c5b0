"""A key changes with everything that decides a result, and with nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from bench.slo import JudgedSlo
from bench.sweep import keys
from bench.sweep.keys import arm_digest, cell_digest, plain, run_digest, source_digest, unit_key
from bench.virtual.arms import VirtualArm
from bench.virtual.price import Price
from bench.virtual.processes import run_each
from bench.virtual.settings import Experiment
from tests import ROOT
from tests.bench.sweep.cells import settings

SLO = JudgedSlo(2.0, 0.1)


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    return settings().cells[0].experiment


ARMS = (("fixed", None), ("ours", "adaptive"))


def called_files(experiment: Experiment, arm: VirtualArm, told: Callable[[int, float], None]) -> set[str]:
    """Files of the checkout of which a run called a function. In a process of its own: everything is imported first,
    and what is made of classes then (``__new__`` of a named tuple's default) does not count."""
    import bench.virtual.run

    called: set[str] = set()

    def profile(frame: Any, event: str, argument: object) -> None:
        if event == "call" and frame.f_code.co_name != "<module>":
            called.add(frame.f_code.co_filename)

    sys.setprofile(profile)
    try:
        bench.virtual.run.run_arm(experiment, arm, told)
    finally:
        sys.setprofile(None)
    return {Path(name).relative_to(ROOT).as_posix() for name in called if Path(name).is_relative_to(ROOT)}


CHANGES: dict[str, Callable[[Experiment], Experiment]] = {
    "seed": lambda e: replace(e, seed=1),
    "a length": lambda e: replace(e, requests=(replace(e.requests[0], output_tokens=99), *e.requests[1:])),
    "an arrival": lambda e: replace(e, requests=(replace(e.requests[0], arrival_s=0.001), *e.requests[1:])),
    "a shared prefix": lambda e: replace(e, requests=(replace(e.requests[0], prefix_blocks=(1,)), *e.requests[1:])),
    "one request less": lambda e: replace(e, requests=e.requests[1:]),
    "the price of a step": lambda e: replace(e, price=Price(slower=1.1, slower_from_s=9.0)),
    "the cap": lambda e: replace(e, output_cap_tokens=None),
    "the arguments": lambda e: replace(e, server_args=("--page-size", "16")),
    "the device": lambda e: replace(e, device=replace(e.device, kv_tokens=5000)),
    "its bandwidth": lambda e: replace(
        e, device=replace(e.device, ceilings=replace(e.device.ceilings, bytes_per_s=1e12))
    ),
    "its host": lambda e: replace(e, host=replace(e.host, step_s=0.5)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_run_is_what_its_arms_share(change: Callable[[Experiment], Experiment], experiment: Experiment) -> None:
    assert run_digest(change(experiment)) != run_digest(experiment)


def test_a_cell_is_its_run_and_what_that_is_judged_by(experiment: Experiment) -> None:
    assert run_digest(replace(experiment, slo=JudgedSlo(2.0, 0.2))) == run_digest(experiment)
    judges = [("run", SLO, None), ("run", JudgedSlo(2.0, 0.2), None), ("run", SLO, 2.0), ("other", SLO, None)]
    assert len({cell_digest(*judge) for judge in judges}) == 4


def test_equal_cells_have_equal_digests_in_every_process(experiment: Experiment) -> None:
    code = "from tests.bench.sweep.cells import settings; from bench.sweep.keys import run_digest; "
    code += "print(run_digest(settings().cells[0].experiment))"
    environment = {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "5"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == run_digest(experiment)


def test_a_trace_is_its_requests_wherever_it_lies(tmp_path: Path) -> None:
    lines = ["TIMESTAMP,ContextTokens,GeneratedTokens", "2023-11-16 18:00:00,100,5", "2023-11-16 18:00:01,100,6"]
    digests = []
    for name, end in (("a.csv", "5"), ("b.csv", "5"), ("c.csv", "6")):
        (tmp_path / name).write_text("\n".join([*lines, f"2023-11-16 18:00:02,100,{end}"]))
        trace = f"['traffic=azure','traffic.path={tmp_path / name}']"
        digests.append(run_digest(settings("overrides=[]", f"axes.load.low={trace}").cells[0].experiment))
    assert digests[0] == digests[1] != digests[2]


def test_an_arm_is_its_arguments_and_its_policy() -> None:
    static = VirtualArm("a", policy="static")
    others = [
        VirtualArm("a"),
        VirtualArm("a", policy="adaptive"),
        VirtualArm("a", policy="adaptive", policy_set=("controller.dwell_s=2",)),
        replace(static, server_args=("--enable-mixed-chunk",)),
        replace(static, speculation_steps=3),
    ]
    assert len({arm_digest(arm, SLO) for arm in (static, *others)}) == 6
    assert arm_digest(static, JudgedSlo(2.0, 0.2)) != arm_digest(static, SLO)
    assert arm_digest(replace(static, name="b", oracle="fixed"), SLO) == arm_digest(static, SLO)


def test_a_policys_file_is_what_it_says_not_where_it_is(tmp_path: Path) -> None:
    text = (ROOT / "conf" / "adaptive.yaml").read_text()
    for name, changed in (
        ("a", text),
        ("b", text + "# no matter\n"),
        ("c", text.replace("dwell_s: 1.0", "dwell_s: 3")),
    ):
        (tmp_path / f"{name}.yaml").write_text(changed)
    digests = [arm_digest(VirtualArm("x", policy=str(tmp_path / f"{name}.yaml")), SLO) for name in "abc"]
    assert digests[0] == digests[1] == arm_digest(VirtualArm("x", policy="adaptive"), SLO)
    assert digests[2] != digests[0]


def test_the_source_of_ones_own_policy_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    digests = []
    for answer in ("()", "[]"):
        source = f"class Mine:\n    def propose(self, view):\n        return {answer}\n"
        (tmp_path / "swept_policy.py").write_text(source)
        digests.append(arm_digest(VirtualArm("x", policy="swept_policy:Mine"), SLO))
        del sys.modules["swept_policy"]
    assert digests[0] != digests[1]


def test_a_unit_is_its_cell_its_arm_and_what_runs_it() -> None:
    units = {unit_key(*parts) for parts in (("c", "a", "e"), ("C", "a", "e"), ("c", "A", "e"), ("c", "a", "E"))}
    assert len(units) == 4


def test_what_runs_units_is_sources_and_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arm = VirtualArm("a")

    def environment() -> str:
        keys._environment.cache_clear()
        return keys.environment_digest(arm)

    before = environment()
    (tmp_path / "new.py").write_text("")
    for name, value in (
        ("SOURCES", (*keys.SOURCES, str(tmp_path))),
        ("FORMAT", 0),
        ("VERSIONED", (*keys.VERSIONED, "scipy")),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(keys, name, value)
            assert environment() != before
    assert environment() == before


def test_an_edited_policy_leaves_results_without_one_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of_policies, of_all = tmp_path / "policies", tmp_path / "engine.py"
    of_policies.mkdir()
    monkeypatch.setattr(keys, "SOURCES", (str(tmp_path),))
    monkeypatch.setattr(keys, "OF_POLICIES", (str(of_policies),))

    def environments(policy_text: str, engine_text: str) -> tuple[str, str]:
        (of_policies / "mine.py").write_text(policy_text)
        of_all.write_text(engine_text)
        keys._environment.cache_clear()
        fixed, ours = VirtualArm("a"), VirtualArm("b", policy="static")
        return keys.environment_digest(fixed), keys.environment_digest(ours)

    fixed, ours = environments("1", "1")
    after_policy, after_engine = environments("2", "1"), environments("1", "2")
    assert (after_policy[0] == fixed, after_policy[1] == ours) == (True, False)
    assert (after_engine[0] == fixed, after_engine[1] == ours) == (False, False)
    keys._environment.cache_clear()


@pytest.mark.slow
def test_what_is_left_out_without_a_policy_does_not_run_without_one(experiment: Experiment) -> None:
    """Every function of this project that a run calls, but for what runs while modules are imported."""
    found = dict(
        run_each(called_files, [(experiment, VirtualArm(name, policy=policy)) for name, policy in ARMS], 1, print)
    )
    left_out = {
        file.relative_to(ROOT).as_posix() for one in keys.OF_POLICIES for file in keys._python_files(ROOT / one)
    }
    assert {"sglang_patches/hooks.py", "bench/virtual/run.py"} <= found[0] <= found[1]
    assert found[0] & left_out == set()
    assert {"sglang_patches/loop/decider.py", "roofline_policies/policies/prefill_deferral.py"} <= found[1] & left_out


def test_sources_are_names_and_contents(tmp_path: Path) -> None:
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "a.py").write_text("1")
    first = source_digest([folder])
    (folder / "notes.txt").write_text("nothing that runs")
    assert source_digest([folder]) == first
    (folder / "a.py").write_text("2")
    second = source_digest([folder])
    (folder / "a.py").rename(folder / "b.py")
    assert len({first, second, source_digest([folder])}) == 3


def test_every_module_that_a_unit_runs_is_a_source() -> None:
    """What bench.sweep.task imports, directly or not, of this project."""
    code = "import sys, bench.sweep.task, bench.virtual.run; print(*(m.__file__ for n, m in sys.modules.items()"
    code += " if n.partition('.')[0] in ('bench', 'sglang_patches', 'roofline_policies') and m.__file__))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    known = [ROOT / one for one in keys.SOURCES]
    files = [Path(file) for file in done.stdout.splitlines()[-1].split() if Path(file).name != "__init__.py"]
    assert len(files) > 20
    assert [file for file in files if not any(file.is_relative_to(one) for one in known)] == []


class Colour(Enum):
    RED = 1


class Slotted:
    __slots__ = ("inner",)

    def __init__(self, inner: object) -> None:
        self.inner = inner


@dataclass(frozen=True)
class Held:
    value: Any


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Held(1), Held(2)),
        (Held(1), Held(1.5)),
        (Held(Colour.RED), Held("RED")),
        (Slotted({"a": (1, 2)}), Slotted({"a": (1, 3)})),
        ({"a", "b"}, {"a"}),
        (b"ab", b"ac"),
        (Held, Slotted),
        ({"a": 1}, {"b": 1}),
    ],
)
def test_values_are_told_apart_and_recognised(one: object, other: object) -> None:
    def text(value: object) -> str:
        return json.dumps(plain(value, set()))

    assert text(one) != text(other)
    assert text(one) == text(one)
    modules: set[str] = set()
    plain(Held(Slotted(1)), modules)
    assert __name__ in modules
