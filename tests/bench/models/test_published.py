"""The data of published models: what every entry must have, and what it says of precisions."""

import json
from dataclasses import replace

import pytest

from bench.models.__main__ import main
from bench.models.builds import compare
from bench.models.published import Published, chosen, published
from roofline_policies.errors import EXIT_BAD_INPUT, InputError

MODELS = published()


def test_there_are_many_models_of_many_families():
    assert len(MODELS) >= 45
    assert len({one.family for one in MODELS}) >= 22
    assert len({one.name for one in MODELS}) == len(MODELS)


@pytest.mark.parametrize("model", MODELS, ids=lambda one: one.name)
def test_an_entry_says_what_it_is_and_where_it_is_from(model):
    assert model.config["architectures"]
    assert model.config["model_type"]
    assert model.config_source
    assert model.parameters_source
    assert model.parameters is None or model.parameters > 1e8
    assert model.kv_bytes_per_token is None or model.kv_bytes_per_token > 0


def test_a_precision_is_the_checkpoints_own():
    of = {one.name: one.precision for one in MODELS}
    assert of["meta-llama/Llama-3.1-8B"] == "bfloat16"
    assert of["deepseek-ai/DeepSeek-V3"] == "fp8 blocks"
    assert of["nvidia/Llama-3.3-70B-Instruct-FP8"] == "modelopt FP8"
    assert of["RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w4a16"] == "compressed-tensors pack-quantized"
    assert of["moonshotai/Kimi-K2.5"] == "compressed-tensors pack-quantized"  # inside the text model's configuration


def test_files_are_those_a_server_finds(tmp_path):
    quantization = {"quantization": {"quant_algo": "FP8"}}
    model = Published("somebody/one", "Llama", {"model_type": "llama"}, quantization)
    folder = model.write(tmp_path)
    assert json.loads((folder / "config.json").read_text()) == {"model_type": "llama"}
    assert json.loads((folder / "hf_quant_config.json").read_text()) == quantization


def test_names_choose_models_in_their_order():
    names = ["Qwen/Qwen3-0.6B", "meta-llama/Llama-3.2-1B"]
    assert [one.name for one in chosen(names)] == names
    assert [one.name for one in chosen([*names, names[0]])] == names
    assert chosen([]) == MODELS


def test_a_name_that_is_not_there_is_told_before_anything_is_built(capsys):
    with pytest.raises(InputError, match="not-there"):
        chosen(["Qwen/Qwen3-0.6B", "not-there"])
    assert main(["--only", "not-there"]) == EXIT_BAD_INPUT
    told = capsys.readouterr().err
    assert "--only = 'not-there': is not there; allowed: " in told
    assert "Qwen/Qwen3-0.6B" in told


def test_no_process_builds_nothing(capsys):
    assert main(["--processes", "0"]) == EXIT_BAD_INPUT
    assert "--processes = 0" in capsys.readouterr().err


def test_a_file_that_holds_something_else_is_told(tmp_path, capsys):
    file = tmp_path / "models.jsonl"
    file.write_text("{}\n")
    assert main(["--json", str(file)]) == EXIT_BAD_INPUT
    assert "line 1: is no result of bench.models" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "told"), [(None, "cannot be read: Is a directory"), (b"\xff\xfe", "cannot be read: is not UTF-8 text"),
                          (b"{}\n", "line 1: is no result of bench.models")],
)  # fmt: skip
def test_results_that_cannot_be_read_end_in_one_line_before_anything_is_built(tmp_path, capsys, content, told):
    file = tmp_path / "models.jsonl"
    file.mkdir() if content is None else file.write_bytes(content)
    assert main(["--only", "Qwen/Qwen3-0.6B", "--json", str(file)]) == EXIT_BAD_INPUT
    said = capsys.readouterr().err
    assert told in said
    assert said.count("\n") == 1


def test_a_model_that_was_refused_is_built_anew(tmp_path, capsys, monkeypatch):
    file, asked = tmp_path / "models.jsonl", []
    refused = compare(chosen(["Qwen/Qwen3-0.6B"])[0], ValueError("no memory"), 1.0)
    file.write_text(json.dumps(refused.plain()) + "\n")

    def each(models, processes):
        asked.extend(one.name for one in models)
        return iter([replace(refused, seconds=2.0)])

    monkeypatch.setattr("bench.models.__main__.each", each)
    assert main(["--only", "Qwen/Qwen3-0.6B", "--json", str(file)]) == 1
    assert asked == ["Qwen/Qwen3-0.6B"]
    assert len(file.read_text().splitlines()) == 2
