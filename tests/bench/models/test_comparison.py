"""Built models beside their published figures."""

import json

import pytest

from bench.models.__main__ import main
from bench.models.builds import compare
from bench.models.comparison import COLUMNS, table
from bench.models.published import Published, chosen
from roofline_policies.errors import InputError
from roofline_policies.model.parts import Attention, matrix
from roofline_policies.model.rank_model import RankModel
from roofline_policies.work import Precision
from sglang_patches.server.walked import Walked
from sglang_patches.virtual.unloaded import UnloadedModel

BF16 = Precision.BF16


def built(unexplained=0):
    composition = RankModel(
        "Some", 4, 1, BF16,
        matrices=(matrix(1, 8, 4, BF16),),
        attention=(Attention(1, 2, 1, 4, 4, BF16, 16, window=7),),
        unexplained_bytes=unexplained,
        parameters=32,
    )  # fmt: skip
    return UnloadedModel("one", 100, Walked(composition, {"Odd": unexplained} if unexplained else {}, 2, 1))


def test_a_row_has_our_figure_beside_the_published_one():
    published = Published("a/b", "Some", {"torch_dtype": "bfloat16"}, parameters=64, kv_bytes_per_token=16)
    row = compare(published, built(unexplained=64), 1.0)
    assert row.ratio == 0.5
    assert row.weight_bytes == 64 + 64
    assert row.explained_share == 0.5
    head, _, line = table([row]).splitlines()
    assert head == f"| {' | '.join(COLUMNS)} |"
    assert line == "| a/b | bfloat16 | yes | 50.00% | Odd | 32 | 64 | 0.5000 | 0.0 | 16 | 16 | 0 | 7 |"


def test_a_refusal_is_a_row_with_its_reason():
    published = Published("a/b", "Some", {"torch_dtype": "bfloat16"}, parameters=64)
    row = compare(published, InputError("SGLang cannot build it: no such layer", where="a--b"), 1.0)
    assert row.ratio is None
    assert "| no: a--b: SGLang cannot build it: no such layer |" in table([row])


@pytest.mark.slow
def test_the_command_builds_what_is_not_in_its_file_yet(tmp_path, capsys):
    file = tmp_path / "models.jsonl"
    names = ["meta-llama/Llama-3.2-1B", "Qwen/Qwen3-0.6B"]
    assert main(["--only", *names, "--json", str(file)]) == 0
    first = capsys.readouterr()
    rows = json.loads(first.out.splitlines()[-1])["models"]
    assert [row["name"] for row in rows] == names
    for row, model in zip(rows, chosen(names), strict=True):
        assert row["parameters"] == model.parameters
        assert row["kv_bytes_per_token"] == model.kv_bytes_per_token
        assert row["explained_share"] == 1
    assert main(["--only", *names, "--json", str(file)]) == 0
    again = capsys.readouterr()
    assert again.out == first.out
    assert again.err == ""  # nothing was built


KINDS = {
    "experts": "Qwen/Qwen3-30B-A3B",
    "experts in two tensors": "databricks/dbrx-instruct",
    "latents, fp8 in blocks": "deepseek-ai/DeepSeek-V3",
    "latents of another class": "deepseek-ai/DeepSeek-V2-Lite",
    "keys that an indexer picks": "deepseek-ai/DeepSeek-V3.2",
    "mxfp4, windows and sinks": "openai/gpt-oss-20b",
    "delta rule beside attention": "Qwen/Qwen3-Next-80B-A3B-Instruct",
    "linear attention beside latents": "moonshotai/Kimi-Linear-48B-A3B-Instruct",
    "state-space layers beside attention": "ibm-granite/granite-4.0-h-tiny",
    "hf_quant_config.json, fp8": "nvidia/Llama-3.3-70B-Instruct-FP8",
    "hf_quant_config.json, nvfp4": "nvidia/Qwen3-32B-NVFP4",
    "eight bits, weights and activations": "RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w8a8",
    "four bits, weights alone": "Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4",
    "shared caches, embeddings per layer": "google/gemma-3n-E4B-it",
    "layers of many shapes": "nvidia/Llama-3_3-Nemotron-Super-49B-v1",
    "a vision tower": "Qwen/Qwen2-VL-7B-Instruct",
    "a configuration of the model's own": "inclusionAI/Ling-mini-2.0",
    "a reward model": "Skywork/Skywork-Reward-Llama-3.1-8B-v0.2",
}


@pytest.mark.slow
def test_every_kind_comes_to_its_published_figures(tmp_path, capsys):
    main(["--only", *KINDS.values()])
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out.splitlines()[-1])["models"]}
    off = {
        kind: (row["refused"], row["parameters"], row["kv_bytes_per_token"], row["unexplained"])
        for kind, model in zip(KINDS, chosen(list(KINDS.values())), strict=True)
        if (row := rows[model.name])["parameters"] != model.parameters
        or row["kv_bytes_per_token"] != model.kv_bytes_per_token
        or row["explained_share"] != 1
    }
    assert off == {}
    # A reader that does not know the file takes it for 141 GB.
    assert round(rows["nvidia/Llama-3.3-70B-Instruct-FP8"]["weight_bytes"] / 1e9) == 73
