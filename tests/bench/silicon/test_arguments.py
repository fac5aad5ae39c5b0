"""What servers of measured runs were launched with: how entries are matched, and the table that is shipped."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from bench.composition import read_config
from bench.models.published import chosen
from bench.silicon.arguments import ArgumentTable
from bench.silicon.runs import MeasuredRun
from roofline_policies.errors import InputError

RUN = MeasuredRun(
    "a", "deepseek-ai/DeepSeek-V3", "b200_sxm", "fp8", "fp8", "fp8_block", "0.5.9", 8, 1, 8, 1, 1024, 1024, 16, 0.2,
    0.01,
)  # fmt: skip


def last(words: tuple[str, ...], flag: str) -> str:
    """The value that counts of a flag that may be there more than once."""
    return [value for name, value in pairwise(words) if name == flag][-1]


def test_entries_add_up_and_the_last_outranks() -> None:
    table = ArgumentTable.from_config([
        {"match": {}, "published": "one", "config": {"a": 1, "b": 1}, "virtual": ["x={tp}"], "range_ratio": 0.8},
        {"match": {"tp": 8}, "published": "two", "config": {"b": 2}, "server_args": ["--n", "{concurrency}"]},
        {"match": {"tp": 4}, "published": "three"},
        {"match": {"concurrency": {"from": 16}}, "virtual": ["y=1"]},
        {"match": {"concurrency": {"from": 17}}, "virtual": ["y=2"]},
        {"match": {"concurrency": {"to": 15}}, "virtual": ["y=3"]},
        {"match": {"model": ["x", "deepseek-ai/DeepSeek-V3"], "precision": "fp8"}, "devices": 4},
    ])  # fmt: skip
    launch = table.launch(RUN)
    assert launch.published == "two"
    assert launch.config == {"a": 1, "b": 2}
    assert launch.virtual == ("x=8", "y=1")
    assert launch.server_args == ("--n", "16")
    assert (launch.range_ratio, launch.devices) == (0.8, 4)


@pytest.mark.parametrize(
    "table",
    [
        None,
        [],
        [{"match": {"colour": 1}}],
        [{"match": {"tp": {"least": 1}}}],
        [{"mtach": {}}],
        [{"match": {}, "virtual": "x=1"}],
        [{"match": {}, "config": 3}],
    ],
)
def test_a_table_that_cannot_be_used_is_refused(table: Any) -> None:
    with pytest.raises(InputError):
        ArgumentTable.from_config(table)


def test_a_model_that_no_entry_knows_is_named() -> None:
    with pytest.raises(InputError, match="no configuration of deepseek-ai/DeepSeek-V3"):
        ArgumentTable.from_config([{"match": {}}]).launch(RUN)


def shipped() -> ArgumentTable:
    return ArgumentTable.from_config(read_config("silicon", ["runs=none"])["arguments"])


@pytest.mark.parametrize(
    ("change", "flag", "value"),
    [
        ({}, "--scheduler-recv-interval", "30"),
        ({"concurrency": 8}, "--scheduler-recv-interval", "10"),
        ({}, "--max-running-requests", "128"),
        ({"tp": 4}, "--max-running-requests", "32"),
        ({"precision": "fp4"}, "--max-running-requests", "256"),
        ({"device": "h200_sxm"}, "--max-running-requests", "512"),
        ({"device": "h200_sxm", "input_tokens": 8192}, "--max-running-requests", "256"),
        ({"device": "h200_sxm"}, "--stream-interval", "10"),
        ({"model": "zhipuai/GLM-5"}, "--max-running-requests", "16"),
        ({"model": "Qwen/Qwen3.5-397B-A17B"}, "--stream-interval", "50"),
    ],
)
def test_the_shipped_table_has_what_the_public_scripts_say(change: dict[str, Any], flag: str, value: str) -> None:
    assert last(shipped().launch(replace(RUN, **change)).server_args, flag) == value


def test_the_shipped_table_names_configurations_that_are_there_and_overrides_that_hydra_takes() -> None:
    models = (
        "meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen3-32B", "Qwen/Qwen3-235B-A22B-FP8", "Qwen/Qwen3.5-397B-A17B",
        "deepseek-ai/DeepSeek-V3", "deepseek-ai/DeepSeek-R1", "zhipuai/GLM-5",
    )  # fmt: skip
    for model in models:
        for device in ("h100_sxm", "h200_sxm", "b200_sxm"):
            launch = shipped().launch(replace(RUN, model=model, device=device))
            chosen([launch.published])
            conf = read_config("virtual", launch.virtual)
            assert conf["device"]["tp_size"] == 8
            assert conf["output_cap_tokens"] is None
