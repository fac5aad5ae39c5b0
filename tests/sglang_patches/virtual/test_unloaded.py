"""Models built without weights: what SGLang reads beside config.json, and what it cannot read."""

import json

import pytest

pytest.importorskip("sglang")

from roofline_policies.errors import InputError
from sglang_patches.virtual.unloaded import build_apart, build_here, builders

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256, "intermediate_size": 512,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 128,
    "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "hidden_act": "silu", "torch_dtype": "bfloat16",
    "tie_word_embeddings": False, "rope_theta": 10000.0,
}  # fmt: skip
OWN_CODE = LLAMA | {"architectures": ["InternLM2ForCausalLM"], "model_type": "internlm2", "bias": False}
MODELOPT = {
    "producer": {"name": "modelopt"},
    "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]},
}
BF16_KV = 2 * 2 * 2 * 64 * 2  # layers, keys and values, heads, their width, bytes
LAYERS = 2 * (256 * (256 + 2 * 128) + 256 * 256 + 3 * 256 * 512)
"""Elements of the layers' matrices."""
CASES = {
    "bf16": (LLAMA, None, ()),
    "fp8 from hf_quant_config.json": (LLAMA, MODELOPT, ()),
    "the same, another cache": (LLAMA, MODELOPT, ("--kv-cache-dtype", "bf16")),
    "fp8 of five bits' exponent": (LLAMA, None, ("--kv-cache-dtype", "fp8_e5m2")),
    "a configuration of the model's own": (OWN_CODE, None, ()),
    "two ranks": (LLAMA, None, ("--tp", "2")),
    "no such architecture": (LLAMA | {"architectures": ["NobodysForCausalLM"]}, None, ()),
}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    jobs = {}
    with builders(1) as pool:
        for name, (config, quantization, server_args) in CASES.items():
            folder = tmp_path_factory.mktemp("model")
            (folder / "config.json").write_text(json.dumps(config))
            if quantization is not None:
                (folder / "hf_quant_config.json").write_text(json.dumps(quantization))
            jobs[name] = pool.submit(build_apart, str(folder), server_args)
        return {name: job.exception() or job.result() for name, job in jobs.items()}


def composition(built, name):
    found = built[name]
    assert not isinstance(found, Exception), found
    return found.walked.rank_model


@pytest.mark.slow
def test_a_quantized_checkpoint_is_read_from_its_own_file(built):
    plain, narrow = composition(built, "bf16"), composition(built, "fp8 from hf_quant_config.json")
    scales = 2 * (3 + 1 + 2 + 1) * 2 * 4  # one per part of a layer's matrices, of weights and of activations, in fp32
    kv_scales = 2 * 2 * 4
    assert plain.weight_bytes - narrow.weight_bytes == LAYERS - scales - kv_scales
    assert narrow.parameters == plain.parameters


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bf16", BF16_KV),
        ("fp8 from hf_quant_config.json", BF16_KV // 2),
        ("the same, another cache", BF16_KV),
        ("fp8 of five bits' exponent", BF16_KV // 2),
        ("two ranks", BF16_KV // 2),
    ],
)
def test_the_cache_has_the_dtype_of_the_arguments_or_else_the_checkpoint(built, name, expected):
    assert composition(built, name).kv_bytes_per_token == expected


@pytest.mark.slow
def test_a_configuration_whose_class_is_not_at_hand_is_read_as_it_stands(built):
    assert composition(built, "a configuration of the model's own").parameters == composition(built, "bf16").parameters


@pytest.mark.slow
def test_a_model_that_sglang_does_not_know_is_told(built):
    assert isinstance(built["no such architecture"], InputError)
    assert "SGLang cannot build it: " in str(built["no such architecture"])
    assert "NobodysForCausalLM" in str(built["no such architecture"])


def test_a_folder_without_a_configuration_is_told(tmp_path):
    with pytest.raises(InputError, match=r"has no config\.json; allowed: a folder with the config\.json of a model"):
        build_here(str(tmp_path), ())
