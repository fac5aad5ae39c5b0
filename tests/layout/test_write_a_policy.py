"""docs/write-a-policy.md is true: its Python runs in order, its files load, its tables are complete."""

import json
import re
import sys

import pytest

from roofline_policies.contract.decision import Knob
from roofline_policies.policies import RidgeBatchSize, Static
from roofline_policies.policies.conditions import SIGNALS
from roofline_policies.settings.loading import load
from roofline_policies.slo.objectives import ItlKind, Slo
from roofline_policies.testing import fake_view
from tests import ROOT

PAGE = ROOT / "docs" / "write-a-policy.md"
TEXT = PAGE.read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder on the path with every block that begins with the name of a file."""
    for block in (*blocks("python"), *blocks("yaml")):
        named = re.match(r"# (\w+\.(?:py|yaml))\n", block)
        if named:
            (tmp_path / named[1]).write_text(block)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("mine", None)


@pytest.fixture
def names(files):
    """What the page's Python leaves behind when it is run from top to bottom."""
    namespace = {"__name__": "page"}
    for block in blocks("python"):
        exec(compile(block, str(PAGE), "exec"), namespace)
    return namespace


def test_its_python_runs_and_so_do_the_tests_that_it_shows(names):
    shown = [name for name in names if name.startswith("test_")]
    assert len(shown) == 2
    for name in shown:
        names[name]()


def test_its_policy_is_loaded_by_its_name(files):
    alone = load("mine:SaveMemory").policy
    assert [alone.propose(fake_view(running=5, kv_use=use)) == () for use in (0.5, 0.95)] == [True, False]


def test_yaml_and_python_give_the_same_policy(files, names):
    loaded = load(str(files / "mine.yaml"), packages=["mine"])
    view = fake_view(running=7, kv_use=0.95, waiting=5, target_itl_s=0.05)
    assert repr(loaded.policy) == repr(names["policy"])
    assert loaded.policy.propose(view) == names["policy"].propose(view)


def test_its_promises_load_and_the_nearest_holds(files):
    promised = load(str(files / "promises.yaml")).objectives
    assert promised.of() == Slo(ttft_s=2.0, itl_s=0.05, itl_kind=ItlKind.PER_GAP)
    assert promised.of(10) == Slo(ttft_s=0.5, itl_s=0.025)
    (block,) = blocks("json")
    asked = json.loads(block)
    own = asked["sampling_params"]["custom_params"]["slo"]
    assert promised.granted(asked["priority"], own) == (Slo(ttft_s=0.3, itl_s=0.025), ())
    assert promised.granted(10, {"itl_s": 0.001, "ttft_s": 0.1}) == (Slo(ttft_s=0.3, itl_s=0.025), ("itl_s", "ttft_s"))


def test_every_file_that_it_shows_was_tried(files):
    assert {path.name for path in files.iterdir() if path.is_file()} == {"mine.py", "mine.yaml", "promises.yaml"}
    assert len(blocks("yaml")) == 2


def test_its_tables_have_every_signal_and_every_knob():
    assert {name for name in SIGNALS if f"`{name}`" not in TEXT} == set()
    assert {knob.value for knob in Knob if f"| `{knob.value}` |" not in TEXT} == set()


def test_the_forms_that_it_names_are_there():
    ridge = load("adaptive", overrides=["policy=ridge"]).policy
    assert any(isinstance(part, RidgeBatchSize) for part in ridge.policies)
    assert load("static").policy == Static()
