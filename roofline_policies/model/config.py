"""Reading a Hugging Face config.json key by key: a value, or an error that says what is in the way.

What the keys mean in each family of models is in ``families``.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType

from roofline_policies.errors import InputError
from roofline_policies.work import Precision

_PRECISIONS: Mapping[str, Precision] = MappingProxyType(
    {
        "float32": Precision.FP32,
        "float": Precision.FP32,
        "bfloat16": Precision.BF16,
        "float16": Precision.FP16,
        "half": Precision.FP16,
    }
)

_UNKNOWN = "the work of this architecture is not known in closed form"

REFUSED: Mapping[str, str] = MappingProxyType(
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

EXPERT_KEYS = frozenset({"num_experts", "num_local_experts", "n_routed_experts"})
"""Those of them that a mixture of experts has."""


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


def read_family(config: Mapping[str, object], where: str, architectures: Mapping[str, str]) -> str:
    """The family of a model by its class, or by its ``model_type`` where no class is named.

    architectures: the families that there are, by the names of their classes.

    Raises:
        InputError: neither key is there, it names another family, or both contradict each other.
    """
    named = config.get("architectures")
    model_type = config.get("model_type")
    allowed: tuple[str, ...]
    if isinstance(named, list | tuple) and named:
        key, name, allowed = "architectures", str(named[0]), tuple(architectures)
        family = architectures.get(name)
    elif model_type is not None:
        key, name, allowed = "model_type", str(model_type), tuple(architectures.values())
        family = name if name in allowed else None
    else:
        raise InputError("missing", where=where, key="architectures", allowed=tuple(architectures))
    if family is None:
        raise InputError(_UNKNOWN, where=where, key=key, value=name, allowed=allowed)
    if model_type is not None and model_type != family:
        raise InputError(
            f"contradicts {key} = {name!r}", where=where, key="model_type", value=model_type, allowed=family
        )
    return family


def refuse_keys(config: Mapping[str, object], where: str, covered: Collection[str] = ()) -> None:
    """Let no key pass, other than the ``covered`` ones, that means a model which the formulas do not describe.

    Raises:
        InputError: there is such a key.
    """
    for key, problem in REFUSED.items():
        if key == "use_sliding_window" and _no_layer_is_windowed(config):
            continue
        if key not in covered and config.get(key):
            raise InputError(problem, where=where, key=key, value=config[key])


def _no_layer_is_windowed(config: Mapping[str, object]) -> bool:
    """Qwen2 has windows from layer ``max_window_layers`` on.

    Source: transformers 5.19, ``Qwen2Config``.
    """
    first, layers = config.get("max_window_layers"), config.get("num_hidden_layers")
    return isinstance(first, int) and isinstance(layers, int) and first >= layers


def check_layer_types(config: Mapping[str, object], where: str) -> None:
    """Let no layer pass that has other attention than full attention.

    Raises:
        InputError: there is such a layer.
    """
    layer_types = config.get("layer_types") or ()
    if not isinstance(layer_types, list | tuple) or any(kind != "full_attention" for kind in layer_types):
        raise InputError(
            "other attention is not covered",
            where=where,
            key="layer_types",
            value=layer_types,
            allowed="full_attention",
        )


def read_heads(config: Mapping[str, object], where: str) -> tuple[int, int, int, int]:
    """hidden_size, query heads, KV heads (as many where the key is absent) and the width of a head.

    Raises:
        InputError: not sizes, or heads that cannot be grouped or made of hidden_size.
    """
    hidden_size = read_size(config, "hidden_size", where)
    num_heads = read_size(config, "num_attention_heads", where)
    num_kv_heads = read_size(config, "num_key_value_heads", where, default=num_heads)
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
    head_dim = read_size(config, "head_dim", where, default=hidden_size // num_heads)
    return hidden_size, num_heads, num_kv_heads, head_dim


def read_size(config: Mapping[str, object], key: str, where: str, *, default: int | None = None) -> int:
    """A positive integer; ``default`` where the key is absent or null.

    Raises:
        InputError: it is something else, or absent without a default.
    """
    value = config.get(key)
    if value is None:
        if default is not None:
            return default
        raise InputError("missing", where=where, key=key, allowed="a positive integer")
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError("not a size", where=where, key=key, value=value, allowed="a positive integer")
    return value


def read_flag(config: Mapping[str, object], key: str, where: str) -> bool:
    """A flag, off where the key is absent or null.

    Raises:
        InputError: it is something else.
    """
    value = config.get(key)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise InputError("not a flag", where=where, key=key, value=value, allowed="true, false")
    return value


def served_precision(config: Mapping[str, object], where: str) -> Precision:
    """What a server runs a dense checkpoint in unless it is told a dtype: 32 bits, and a configuration that names no
    dtype, become float16.

    Raises:
        InputError: see ``read_precision``.
    Source: SGLang 0.5.23, ``configs/model_config.py``, ``--dtype auto``.
    """
    if config.get("dtype") is None and config.get("torch_dtype") is None:
        return Precision.FP16
    precision = read_precision(config, where)
    return Precision.FP16 if precision is Precision.FP32 else precision


def read_precision(config: Mapping[str, object], where: str) -> Precision:
    """The checkpoint's own precision, under either spelling of the key.

    Raises:
        InputError: there is none, or it is no 16 or 32 bit float.
    """
    key = "dtype" if config.get("dtype") is not None else "torch_dtype"
    value = config.get(key)
    if value is None:
        raise InputError("missing, and no precision was given", where=where, key="dtype", allowed=tuple(_PRECISIONS))
    precision = _PRECISIONS.get(str(value).removeprefix("torch."))
    if precision is None:
        raise InputError("not covered", where=where, key=key, value=str(value), allowed=tuple(_PRECISIONS))
    return precision
