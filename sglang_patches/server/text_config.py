"""What modules leave to the configuration: of the text model, which may lie inside another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def texts(config: Any) -> Iterator[Any]:
    """A configuration, and those of the text models inside it."""
    yield config
    for name in ("text_config", "llm_config", "language_config", "thinker_config"):
        inner = getattr(config, name, None)
        if inner is not None:
            yield from texts(inner)


def size(config: Any, key: str) -> int | None:
    """The first of them that has the key as a positive number."""
    for one in texts(config):
        value = getattr(one, key, None)
        if isinstance(value, int) and value > 0:
            return value
    return None


def flag(config: Any, key: str) -> bool:
    """Whether one of them has the key set."""
    return any(bool(getattr(one, key, False)) for one in texts(config))


def chosen(config: Any) -> int | None:
    """Experts per token, under the names that models give it."""
    names = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "top_k_experts", "experts_per_token", "moe_k")
    return next((found for name in names if (found := size(config, name)) is not None), None)


def state_bytes(config: Any) -> tuple[int, int] | None:
    """Bytes of one request's state in one layer, and how many layers have one, as the configuration tells SGLang."""
    for one in texts(config):
        params = getattr(one, "mamba2_cache_params", None)
        if params is not None and params.layers:
            return int(params.mamba_cache_per_req) // len(params.layers), len(params.layers)
    return None
