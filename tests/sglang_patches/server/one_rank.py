"""SGLang's layers as they are built on one rank of several, without process groups."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any


def sglang_module(name: str) -> ModuleType:
    """Import a module of SGLang, whose own dependencies warn while they are imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return import_module(f"sglang.srt.{name}")


@contextmanager
def one_rank_of(tp_size: int) -> Iterator[None]:
    """What SGLang's layers ask for when they are built on rank 0 of ``tp_size``, without process groups."""
    context = sglang_module("runtime_context")
    parallel: dict[str, Any] = dict.fromkeys(("tp_size", "attn_tp_size", "moe_tp_size"), tp_size)
    parallel |= {"tp_rank": 0, "attn_tp_rank": 0, "pp_size": 1, "pp_rank": 0}
    group = SimpleNamespace(world_size=tp_size, rank_in_group=0, cpu_group=None)
    parallel |= dict.fromkeys(("tp_group", "attn_tp_group", "moe_tp_group"), group)
    parallel["pp_group"] = SimpleNamespace(is_first_rank=True, is_last_rank=True, world_size=1, rank_in_group=0)
    with context.get_context().override_server_args(), context.get_parallel().override(**parallel):
        yield
