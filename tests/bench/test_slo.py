from __future__ import annotations

import re
import shlex
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from bench.slo import JudgedSlo
from roofline_policies.errors import InputError
from roofline_policies.slo.objectives import ItlKind

BASE: dict[str, Any] = {"ttft_s": 4, "itl_s": 0.1, "itl_kind": "mean_tpot", "e2e_s": 60}


@pytest.mark.parametrize(
    ("slo", "text"),
    [
        (JudgedSlo(2.0, 0.1), "TTFT <= 2.0 s, ITL <= 0.1 s (99% of gaps)"),
        (JudgedSlo(None, 0.1, ItlKind.MEAN_TPOT, 9.0), "ITL <= 0.1 s (mean per request), E2E <= 9.0 s"),
        (JudgedSlo(None, None), "none"),
        (
            JudgedSlo(4.0, None, classes={0: JudgedSlo(None, None), 10: JudgedSlo(1.0, 0.025)}),
            "TTFT <= 4.0 s; priority 0: none; priority 10: TTFT <= 1.0 s, ITL <= 0.025 s (99% of gaps)",
        ),
    ],
)
def test_reads_as_one_line(slo: JudgedSlo, text: str) -> None:
    assert str(slo) == text


def test_reads_its_section() -> None:
    conf = {"ttft_s": 1, "itl_s": None, "itl_kind": "mean_tpot", "e2e_s": None, "gap_fraction": 0.9}
    assert JudgedSlo.from_config(conf) == JudgedSlo(1.0, None, ItlKind.MEAN_TPOT, None, 0.9)


def test_a_class_inherits_what_it_leaves_out_and_null_is_no_limit() -> None:
    classes = {10: {"ttft_s": 1, "e2e_s": None}, -1: None, 3: {"itl_s": 0.5, "itl_kind": "per_gap"}}
    slo = JudgedSlo.from_config({**BASE, "gap_fraction": 0.9, "classes": classes})
    assert list(slo.classes.items()) == [
        (-1, JudgedSlo(4.0, 0.1, ItlKind.MEAN_TPOT, 60.0, 0.9)),
        (3, JudgedSlo(4.0, 0.5, ItlKind.PER_GAP, 60.0, 0.9)),
        (10, JudgedSlo(1.0, 0.1, ItlKind.MEAN_TPOT, None, 0.9)),
    ]
    assert [slo.for_priority(priority) for priority in (10, 3)] == [slo.classes[10], slo.classes[3]]
    assert slo.for_priority(None) is slo.for_priority(7) is slo


def test_a_class_has_a_weight_of_its_own_or_the_servers() -> None:
    slo = JudgedSlo.from_config({**BASE, "weight": 2, "classes": {10: {"weight": 5}, 3: {"ttft_s": 1}}})
    assert [slo.for_priority(priority).weight for priority in (10, 3, None, 7)] == [5.0, 2.0, 2.0, 2.0]
    assert slo.weighted
    assert str(slo).count("weight") == 3
    assert not JudgedSlo.from_config({**BASE, "classes": {10: {"itl_s": 0.5}}}).weighted


def test_a_weight_does_not_change_what_is_asked_for() -> None:
    assert JudgedSlo(1.0, weight=3.0).overrides() == (*JudgedSlo(1.0).overrides(), "++slo.weight=3.0")


def test_without_classes_it_is_what_it_was() -> None:
    for given in ({}, {"classes": None}, {"classes": {}}):
        assert JudgedSlo.from_config({**BASE, **given}) == JudgedSlo(4.0, 0.1, ItlKind.MEAN_TPOT, 60.0)
    assert not any("classes" in override for override in JudgedSlo(4.0, 0.1).overrides())


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([1], "slo: classes = [1]: is not a section of classes; allowed: priority: {ttft_s, itl_s, itl_kind, e2e_s, w"),
        ({"high": {}}, "slo: classes = 'high': is no priority; allowed: priority: {ttft_s"),
        ({True: {}}, "slo: classes = True: is no priority"),
        ({10: 3}, "slo.classes.10: 3: is not a section of keys and values"),
        ({10: {"ttft": 1}}, "slo.classes.10: ttft = 1: unknown key; allowed: ttft_s, itl_s, itl_kind, e2e_s, w"),
        ({10: {"weight": 0}}, "slo.classes.10: weight = 0: is out of range; allowed: a number > 0"),
        ({10: {"weight": float("inf")}}, "slo.classes.10: weight = inf: is not a finite number; allowed: a number > 0"),
        ({10: {"weight": None}}, "slo.classes.10: weight: is missing"),
        ({10: {"ttft_s": 0}}, "slo.classes.10: ttft_s = 0: is out of range; allowed: a number > 0"),
        ({10: {"itl_kind": None}}, "slo.classes.10: itl_kind = None: is not a choice; allowed: per_gap, mean_tpot"),
    ],
)
def test_classes_that_cannot_be_used(classes: object, message: str) -> None:
    with pytest.raises(InputError, match="^" + re.escape(message)):
        JudgedSlo.from_config({**BASE, "classes": classes})


@pytest.mark.parametrize(
    "slo",
    [
        JudgedSlo(1.5, None),
        JudgedSlo(None, 1e-5, classes={10: JudgedSlo(1.0, 0.025), -1: JudgedSlo(None, None)}),
        JudgedSlo(1.5, None, weight=0.5),
        JudgedSlo(None, 1e-5, classes={10: JudgedSlo(1.0, 0.025, weight=3.0), -1: JudgedSlo(None, None)}),
        JudgedSlo(None, None, weight=2.0, classes={10: JudgedSlo(1.0, None, weight=1.0)}),
    ],
)
@pytest.mark.parametrize("name", ["adaptive", "static"])
def test_overrides_are_what_a_policys_configuration_takes(slo: JudgedSlo, name: str) -> None:
    overrides = slo.overrides()
    assert shlex.split(" ".join(overrides)) == list(overrides)  # as --policy-set is taken apart
    with initialize_config_module("roofline_policies.conf", version_base="1.3"):
        read = OmegaConf.to_container(compose(name, overrides=list(overrides)))["slo"]
    assert read.pop("requests")["allow"] is True  # what requests may ask for is no part of what they are judged by
    assert {**read, "classes": read.get("classes", {})} == {
        "ttft_s": slo.ttft_s, "itl_s": slo.itl_s, "itl_kind": "per_gap", "e2e_s": None, "weight": slo.weight,
        "classes": {
            priority: {
                "ttft_s": one.ttft_s, "itl_s": one.itl_s, "itl_kind": "per_gap", "e2e_s": None,
                **({"weight": one.weight} if slo.weighted else {}),
            }
            for priority, one in slo.classes.items()
        },
    }  # fmt: skip


def test_it_can_be_a_key_and_is_ready_for_json() -> None:
    one, other = (JudgedSlo(4.0, None, classes={10: JudgedSlo(ttft_s, None)}) for ttft_s in (1.0, 2.0))
    assert {one: "a", other: "b"}[JudgedSlo(4.0, None, classes={10: JudgedSlo(1.0, None)})] == "a"
    assert one.described() == {
        "ttft_s": 4.0, "itl_s": None, "itl_kind": "per_gap", "e2e_s": None, "gap_fraction": 0.99,
        "weight": 1.0,
        "classes": {"10": {"ttft_s": 1.0, "itl_s": None, "itl_kind": "per_gap", "e2e_s": None, "weight": 1.0}},
    }  # fmt: skip
