"""A Hugging Face config.json -> the sizes of a ModelShape, or an error that says what is in the way."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from roofline_policies.errors import InputError
from roofline_policies.work import Precision

_ARCHITECTURES: Mapping[str, str] = MappingProxyType(
    {"LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2", "Qwen3ForCausalLM": "qwen3"}
)
FAMILIES = tuple(_ARCHITECTURES.values())

_DEFAULTS: Mapping[str, Mapping[str, int]] = MappingProxyType(
    {
        "llama": {},
        "qwen2": {"num_key_value_heads": 32},
        "qwen3": {"num_key_value_heads": 32, "head_dim": 128},
    }
)
"""What an absent key means in each family. Source: the configuration classes of transformers 5.19."""

_PRECISIONS: Mapping[str, Precision] = MappingProxyType(
    {
        "float32": Precision.FP32,
        "float": Precision.FP32,
        "bfloat16": Precision.BF16,
        "float16": Precision.FP16,
        "half": Precision.FP16,
    }
)

_REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "quantization_config": "quantized weights are not covered",
        "compression_config": "quantized weights are not covered",
        "num_experts": "mixture-of-experts models are not covered",
        "num_local_experts": "mixture-of-experts models are not covered",
        "n_routed_experts": "mixture-of-experts models are not covered",
        "use_sliding_window": "sliding-window attention is not covered",
        "dual_chunk_attention_config": "dual chunk attention is not covered",
    }
)
"""Keys that, unless absent, null, false or zero, mean a model which these formulas do not describe."""


def read_config(file: Path) -> Mapping[str, object]:
    """The object in a JSON file.

    Raises:
        InputError: the file cannot be read, is not JSON, or holds something else than an object.
    """
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}", where=str(file)) from error
    except ValueError as error:
        raise InputError(f"is not JSON: {error}", where=str(file)) from error
    if not isinstance(config, dict):
        raise InputError("is not a JSON object", where=str(file))
    return config


def model_fields(config: Mapping[str, object], weight_precision: Precision | None, where: str) -> dict[str, Any]:
    """The keyword arguments of ModelShape that a config.json determines: all but ``kv_precision``.

    Raises:
        InputError: see ModelShape.from_config.
    """
    for key, problem in _REFUSED.items():
        if config.get(key):
            raise InputError(problem, where=where, key=key, value=config[key])
    family = _family(config, where)
    layer_types = config.get("layer_types") or ()
    if not isinstance(layer_types, list | tuple) or any(kind != "full_attention" for kind in layer_types):
        raise InputError(
            "other attention is not covered",
            where=where,
            key="layer_types",
            value=layer_types,
            allowed="full_attention",
        )
    config = {**_DEFAULTS[family], **config}
    hidden_size = _size(config, "hidden_size", where)
    num_heads = _size(config, "num_attention_heads", where)
    num_kv_heads = _size(config, "num_key_value_heads", where, default=num_heads)
    if num_heads % num_kv_heads:
        raise InputError(
            f"does not divide num_attention_heads = {num_heads}",
            where=where,
            key="num_key_value_heads",
            value=num_kv_heads,
        )
    if config.get("head_dim") is None and hidden_size % num_heads:
        raise InputError(
            f"does not divide hidden_size = {hidden_size}, and there is no head_dim",
            where=where,
            key="num_attention_heads",
            value=num_heads,
        )
    attention_bias = _flag(config, "attention_bias", where)
    return {
        "family": family,
        "hidden_size": hidden_size,
        "num_layers": _size(config, "num_hidden_layers", where),
        "num_heads": num_heads,
        "num_kv_heads": num_kv_heads,
        "head_dim": _size(config, "head_dim", where, default=hidden_size // num_heads),
        "intermediate_size": _size(config, "intermediate_size", where),
        "vocab_size": _size(config, "vocab_size", where),
        "tied_embeddings": _flag(config, "tie_word_embeddings", where),
        "qkv_bias": family == "qwen2" or attention_bias,
        "output_bias": family != "qwen2" and attention_bias,
        "mlp_bias": family == "llama" and _flag(config, "mlp_bias", where),
        "qk_norm": family == "qwen3",
        "weight_precision": weight_precision or _precision(config, where),
    }


def _family(config: Mapping[str, object], where: str) -> str:
    architectures = config.get("architectures")
    model_type = config.get("model_type")
    if isinstance(architectures, list | tuple) and architectures:
        key, name, allowed = "architectures", str(architectures[0]), tuple(_ARCHITECTURES)
        family = _ARCHITECTURES.get(name)
    elif model_type is not None:
        key, name, allowed = "model_type", str(model_type), FAMILIES
        family = name if name in FAMILIES else None
    else:
        raise InputError("missing", where=where, key="architectures", allowed=tuple(_ARCHITECTURES))
    if family is None:
        experts = "moe" in name.lower() or "mixtral" in name.lower()
        problem = _REFUSED["num_experts"] if experts else "the work of this architecture is not known in closed form"
        raise InputError(problem, where=where, key=key, value=name, allowed=allowed)
    if model_type is not None and model_type != family:
        raise InputError(
            f"contradicts {key} = {name!r}", where=where, key="model_type", value=model_type, allowed=family
        )
    return family


def _size(config: Mapping[str, object], key: str, where: str, *, default: int | None = None) -> int:
    value = config.get(key)
    if value is None:
        if default is not None:
            return default
        raise InputError("missing", where=where, key=key, allowed="a positive integer")
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError("not a size", where=where, key=key, value=value, allowed="a positive integer")
    return value


def _flag(config: Mapping[str, object], key: str, where: str) -> bool:
    value = config.get(key)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise InputError("not a flag", where=where, key=key, value=value, allowed="true, false")
    return value


def _precision(config: Mapping[str, object], where: str) -> Precision:
    key = "dtype" if config.get("dtype") is not None else "torch_dtype"
    value = config.get(key)
    if value is None:
        raise InputError("missing, and no precision was given", where=where, key="dtype", allowed=tuple(_PRECISIONS))
    precision = _PRECISIONS.get(str(value).removeprefix("torch."))
    if precision is None:
        raise InputError("not covered", where=where, key=key, value=str(value), allowed=tuple(_PRECISIONS))
    return precision
