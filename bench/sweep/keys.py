"""What a result depends on, as a digest: a result whose key is not asked for any more is stale, and never used."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import BuiltinFunctionType, FunctionType
from typing import Any

from bench.report.percentiles import PERCENTILES, reported
from bench.slo import JudgedSlo
from bench.virtual.arms import VirtualArm
from bench.virtual.settings import Experiment

FORMAT = 1
"""Counted up whenever a line of the result file changes its meaning."""

VERSIONED = ("roofline-policies", "sglang", "numpy")
OWN = ("roofline_policies", "sglang_patches", "bench")
SOURCES = (
    "roofline_policies", "sglang_patches", "bench/virtual", "bench/rivals", "bench/traffic", "bench/checks.py",
    "bench/composition.py", "bench/report/metrics.py", "bench/report/one_request.py", "bench/report/percentiles.py",
    "bench/live/prompts.py", "bench/report/records.py", "bench/slo.py", "bench/sweep/task.py", "bench/report/tail.py",
    "bench/report/drafts.py", "bench/report/figures.py",
)  # fmt: skip
"""Where the code is that decides a metric: files and folders of the checkout."""

OF_POLICIES = (
    "bench/rivals", "roofline_policies/policies", "roofline_policies/testing", "roofline_policies/control",
    "roofline_policies/contract/view.py",
    *(f"roofline_policies/steps/{module}.py" for module in (
        "correction", "evidence", "learned", "learned_file", "nonnegative",
    )),
    *(f"roofline_policies/slo/{module}.py" for module in (
        "admission", "deadlines", "output_lengths", "prefill_rate", "running_targets",
    )),
    *(f"sglang_patches/{module}.py" for module in (
        "loop/actuator", "loop/applier", "loop/decider", "loop/guard", "loop/loaded", "loop/reports", "observe/clocks",
        "observe/observer", "observe/recorder",
        "requests/output_watch", "requests/prefill_rate", "requests/progress", "requests/promises",
        "requests/queues", "requests/waiting",
    )),
)  # fmt: skip
"""Of these, what does not run without a policy: an edit there leaves the results of fixed settings valid."""

NO_SLO = JudgedSlo(None, None)

ROOT = Path(__file__).parents[2]


def run_digest(experiment: Experiment) -> str:
    """Of everything that decides a run of any arm in a cell but its policy: device, step times, each request.

    The requests stand for the trace they were read from: its path, and what lies outside the window, decide nothing.
    """
    return _digest(plain(replace(experiment, slo=NO_SLO, percentiles=PERCENTILES), set()))


def cell_digest(run: str, slo: JudgedSlo, usd_per_h: float | None, percentiles: Sequence[float] = PERCENTILES) -> str:
    """Of a cell: what runs in it, as ``run_digest`` has it, what that is judged by, and which percentiles it keeps."""
    return _digest([run, plain(slo, set()), usd_per_h, reported(percentiles)])


def arm_digest(arm: VirtualArm, slo: JudgedSlo) -> str:
    """Of an arm that aims at ``slo``: what it is launched with, and its policy as it was loaded.

    The sources of classes that are not this project's count; names do not, of the arm or of its policy's file.
    """
    modules: set[str] = set()
    settings = arm.settings(slo)
    policy = None if settings is None else plain(replace(settings, name="", source=""), modules)
    launched = plain(replace(arm, name="", policy=None, policy_set=(), oracle=None), set())
    return _digest([launched, policy, _foreign(modules)])


def unit_key(cell: str, arm: str, environment: str) -> str:
    """The key of one arm in one cell, from the three digests."""
    return _digest([cell, arm, environment])[:32]


def environment_digest(arm: VirtualArm) -> str:
    """Of the versions and the sources that run the arm; read once."""
    return _environment(OF_POLICIES if arm.policy is None else ())


@lru_cache(maxsize=2)
def _environment(left_out: tuple[str, ...]) -> str:
    versions = {name: importlib.metadata.version(name) for name in VERSIONED}
    return _digest([FORMAT, versions, source_digest((ROOT / one for one in SOURCES), [ROOT / one for one in left_out])])


def source_digest(paths: Iterable[Path], left_out: Iterable[Path] = ()) -> str:
    """Of these files and of all Python files below these folders: their names and contents.

    left_out: files and folders among them that do not count.
    """
    unwanted = {file for path in left_out for file in _python_files(path)}
    found = hashlib.sha256()
    for path in paths:
        for file in _python_files(path):
            if file in unwanted:
                continue
            name = file.relative_to(path.parent).as_posix()
            found.update(f"{name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return found.hexdigest()


def _python_files(path: Path) -> list[Path]:
    return sorted(path.rglob("*.py")) if path.is_dir() else [path]


def plain(value: object, modules: set[str]) -> Any:
    """``value`` as lists, texts and numbers, equal for equal values in every process; objects as they are pickled.

    Names of the modules that classes and functions in it come from are added to ``modules``.

    Raises:
        TypeError: something in it that cannot be pickled.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) in (list, tuple):
        return [plain(item, modules) for item in value]  # type: ignore[attr-defined]
    if isinstance(value, Mapping):
        return ["map", *([plain(key, modules), plain(item, modules)] for key, item in value.items())]
    if isinstance(value, set | frozenset):
        return ["set", *sorted((plain(item, modules) for item in value), key=json.dumps)]
    if isinstance(value, bytes | bytearray):
        return ["bytes", value.hex()]
    if isinstance(value, type | FunctionType | BuiltinFunctionType):
        modules.add(str(value.__module__))
        return ["name", str(value.__module__), value.__qualname__]
    reduced = value.__reduce_ex__(4)
    if isinstance(reduced, str):
        modules.add(type(value).__module__)
        return ["name", type(value).__module__, reduced]
    made, arguments, *rest = reduced
    return ["object", *(plain(list(one) if _iterates(one) else one, modules) for one in (made, arguments, *rest))]


def _iterates(value: object) -> bool:
    return hasattr(value, "__next__")


def _foreign(modules: Iterable[str]) -> dict[str, str]:
    """Digests of the packages, or single files, that these modules belong to, but for our own and Python's."""
    digests = {}
    for name in sorted({module.partition(".")[0] for module in modules}):
        if name in OWN or name in sys.stdlib_module_names or name not in sys.modules:
            continue
        module = sys.modules[name]
        file = getattr(module, "__file__", None)
        folders = list(getattr(module, "__path__", ()))
        digests[name] = source_digest(map(Path, folders or ([file] if file else [])))
    return digests


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
