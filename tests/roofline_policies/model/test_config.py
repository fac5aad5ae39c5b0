"""What a config.json means, and every way in which it can be refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from roofline_policies.errors import InputError
from roofline_policies.model.decoder import Decoder
from roofline_policies.model.gqa import GroupedAttention
from roofline_policies.work import Precision

LLAMA: dict[str, object] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "torch_dtype": "bfloat16",
}
QWEN3 = LLAMA | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
QWEN2 = LLAMA | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
ARCHITECTURES = "LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, Qwen3MoeForCausalLM, DeepseekV2ForCausalLM"
FAMILIES = "llama, qwen2, qwen3, qwen3_moe, deepseek_v2"
UNKNOWN = "the work of this architecture is not known in closed form"
DTYPES = "float32, float, bfloat16, float16, half"
EXPERTS = "mixture-of-experts models are not covered"
QUANTIZED = "quantized weights are not covered"


def without(config: dict[str, object], *keys: str) -> dict[str, object]:
    return {key: value for key, value in config.items() if key not in keys}


def heads_of(config: dict[str, object]) -> GroupedAttention:
    attention = Decoder.from_config(config).attention
    assert isinstance(attention, GroupedAttention)
    return attention


def test_every_key_has_its_place() -> None:
    assert Decoder.from_config(LLAMA) == Decoder(
        family="llama",
        hidden_size=64,
        num_layers=2,
        attention=GroupedAttention(4, 2, 16, qkv_bias=False, output_bias=False, qk_norm=False),
        intermediate_size=96,
        vocab_size=100,
        tied_embeddings=False,
        mlp_bias=False,
        weight_precision=Precision.BF16,
        kv_precision=Precision.BF16,
    )


def test_absent_and_null_sizes() -> None:
    assert heads_of(without(LLAMA, "num_key_value_heads")).num_kv_heads == 4
    assert heads_of(LLAMA | {"num_key_value_heads": None}).num_kv_heads == 4
    assert heads_of(LLAMA | {"head_dim": None}).head_dim == 16
    assert heads_of(LLAMA | {"head_dim": 24}).head_dim == 24
    assert heads_of(QWEN2).head_dim == 16
    assert heads_of(QWEN3).head_dim == 128
    assert heads_of(QWEN3 | {"head_dim": 24}).head_dim == 24
    many = {"num_attention_heads": 64}
    assert heads_of(without(QWEN2, "num_key_value_heads") | many).num_kv_heads == 32
    assert heads_of(QWEN2 | many | {"num_key_value_heads": None}).num_kv_heads == 64


def test_biases_are_those_that_the_family_has() -> None:
    # Hugging Face and SGLang build Qwen2 and Qwen3 without looking at the keys that the other families define.
    both: dict[str, object] = {"attention_bias": True, "mlp_bias": True}
    for config, has in ((LLAMA, (True, True, True)), (QWEN2, (True, False, False)), (QWEN3, (True, True, False))):
        shape = Decoder.from_config(config | both)
        attention = heads_of(config | both)
        assert (attention.qkv_bias, attention.output_bias, shape.mlp_bias) == has
    assert heads_of(QWEN2).qkv_bias
    assert not heads_of(QWEN3).qkv_bias
    assert [heads_of(config).qk_norm for config in (LLAMA, QWEN2, QWEN3)] == [False, False, True]


@pytest.mark.parametrize(
    ("dtype", "precision"),
    [
        ("float32", Precision.FP32),
        ("float", Precision.FP32),
        ("bfloat16", Precision.BF16),
        ("torch.bfloat16", Precision.BF16),
        ("float16", Precision.FP16),
        ("half", Precision.FP16),
    ],
)
def test_both_spellings_of_the_dtype_key(dtype: str, precision: Precision) -> None:
    for key in ("dtype", "torch_dtype"):
        shape = Decoder.from_config(without(LLAMA, "torch_dtype") | {key: dtype})
        assert (shape.weight_precision, shape.kv_precision) == (precision, precision)


def test_precisions_that_are_given_outrank_the_checkpoint() -> None:
    shape = Decoder.from_config(LLAMA, weight_precision=Precision.FP16, kv_precision=Precision.FP8)
    assert (shape.weight_precision, shape.kv_precision) == (Precision.FP16, Precision.FP8)
    bare = without(LLAMA, "torch_dtype")
    assert Decoder.from_config(bare, weight_precision=Precision.FP32).kv_precision is Precision.FP32


def test_architecture_or_model_type_is_enough() -> None:
    whole = Decoder.from_config(QWEN3)
    assert Decoder.from_config(without(QWEN3, "model_type")) == whole
    assert Decoder.from_config(without(QWEN3, "architectures")) == whole
    assert Decoder.from_config(QWEN3 | {"architectures": None}) == whole


def test_keys_that_are_off_do_no_harm() -> None:
    off: dict[str, object] = {
        "quantization_config": None,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "num_experts": 0,
        "layer_types": ["full_attention", "full_attention"],
        "tie_word_embeddings": None,
    }
    assert Decoder.from_config(QWEN3 | off) == Decoder.from_config(QWEN3)


def test_windows_that_begin_behind_the_last_layer_are_none() -> None:
    windowed: dict[str, object] = {"use_sliding_window": True, "sliding_window": 4096}
    for first in (2, 28):
        assert Decoder.from_config(QWEN2 | windowed | {"max_window_layers": first}) == Decoder.from_config(QWEN2)
    for first in (0, 1, None):
        with pytest.raises(InputError, match="use_sliding_window = True: sliding-window attention is not covered"):
            Decoder.from_config(QWEN2 | windowed | {"max_window_layers": first})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (without(LLAMA, "architectures", "model_type"), f"architectures: missing; allowed: {ARCHITECTURES}"),
        (
            LLAMA | {"architectures": ["GemmaForCausalLM"]},
            f"architectures = 'GemmaForCausalLM': {UNKNOWN}; allowed: {ARCHITECTURES}",
        ),
        (
            without(LLAMA, "architectures") | {"model_type": "gemma"},
            f"model_type = 'gemma': {UNKNOWN}; allowed: {FAMILIES}",
        ),
        (
            LLAMA | {"model_type": "mistral"},
            "model_type = 'mistral': contradicts architectures = 'LlamaForCausalLM'; allowed: llama",
        ),
        (
            LLAMA | {"architectures": ["Qwen3MoeForCausalLM"]},
            "model_type = 'llama': contradicts architectures = 'Qwen3MoeForCausalLM'; allowed: qwen3_moe",
        ),
        (
            LLAMA | {"architectures": ["MixtralForCausalLM"], "num_local_experts": 8},
            f"architectures = 'MixtralForCausalLM': {UNKNOWN}; allowed: {ARCHITECTURES}",
        ),
        (
            without(LLAMA, "architectures") | {"model_type": "mixtral"},
            f"model_type = 'mixtral': {UNKNOWN}; allowed: {FAMILIES}",
        ),
        (LLAMA | {"num_experts": 8}, f"num_experts = 8: {EXPERTS}"),
        (LLAMA | {"num_local_experts": 8}, f"num_local_experts = 8: {EXPERTS}"),
        (LLAMA | {"n_routed_experts": 8}, f"n_routed_experts = 8: {EXPERTS}"),
        (
            LLAMA | {"quantization_config": {"quant_method": "awq"}},
            f"quantization_config = {{'quant_method': 'awq'}}: {QUANTIZED}",
        ),
        (LLAMA | {"compression_config": {"bits": 4}}, f"compression_config = {{'bits': 4}}: {QUANTIZED}"),
        (QWEN2 | {"use_sliding_window": True}, "use_sliding_window = True: sliding-window attention is not covered"),
        (
            QWEN2 | {"layer_types": ["full_attention", "sliding_attention"]},
            "layer_types = ['full_attention', 'sliding_attention']: other attention is not covered; "
            "allowed: full_attention",
        ),
        (
            QWEN2 | {"dual_chunk_attention_config": {"chunk_size": 8}},
            "dual_chunk_attention_config = {'chunk_size': 8}: dual chunk attention is not covered",
        ),
        *[
            (without(LLAMA, key), f"{key}: missing; allowed: a positive integer")
            for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
        ],
        *[
            (LLAMA | {key: value}, f"{key} = {value!r}: not a size; allowed: a positive integer")
            for key, value in (
                ("hidden_size", 0),
                ("num_hidden_layers", -1),
                ("vocab_size", "100"),
                ("intermediate_size", 96.0),
                ("num_key_value_heads", True),
                ("head_dim", 0),
            )
        ],
        (LLAMA | {"num_key_value_heads": 3}, "num_key_value_heads = 3: does not divide num_attention_heads = 4"),
        (
            LLAMA | {"hidden_size": 66},
            "num_attention_heads = 4: does not divide hidden_size = 66, and there is no head_dim",
        ),
        (LLAMA | {"tie_word_embeddings": "no"}, "tie_word_embeddings = 'no': not a flag; allowed: true, false"),
        (LLAMA | {"mlp_bias": 1}, "mlp_bias = 1: not a flag; allowed: true, false"),
        (without(LLAMA, "torch_dtype"), f"dtype: missing, and no precision was given; allowed: {DTYPES}"),
        (
            LLAMA | {"torch_dtype": "float8_e4m3fn"},
            f"torch_dtype = 'float8_e4m3fn': not covered; allowed: {DTYPES}",
        ),
        (LLAMA | {"dtype": "int8"}, f"dtype = 'int8': not covered; allowed: {DTYPES}"),
    ],
)
def test_what_cannot_be_used_is_named(config: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as caught:
        Decoder.from_config(config, where="models/m/config.json")
    assert str(caught.value) == f"models/m/config.json: {message}"


def test_a_directory_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    assert Decoder.from_directory(tmp_path) == Decoder.from_config(LLAMA)
    served = Decoder.from_directory(str(tmp_path), weight_precision=Precision.FP16, kv_precision=Precision.FP8)
    assert (served.weight_precision, served.kv_precision) == (Precision.FP16, Precision.FP8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"{", "is not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        (b"\xff", "is not JSON: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
        (b"[]", "is not a JSON object"),
        (b"{}", f"architectures: missing; allowed: {ARCHITECTURES}"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "config.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError) as caught:
        Decoder.from_directory(tmp_path)
    assert str(caught.value) == f"{file}: {message}"
