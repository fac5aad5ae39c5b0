"""What a Hugging Face config.json means in each family of models that is known in closed form."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from roofline_policies.errors import InputError
from roofline_policies.model.config import (
    EXPERT_KEYS,
    REFUSED,
    check_layer_types,
    read_family,
    read_flag,
    read_heads,
    read_precision,
    read_size,
    refuse_keys,
)
from roofline_policies.model.gqa import GroupedAttention
from roofline_policies.model.mla import LatentAttention
from roofline_policies.model.moe import Experts
from roofline_policies.work import Precision

ARCHITECTURES: Mapping[str, str] = MappingProxyType({
    "LlamaForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3MoeForCausalLM": "qwen3_moe",
    "DeepseekV2ForCausalLM": "deepseek_v2",
})  # fmt: skip
FAMILIES = tuple(ARCHITECTURES.values())

_DEFAULTS: Mapping[str, Mapping[str, int]] = MappingProxyType(
    {
        "qwen2": {"num_key_value_heads": 32},
        "qwen3": {"num_key_value_heads": 32, "head_dim": 128},
    }
)
"""What an absent key means in a family. Source: the configuration classes of transformers 5.19."""

_COMMON_KEYS = frozenset({
    "architectures", "model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
    "vocab_size", "tie_word_embeddings", "attention_bias", "mlp_bias", "dtype", "torch_dtype", "layer_types",
    "max_window_layers",
}) | (REFUSED.keys() - EXPERT_KEYS)  # fmt: skip
_DENSE_KEYS = _COMMON_KEYS | {"num_key_value_heads", "head_dim"} | EXPERT_KEYS
_ROUTING_KEYS = frozenset({"num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob"})
KEYS: Mapping[str, frozenset[str]] = MappingProxyType({
    "llama": _DENSE_KEYS,
    "qwen2": _DENSE_KEYS,
    "qwen3": _DENSE_KEYS,
    "qwen3_moe": _COMMON_KEYS
    | _ROUTING_KEYS
    | {"num_key_value_heads", "head_dim", "num_experts", "num_local_experts"}
    | {"decoder_sparse_step", "mlp_only_layers"},
    "deepseek_v2": _COMMON_KEYS
    | _ROUTING_KEYS
    | {"q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "n_routed_experts"}
    | {"n_shared_experts", "first_k_dense_replace", "moe_layer_freq", "topk_method", "n_group", "topk_group"}
    | {"scoring_func", "routed_scaling_factor", "num_key_value_heads"},
})  # fmt: skip
"""The keys that describe a model of each family. Some of them change no figure: how experts are chosen and weighted."""

_ROUTING = ("greedy", "group_limited_greedy")


def decoder_fields(config: Mapping[str, object], weight_precision: Precision | None, where: str) -> dict[str, Any]:
    """The keyword arguments of ``Decoder`` that a config.json determines: all but ``kv_precision``.

    Raises:
        InputError: see ``Decoder.from_config``.
    """
    family = read_family(config, where, ARCHITECTURES)
    routed = family in ("qwen3_moe", "deepseek_v2")
    refuse_keys(config, where, covered=EXPERT_KEYS if routed else ())
    check_layer_types(config, where)
    if routed and read_flag(config, "mlp_bias", where):
        raise InputError("biases of these layers are not covered", where=where, key="mlp_bias", value=True)
    blocks = {"qwen3_moe": _qwen3_moe, "deepseek_v2": _deepseek_v2}.get(family, _dense)
    config = {**_DEFAULTS.get(family, {}), **config}
    return {
        "family": family,
        "hidden_size": read_size(config, "hidden_size", where),
        "num_layers": read_size(config, "num_hidden_layers", where),
        "vocab_size": read_size(config, "vocab_size", where),
        "tied_embeddings": read_flag(config, "tie_word_embeddings", where),
        "weight_precision": weight_precision or read_precision(config, where),
    } | blocks(config, where)


def _dense(config: Mapping[str, object], where: str) -> dict[str, Any]:
    family = read_family(config, where, ARCHITECTURES)
    _, num_heads, num_kv_heads, head_dim = read_heads(config, where)
    bias = read_flag(config, "attention_bias", where)
    attention = GroupedAttention(
        num_heads,
        num_kv_heads,
        head_dim,
        qkv_bias=family == "qwen2" or bias,
        output_bias=family != "qwen2" and bias,
        qk_norm=family == "qwen3",
    )
    return {
        "attention": attention,
        "intermediate_size": read_size(config, "intermediate_size", where),
        "mlp_bias": family == "llama" and read_flag(config, "mlp_bias", where),
    }


def _qwen3_moe(config: Mapping[str, object], where: str) -> dict[str, Any]:
    """SGLang 0.5.23 gives every layer experts, whatever the two keys that say otherwise."""
    for key, every in (("decoder_sparse_step", 1), ("mlp_only_layers", [])):
        value = config.get(key)
        if value is not None and value != every:
            raise InputError(
                "layers without experts are not covered", where=where, key=key, value=value, allowed=(every,)
            )
    _, num_heads, num_kv_heads, head_dim = read_heads(config, where)
    bias = read_flag(config, "attention_bias", where)
    # transformers 5 writes its own name of the key.
    count_key = (
        "num_local_experts" if config.get("num_experts") is None and "num_local_experts" in config else "num_experts"
    )
    return {
        "attention": GroupedAttention(num_heads, num_kv_heads, head_dim, qkv_bias=bias, output_bias=bias, qk_norm=True),
        "expert_layers": read_size(config, "num_hidden_layers", where),
        "experts": _experts(config, where, count_key),
    }


def _deepseek_v2(config: Mapping[str, object], where: str) -> dict[str, Any]:
    if read_flag(config, "attention_bias", where):
        raise InputError("biases of these layers are not covered", where=where, key="attention_bias", value=True)
    method = config.get("topk_method")
    if method is not None and method not in _ROUTING:
        raise InputError("other routing is not covered", where=where, key="topk_method", value=method, allowed=_ROUTING)
    layers = read_size(config, "num_hidden_layers", where)
    first = _count(config, "first_k_dense_replace", where)
    step = read_size(config, "moe_layer_freq", where, default=1)
    dense = sum(1 for layer in range(layers) if layer < first or layer % step)
    experts = None
    if config.get("n_routed_experts") is not None and dense < layers:
        experts = _experts(config, where, "n_routed_experts")
    else:
        dense = layers
    return {
        "attention": LatentAttention(
            num_heads=read_size(config, "num_attention_heads", where),
            kv_lora_rank=read_size(config, "kv_lora_rank", where),
            qk_nope_head_dim=read_size(config, "qk_nope_head_dim", where),
            qk_rope_head_dim=read_size(config, "qk_rope_head_dim", where),
            v_head_dim=read_size(config, "v_head_dim", where),
            q_lora_rank=None if config.get("q_lora_rank") is None else read_size(config, "q_lora_rank", where),
        ),
        "expert_layers": layers - dense,
        "intermediate_size": read_size(config, "intermediate_size", where) if dense else 0,
        "experts": experts,
    }


def _experts(config: Mapping[str, object], where: str, count_key: str) -> Experts:
    count, chosen = read_size(config, count_key, where), read_size(config, "num_experts_per_tok", where)
    if chosen > count:
        raise InputError(f"more than {count_key} = {count}", where=where, key="num_experts_per_tok", value=chosen)
    width = read_size(config, "moe_intermediate_size", where)
    return Experts(count, chosen, width, shared_width=width * _count(config, "n_shared_experts", where))


def _count(config: Mapping[str, object], key: str, where: str) -> int:
    """A number that may be zero, and is where the key is absent or null."""
    return 0 if config.get(key) is None or config[key] == 0 else read_size(config, key, where)
