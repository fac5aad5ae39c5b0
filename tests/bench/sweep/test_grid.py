"""From axes to cells, and what of a configuration is refused, with the cell named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.composition import read_config
from bench.slo import JudgedSlo
from bench.sweep.grid import label, places
from bench.sweep.settings import SweepSettings
from roofline_policies.errors import InputError
from roofline_policies.slo.objectives import ItlKind
from tests.bench.sweep.cells import FIXED, settings

AXES = {
    "traffic": {"chat": ["traffic=a"], "code": ["traffic=b"]},
    "load": {
        "half": {"chat": ["rate=1"], "code": ["rate=10", "x=1"], "gone": ["rate=0"]},
        "past": ["rate=99"],
    },
}


def test_cells_are_the_product_and_the_last_axis_changes_fastest() -> None:
    assert places(AXES, ["seed=7"]) == [
        ({"traffic": "chat", "load": "half"}, ["seed=7", "traffic=a", "rate=1"]),
        ({"traffic": "chat", "load": "past"}, ["seed=7", "traffic=a", "rate=99"]),
        ({"traffic": "code", "load": "half"}, ["seed=7", "traffic=b", "rate=10", "x=1"]),
        ({"traffic": "code", "load": "past"}, ["seed=7", "traffic=b", "rate=99"]),
    ]


def test_without_axes_there_is_one_cell() -> None:
    assert places({}, ["seed=7"]) == [({}, ["seed=7"])]
    assert label({}) == "all"
    assert label({"traffic": "chat", "load": "half"}) == "chat, half"


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ([1], "axes: [1]: is not a section of keys and values"),
        ({"load": {}}, "axes: load: has no values; allowed: name: [hydra overrides]"),
        ({"load": {"a b": []}}, "axes.load: name = 'a b': is no name; allowed: letters, digits"),
        ({"load": {"x": "rate=1"}}, "axes.load: x = 'rate=1': is not a list of overrides; allowed: a list"),
        ({"load": {"x": [["rate=1"]]}}, "axes.load: x = [['rate=1']]: is not a list of arguments"),
        ({"load": {"x": {"chat": []}}}, "axes.load: x = ['chat']: lacks a list for some value; allowed: a list"),
        (
            {"a": {"one": []}, "b": {"two": []}, "load": {"x": {"one": [], "two": []}}},
            "axes.load: x = ['one', 'two']: has a list for every value of more than one axis",
        ),
        ({"load": {"x": ["out_dir=y"]}}, "axes.load: x = 'out_dir=y': cannot differ between cells; allowed: other"),
        ({"load": {"x": ["+arms.mine={}"]}}, "axes.load: x = '+arms.mine={}': cannot differ between cells"),
    ],
)
def test_axes_that_cannot_be_used(axes: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        places(axes, [])
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["processes=0"], "sweep: processes = 0: is out of range; allowed: a number >= 1"),
        (["along=speed"], "sweep: along = 'speed': is no axis; allowed: null, load"),
        (["group_by=speed"], "sweep: group_by = 'speed': is no axis; allowed: null, load"),
        (["capacity_attainment=0"], "sweep: capacity_attainment = 0: is out of range; allowed: a number > 0 and <= 1"),
        (
            ["capacity_baseline=x"],
            "sweep: capacity_baseline = 'x': is not an arm; allowed: null, default, ",
        ),
        (["retry_crashed=2"], "sweep: retry_crashed = 2: is not a choice; allowed: False, True"),
        (["markdown=all"], "sweep: markdown = 'all': is not a choice; allowed: False, True"),
        (["least_attainment=30"], "sweep: least_attainment = 30: is out of range; allowed: a number >= 0 and <= 1"),
        (["+rates={a: 1}"], "sweep: rates: is neither a key of the sweep nor a parameter for its overrides"),
        (["overrides=['baseline=x']"], "sweep: overrides = 'baseline=x': cannot differ between cells"),
        (["axes.load.high=['traffic.rate_scale=-1']"], "sweep: cell high: traffic: rate_scale = -1: is out of range"),
        (["axes.load.high=['no.such=1']"], "sweep: cell high: virtual: no.such = 1: unknown key; allowed: "),
        (["axes.load.low=['traffic=azure','traffic.path=/no.csv']"], "sweep: cell low: /no.csv: no such file"),
        (["axes.load.low=['traffic=azure']"], "sweep: cell low: virtual: traffic.path: is missing"),
        (["axes.load.low=['seed=1,2']"], "sweep: cell low: virtual: 'seed=1,2': is more than one value"),
        (["+arms.other={policy: nope.yaml}"], "sweep: cell low: arms.other: policy = 'nope.yaml': no such file"),
        (["+arms.drafts={speculation_steps: 3}"], "sweep: cell low: arms.drafts: "),
        (["~arms.fixed"], "sweep: arms = ['default']: have no fixed setting, and ratios are to the best of those"),
    ],
)
def test_sweeps_that_cannot_be_used(more: list[str], message: str) -> None:
    with pytest.raises(InputError) as caught:
        settings(*more)
    assert str(caught.value).removeprefix("sweep: cell low: " * message.startswith("sweep: arms")).startswith(message)


def test_a_cell_says_what_it_is() -> None:
    low, high = settings().cells
    assert (low.name, high.name) == ("low", "high")
    assert low.offered_per_s is not None
    assert high.offered_per_s == pytest.approx(2 * low.offered_per_s)
    assert low.described()["requests"] == 6
    assert low.described()["device"] == {
        "name": "NVIDIA H200", "count": 1, "model": "meta-llama/Llama-3.1-8B-Instruct"
    }  # fmt: skip


def test_the_shipped_grids_compose(tmp_path_factory: pytest.TempPathFactory) -> None:
    trace = tmp_path_factory.mktemp("traces") / "a, b=c.csv"
    minutes = [f"2023-11-16 18:{minute:02}:00.0000000,100,5" for minute in range(60)]
    trace.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *minutes]))
    paths = [f"{name}='{trace}'" for name in ("azure_conv", "azure_code")]
    few = ["~arms", f"+arms={{{FIXED}}}", "capacity_baseline=null"]
    table = read_config("sweep", ["axes=first_table", *paths, "mooncake=null", "~axes.traffic.mooncake", *few])
    read = SweepSettings.from_config(table)
    assert [cell.name for cell in read.cells] == [
        f"{traffic}, {load}" for traffic in ("azure_conv", "azure_code") for load in ("half", "near", "past")
    ]
    assert read.name == "first_table"
    assert [cell.name for cell in SweepSettings.from_config(read_config("sweep", few)).cells] == [
        "half",
        "near",
        "past",
    ]


def study(axes: str, folder: Path) -> SweepSettings:
    """One of the studies of policies, on made-up traces."""
    csv, mooncake = folder / "trace.csv", folder / "trace.jsonl"
    minutes = [f"2023-11-16 18:{minute:02}:00.0000000,{100 + minute},5" for minute in range(60)]
    csv.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *minutes]))
    line = {"output_length": 5, "hash_ids": [1]}
    seconds = [{"timestamp": 1000 * second, "input_length": 100 + second, **line} for second in range(1000)]
    mooncake.write_text("\n".join(map(json.dumps, seconds)))
    paths = [f"azure_conv={csv}", f"azure_code={csv}", f"mooncake={mooncake}"]
    return SweepSettings.from_config(
        read_config("sweep", [f"axes={axes}", *paths, "~arms", f"+arms={{{FIXED}}}", "capacity_baseline=null"])
    )


def test_the_policy_study_composes(tmp_path: Path) -> None:
    read = study("policy_study", tmp_path)
    assert [len(values) for values in read.axes.values()] == [7, 2, 3]
    slos = {(cell.place["traffic"], cell.place["kind"]): cell.experiment.slo for cell in read.cells}
    for (traffic, kind), slo in slos.items():
        classes = traffic in ("mixed_classes", "shifting")
        ttft_s = {"mooncake": 10.0, "mixed_classes": 4.0, "shifting": 4.0}.get(traffic, 2.0)
        assert (slo.ttft_s, slo.itl_s, slo.itl_kind) == (ttft_s, 0.1 if classes else 0.05, kind), traffic
        assert list(slo.classes.values()) == (
            [replace(JudgedSlo(1.0, 0.025), itl_kind=ItlKind(kind))] if classes else []
        ), traffic
    for cell in read.cells:
        asked = {request.priority for request in cell.experiment.requests}
        assert asked <= ({0, 10} if cell.experiment.slo.classes else {None}), cell.name
    loads: dict[str, dict[str, float]] = {}
    for cell in read.cells:
        loads.setdefault(cell.place["traffic"], {})[cell.place["load"]] = cell.rate_scale
    for one in loads.values():
        assert one["half"] == pytest.approx(one["near"] / 2)
        assert one["past"] >= 1.35 * one["near"]


def test_other_draws_have_the_same_rates_and_other_requests(tmp_path: Path) -> None:
    first = {cell.name: cell for cell in study("policy_study", tmp_path).cells}
    others = study("policy_draws", tmp_path).cells
    assert len(others) == 2 * len(first)
    seen: dict[str, set[tuple[int, ...]]] = {}
    for cell in others:
        same = first[", ".join(cell.place[axis] for axis in ("traffic", "kind", "load"))]
        assert (cell.rate_scale, cell.experiment.slo) == (same.rate_scale, same.experiment.slo)
        for one in (cell, same):
            prompts = tuple(request.prompt_tokens for request in one.experiment.requests)
            seen.setdefault(cell.place["traffic"], set()).add(prompts)
    assert {traffic: len(prompts) for traffic, prompts in seen.items()} == dict.fromkeys(seen, 3)


def test_the_larger_model_has_targets_twice_as_long(tmp_path: Path) -> None:
    first, larger = study("policy_study", tmp_path).cells, study("policy_larger_model", tmp_path).cells
    assert [f"{cell.name}, qwen3_32b" for cell in first] == [cell.name for cell in larger]
    for small, large in zip(first, larger, strict=True):
        assert large.experiment.device.model.name == "Qwen/Qwen3-32B"
        assert large.rate_scale == pytest.approx(small.rate_scale / 5, rel=0.01)
        pairs = [(small.experiment.slo, large.experiment.slo)]
        pairs += zip(small.experiment.slo.classes.values(), large.experiment.slo.classes.values(), strict=True)
        for before, after in pairs:
            assert (after.ttft_s, after.itl_s) == (2 * before.ttft_s, 2 * before.itl_s)
            assert after.itl_kind is before.itl_kind


def test_a_trace_of_the_first_table_is_asked_for() -> None:
    with pytest.raises(InputError, match="sweep: azure_conv: is missing; allowed: azure_conv=VALUE"):
        read_config("sweep", ["axes=first_table"])


def test_one_slo_per_cell_aims_its_policies() -> None:
    """The same arm aims at what its own cell is judged by."""
    arms = f"{{adaptive: {{policy: adaptive}}, {FIXED}}}"
    tight = "axes.load.high=['traffic.rate_scale=1','slo.itl_s=0.02']"
    low, high = settings(tight, "capacity_baseline=adaptive", arms=arms).cells
    assert low.experiment.slo.itl_s == 0.1
    assert high.experiment.slo.itl_s == 0.02
    assert set(low.keys) == set(high.keys) == {"adaptive", "exclusive_c2048_r64"}
    assert len({*low.keys.values(), *high.keys.values()}) == 4
