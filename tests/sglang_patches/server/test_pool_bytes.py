"""Sizes of Decoder against what SGLang itself allocates: its KV pool, and its models on a tensor-parallel rank."""

from __future__ import annotations

import pytest

from roofline_policies.model.decoder import Decoder
from roofline_policies.work import Precision
from tests.sglang_patches.server.one_rank import one_rank_of, sglang_module

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("sglang")

SIZES = {
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 100,  # SGLang pads it to 128
}
DTYPES = {
    Precision.FP32: torch.float32,
    Precision.BF16: torch.bfloat16,
    Precision.FP16: torch.float16,
    Precision.FP8: torch.float8_e4m3fn,
}


@pytest.mark.parametrize("tp_size", [1, 2, 8])
@pytest.mark.parametrize("kv_precision", DTYPES)
def test_kv_bytes_per_token_are_those_of_the_pool(kv_precision: Precision, tp_size: int) -> None:
    pools = sglang_module("mem_cache.memory_pool")
    config = {"model_type": "llama", "head_dim": 6, "dtype": "bfloat16"} | SIZES
    rank = Decoder.from_config(config, kv_precision=kv_precision).shard(tp_size)

    def pool_bytes(tokens: int) -> int:
        pool = pools.MHATokenToKVPool(
            size=tokens,
            page_size=1,
            dtype=DTYPES[kv_precision],
            head_num=max(1, 4 // tp_size),
            head_dim=6,
            layer_num=2,
            device="cpu",
            enable_memory_saver=False,
        )
        return int(sum(pool.get_kv_size_bytes()))

    assert pool_bytes(8) == rank.kv_bytes_per_token * (8 + 1)  # and one page for padded rows
    assert pool_bytes(24) - pool_bytes(8) == rank.kv_bytes_per_token * 16


@pytest.mark.parametrize("tp_size", [1, 2, 8])
@pytest.mark.parametrize(
    ("family", "extra"),
    [
        ("Llama", {}),
        ("Llama", {"attention_bias": True, "tie_word_embeddings": True, "head_dim": 10}),
        ("Qwen2", {}),
        ("Qwen2", {"tie_word_embeddings": True}),
        ("Qwen3", {"head_dim": 10}),
        ("Qwen3", {"head_dim": 10, "attention_bias": True}),
    ],
)
def test_a_rank_has_the_parameters_of_the_model_that_sglang_builds(
    family: str, extra: dict[str, object], tp_size: int
) -> None:
    # Where embeddings are tied and there are several ranks, too, the head is the embedding layer itself.
    config = getattr(transformers, f"{family}Config")(**SIZES, **extra)
    build = getattr(sglang_module(f"models.{family.lower()}"), f"{family}ForCausalLM")
    with one_rank_of(tp_size), torch.device("meta"):
        parameters = list(build(config).parameters())
    rank = Decoder.from_config(config.to_dict(), weight_precision=Precision.FP32).shard(tp_size)
    assert rank.parameters == sum(parameter.numel() for parameter in parameters)
    assert rank.weight_bytes == sum(parameter.nbytes for parameter in parameters)
