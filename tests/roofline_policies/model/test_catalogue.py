"""The shipped models against their published sizes, and every way in which a section of configuration is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import roofline_policies.conf
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from roofline_policies.errors import InputError
from roofline_policies.model.catalogue import (
    model_from_section,
    shipped_model,
    shipped_models,
)
from roofline_policies.model.decoder import Decoder
from roofline_policies.work import Precision

NAMES = ["deepseek_v2_lite", "llama_3_1_70b", "llama_3_1_8b", "qwen3_30b_a3b", "qwen3_32b", "qwen3_8b"]
GROUP = Path(roofline_policies.conf.__path__[0]) / "model"
CLASSES = "LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, Qwen3MoeForCausalLM, DeepseekV2ForCausalLM"

Tensors = list[tuple[int, ...]]


def mlp(hidden: int, inner: int) -> Tensors:
    return [(inner, hidden), (inner, hidden), (hidden, inner)]


def grouped(hidden: int, heads: int, kv_heads: int, head_dim: int) -> Tensors:
    """q, k, v, o."""
    return [(heads * head_dim, hidden), *[(kv_heads * head_dim, hidden)] * 2, (hidden, heads * head_dim)]


def llama(hidden: int, layers: int, heads: int, inner: int) -> Tensors:
    layer = [*grouped(hidden, heads, 8, 128), *mlp(hidden, inner), (hidden,), (hidden,)]
    return [(128256, hidden), (128256, hidden), (hidden,), *layer * layers]


def qwen3(hidden: int, layers: int, heads: int, inner: int) -> Tensors:
    layer = [*grouped(hidden, heads, 8, 128), (128,), (128,), *mlp(hidden, inner), (hidden,), (hidden,)]
    return [(151936, hidden), (151936, hidden), (hidden,), *layer * layers]


def qwen3_30b_a3b() -> Tensors:
    experts = [(128, 2048), *mlp(2048, 768) * 128]
    layer = [*grouped(2048, 32, 4, 128), (128,), (128,), *experts, (2048,), (2048,)]
    return [(151936, 2048), (151936, 2048), (2048,), *layer * 48]


def deepseek_v2_lite() -> Tensors:
    # q, kv_a with the rotated key, its norm, kv_b, o; two norms.
    attention: Tensors = [(16 * 192, 2048), (512 + 64, 2048), (512,), (16 * 256, 512), (2048, 16 * 128)]
    experts = [(64, 2048), *mlp(2048, 1408) * 64, *mlp(2048, 2 * 1408)]
    tables: Tensors = [(102400, 2048), (102400, 2048), (2048,)]
    return [*tables, *[*attention, (2048,), (2048,)] * 27, *mlp(2048, 10944), *experts * 26]


# Parameters in the published safetensors, KV bytes of a token in bf16, tokens of context.
PUBLISHED = {
    "llama_3_1_8b": (llama(4096, 32, 32, 14336), 8_030_261_248, 131_072, 131_072),
    "llama_3_1_70b": (llama(8192, 80, 64, 28672), 70_553_706_496, 327_680, 131_072),
    "qwen3_8b": (qwen3(4096, 36, 32, 12288), 8_190_735_360, 147_456, 40_960),
    "qwen3_32b": (qwen3(5120, 64, 64, 25600), 32_762_123_264, 262_144, 40_960),
    "qwen3_30b_a3b": (qwen3_30b_a3b(), 30_532_122_624, 98_304, 40_960),
    "deepseek_v2_lite": (deepseek_v2_lite(), 15_706_484_224, 31_104, 163_840),
}


def numbers(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_model_has_its_published_sizes(name: str) -> None:
    tensors, parameters, kv_bytes, context_length = PUBLISHED[name]
    model = shipped_model(name)
    assert sum(map(numbers, tensors)) == parameters
    assert model.shape.parameters == parameters
    assert model.shape.weight_bytes == 2 * parameters
    assert model.shape.kv_bytes_per_token == kv_bytes
    assert model.context_length == context_length
    assert (model.shape.weight_precision, model.shape.kv_precision) == (Precision.BF16, Precision.BF16)


def test_the_catalogue_lists_what_it_has() -> None:
    models = shipped_models()
    assert list(models) == NAMES == sorted(file.stem for file in GROUP.glob("*.yaml"))
    assert {name for name, model in models.items() if model.shape.rank_model.experts} == {
        "deepseek_v2_lite",
        "qwen3_30b_a3b",
    }
    assert {name for name, model in models.items() if model.shape.rank_model.latent} == {"deepseek_v2_lite"}
    assert models["qwen3_8b"].name == "Qwen/Qwen3-8B"
    with pytest.raises(TypeError):
        models["mine"] = models["qwen3_8b"]  # type: ignore[index]


@pytest.mark.parametrize("name", NAMES)
def test_a_file_says_where_it_is_from_and_under_which_licence(name: str) -> None:
    comment, *lines = (GROUP / f"{name}.yaml").read_text().splitlines()
    assert comment.startswith(f"# config.json of {shipped_model(name).name}, which is under ")
    assert "://" not in "".join([comment, *lines])


def test_an_unknown_model_is_told_the_known_ones() -> None:
    with pytest.raises(InputError) as caught:
        shipped_model("gpt_5")
    assert str(caught.value) == (
        f"conf/model: model = 'gpt_5': no such model in the catalogue; allowed: {', '.join(NAMES)}"
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tp_size", [1, 2, 4])
def test_a_rank_runs_the_parts_of_the_model_split(name: str, tp_size: int) -> None:
    model = shipped_model(name)
    assert model.rank(tp_size) == model.shape.shard(tp_size).rank_model
    with pytest.raises(InputError, match=r"tp_size = 3"):
        model.rank(3)


def section(name: str, **changes: object) -> dict[str, object]:
    plain = OmegaConf.to_container(OmegaConf.load(GROUP / f"{name}.yaml"))
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()} | changes


def without(values: dict[str, object], *keys: str) -> dict[str, object]:
    return {key: value for key, value in values.items() if key not in keys}


def test_hydra_composes_a_section_from_the_group_with_overrides(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("defaults:\n  - model: qwen3_8b\n  - _self_\n")
    overrides = ["model=deepseek_v2_lite", "model.kv_precision=fp8", "model.context_length=4096"]
    search = f"hydra.searchpath=[pkg://{roofline_policies.conf.__name__}]"
    with initialize_config_dir(config_dir=str(tmp_path), version_base="1.3"):
        tree = OmegaConf.to_container(compose("mine", overrides=[*overrides, search]), resolve=True)
    assert isinstance(tree, dict)
    model = model_from_section(tree["model"])
    assert (model.name, model.context_length) == ("deepseek-ai/DeepSeek-V2-Lite", 4096)
    assert model.shape.kv_bytes_per_token == 31_104 // 2
    assert model.shape.weight_bytes == 2 * 15_706_484_224


@pytest.mark.parametrize("name", NAMES)
def test_a_section_is_the_shipped_model(name: str) -> None:
    assert model_from_section(section(name)) == shipped_model(name)


def test_precisions_that_are_left_out() -> None:
    bare = without(section("qwen3_30b_a3b"), "weight_precision", "kv_precision")
    assert model_from_section(bare) == shipped_model("qwen3_30b_a3b")
    half = model_from_section(bare | {"torch_dtype": "float16"}).shape
    assert (half.weight_precision, half.kv_precision) == (Precision.FP16, Precision.FP16)
    given = model_from_section(bare | {"torch_dtype": "float16", "weight_precision": "fp32", "kv_precision": "fp8"})
    assert (given.shape.weight_precision, given.shape.kv_precision) == (Precision.FP32, Precision.FP8)
    assert given.shape.weight_bytes == 4 * 30_532_122_624


def test_a_config_json_of_any_family_is_read_and_other_keys_are_ignored() -> None:
    for name in NAMES:
        config = section(name, rope_theta=10000, torch_dtype="bfloat16")
        assert Decoder.from_config(config) == shipped_model(name).shape
        assert Decoder.from_config(section(name), weight_precision=Precision.BF16) == shipped_model(name).shape
    options = {"weight_precision": Precision.FP16, "kv_precision": Precision.FP8}
    eight = Decoder.from_config(section("qwen3_8b"), **options)
    assert (eight.weight_precision, eight.kv_precision) == (Precision.FP16, Precision.FP8)


LLAMA = section("llama_3_1_8b")
MOE = section("qwen3_30b_a3b")
MLA = section("deepseek_v2_lite")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            ["llama"],
            "['llama']: must be a mapping; allowed: a mapping with name, context_length and the keys of a config.json",
        ),
        (without(LLAMA, "architectures", "model_type"), f"architectures: missing; allowed: {CLASSES}"),
        (
            LLAMA | {"architectures": ["MixtralForCausalLM"]},
            "architectures = 'MixtralForCausalLM': the work of this architecture is not known in closed form; "
            f"allowed: {CLASSES}",
        ),
        (
            without(LLAMA, "architectures") | {"model_type": "gemma"},
            "model_type = 'gemma': the work of this architecture is not known in closed form; "
            "allowed: llama, qwen2, qwen3, qwen3_moe, deepseek_v2",
        ),
        (LLAMA | {"name": " "}, "name = ' ': must be a text that is not empty"),
        (without(LLAMA, "name"), "name = None: must be a text that is not empty"),
        (without(LLAMA, "context_length"), "context_length: missing; allowed: a positive integer"),
        (LLAMA | {"context_length": 0}, "context_length = 0: not a size; allowed: a positive integer"),
        (
            LLAMA | {"weight_precision": "fp8"},
            "weight_precision = 'fp8': not a precision that can be served; allowed: bf16, fp16, fp32",
        ),
        (
            LLAMA | {"kv_precision": "int8"},
            "kv_precision = 'int8': not a precision that can be served; allowed: bf16, fp16, fp32, fp8",
        ),
        (LLAMA | {"num_experts": 8}, "num_experts = 8: mixture-of-experts models are not covered"),
        (
            MOE | {"quantization_config": {"quant_method": "fp8"}},
            "quantization_config = {'quant_method': 'fp8'}: quantized weights are not covered",
        ),
        (MOE | {"use_sliding_window": True}, "use_sliding_window = True: sliding-window attention is not covered"),
        (
            MOE | {"layer_types": ["sliding_attention"]},
            "layer_types = ['sliding_attention']: other attention is not covered; allowed: full_attention",
        ),
        (MOE | {"mlp_bias": True}, "mlp_bias = True: biases of these layers are not covered"),
        (MLA | {"attention_bias": True}, "attention_bias = True: biases of these layers are not covered"),
        (
            MOE | {"decoder_sparse_step": 2},
            "decoder_sparse_step = 2: layers without experts are not covered; allowed: 1",
        ),
        (
            MOE | {"mlp_only_layers": [0]},
            "mlp_only_layers = [0]: layers without experts are not covered; allowed: []",
        ),
        (without(MOE, "num_experts"), "num_experts: missing; allowed: a positive integer"),
        (MOE | {"num_experts_per_tok": 129}, "num_experts_per_tok = 129: more than num_experts = 128"),
        (MOE | {"num_key_value_heads": 5}, "num_key_value_heads = 5: does not divide num_attention_heads = 32"),
        (MOE | {"moe_intermediate_size": 0}, "moe_intermediate_size = 0: not a size; allowed: a positive integer"),
        (
            MLA | {"topk_method": "noaux_tc"},
            "topk_method = 'noaux_tc': other routing is not covered; allowed: greedy, group_limited_greedy",
        ),
        (MLA | {"n_shared_experts": -1}, "n_shared_experts = -1: not a size; allowed: a positive integer"),
        (without(MLA, "kv_lora_rank"), "kv_lora_rank: missing; allowed: a positive integer"),
        (MLA | {"q_lora_rank": 1.5}, "q_lora_rank = 1.5: not a size; allowed: a positive integer"),
    ],
)
def test_what_cannot_be_used_is_named(values: object, message: str) -> None:
    with pytest.raises(InputError) as caught:
        model_from_section(values, where="conf/mine.yaml: model")
    assert str(caught.value) == f"conf/mine.yaml: model: {message}"


@pytest.mark.parametrize(("name", "key"), [("llama_3_1_8b", "hidden_sise"), ("qwen3_30b_a3b", "kv_lora_rank")])
def test_a_key_that_no_model_of_the_family_has_is_refused(name: str, key: str) -> None:
    with pytest.raises(InputError) as caught:
        model_from_section(section(name, **{key: 1}))
    message = str(caught.value)
    assert message.startswith(f"model: {key}: unknown key; allowed: name, context_length, weight_precision, ")
    assert "hidden_size" in message
    assert key not in message.partition("allowed: ")[2].split(", ")


def test_transformers_own_name_of_the_number_of_experts() -> None:
    renamed = without(MOE, "num_experts") | {"num_local_experts": 128}
    assert model_from_section(renamed) == shipped_model("qwen3_30b_a3b")


def test_layers_that_have_experts() -> None:
    def layers(**changes: object) -> tuple[int, int]:
        shape = model_from_section(MLA | changes).shape
        return shape.num_layers - shape.expert_layers, shape.expert_layers

    assert layers() == (1, 26)
    assert layers(first_k_dense_replace=None) == layers(first_k_dense_replace=0) == (0, 27)
    assert layers(first_k_dense_replace=3, moe_layer_freq=2) == (27 - 12, 12)  # 4, 6, ... 26
    assert layers(n_routed_experts=None) == layers(first_k_dense_replace=27) == (27, 0)
