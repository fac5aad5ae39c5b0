"""Whether all ranks that share a waiting queue follow the same policy, found out before the first decision.

Every node of a server is launched by a command of its own. A rank whose command named no policy, or another one, would
not know what a decision is, and form other batches than the rest. Each rank that follows leaves its mark in the store
through which the ranks found each other; the deciding one looks for all of them, and decides nothing until it has.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.metadata import version
from typing import Protocol

from torch.distributed import distributed_c10d

from roofline_policies.slo.objectives import Objectives
from sglang_patches.server.agree import ranks

LOOK_EVERY_S = 1.0
"""Seconds between two looks at the store while ranks are missing. A look is a message to another process."""


class Store(Protocol):
    """torch.distributed.Store, as far as it is used."""

    def set(self, key: str, value: str, /) -> object: ...
    def get(self, key: str, /) -> bytes: ...
    def check(self, keys: list[str], /) -> bool: ...


class Company:
    """The ranks that share one waiting queue. None of its methods waits for another rank.

    others: world ranks that must follow. mark: what they must agree on.
    """

    def __init__(self, store: Store, rank: int, others: Sequence[int], mark: str) -> None:
        self._store, self._others, self._mark = store, tuple(others), mark
        self._look_s = float("-inf")
        self.problem: str | None = "other ranks were not looked for yet" if self._others else None
        store.set(_key(rank), mark)

    def complete(self, now_s: float) -> bool:
        """Whether all follow; looks at most once in LOOK_EVERY_S, and no more once all do."""
        if self.problem is not None and now_s - self._look_s >= LOOK_EVERY_S:
            self._look_s, self.problem = now_s, self._look()
        return self.problem is None

    def _look(self) -> str | None:
        missing = [rank for rank in self._others if not self._store.check([_key(rank)])]
        if missing:
            named = ", ".join(map(str, missing))
            return f"ranks that share the queue do not follow: {named}; every node needs the same --policy"
        differ = [rank for rank in self._others if self._store.get(_key(rank)).decode() != self._mark]
        if differ:
            return f"ranks were launched with another policy or SLO: {', '.join(map(str, differ))}"
        return None


def of_this_rank(objectives: Objectives) -> Company | None:
    """The company of this rank, None where it is alone or the ranks have no store."""
    group = sharing_ranks()
    if len(group) == 1 or not distributed_c10d.is_initialized():
        return None
    rank = int(distributed_c10d.get_rank())
    store: Store = distributed_c10d._get_default_store()
    return Company(store, rank, [other for other in group if other != rank], mark_of(objectives))


def sharing_ranks() -> list[int]:
    """The world ranks that share this rank's waiting queue: its attention group, in every stage of the pipeline.

    Source: SGLang 0.5.23, ``runtime_context.derive_attention_ranks`` and ``spawn_world_rank``.
    """
    here = ranks()
    width = here.attn_tp_size * here.attn_cp_size
    first = here.attn_dp_rank * width
    return [here.tp_size * stage + first + place for stage in range(here.pp_size) for place in range(width)]


def mark_of(objectives: Objectives) -> str:
    """What ranks must have in common to keep a queue in the same order: versions, and what requests are promised."""
    classes = sorted(objectives.classes.items())
    told = (version("sglang"), version("roofline-policies"), objectives.server, classes, objectives.requests)
    return hashlib.sha256(repr(told).encode()).hexdigest()


def _key(rank: int) -> str:
    return f"roofline/follows/{rank}"
