"""What a scheduler can run out of: its pools, its table of requests, the largest captured graph."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from roofline_policies.plain import described
from roofline_policies.slo.capacity import Capacity, Resource
from sglang_patches.needs.objects import PoolStats, Scheduler

logger = logging.getLogger(__name__)


class Capacities:
    """Reads the capacities of one scheduler; a reading costs tens of microseconds.

    largest_graph: requests of the largest captured decode batch, None where none was captured.
    """

    def __init__(self, scheduler: Scheduler, largest_graph: int | None = None) -> None:
        self._scheduler = scheduler
        self._largest_graph = largest_graph
        self._told = False

    def now(self, running: int, next_tokens: int = 0) -> tuple[Capacity, ...]:
        """All that is known at this moment. A pool that SGLang itself cannot tell of is left out, and named once.

        running: requests that decode. next_tokens: of the next prompt, which stands for all while nothing runs.
        """
        return (*self._pools(next_tokens), *self._graph(running))

    def _pools(self, next_tokens: int) -> tuple[Capacity, ...]:
        scheduler = self._scheduler
        try:
            table = scheduler.req_to_token_pool
            # Prompts that are part-way, and those that wait with what they have, hold places as well.
            held = max(0, table.size - table.available_size())
            found = (*_of_pools(scheduler.pool_stats_observer.get_pool_stats(), held, max(1, next_tokens)),)
            return (*found, Capacity(Resource.REQUEST_SLOTS, held, table.size))
        except Exception as error:  # a pool that nobody foresaw; requests come first
            if not self._told:
                self._told = True
                logger.warning(f"Roofline: how full the pools are is not known: {described(error)}")
            return ()

    def _graph(self, running: int) -> Iterator[Capacity]:
        if self._largest_graph is not None:
            yield Capacity(Resource.GRAPH_REQUESTS, running, self._largest_graph)


def kv_share(capacities: tuple[Capacity, ...]) -> float:
    """Used share of the KV pool, or of the pool of windows where that is fuller, as SGLang's own token usage."""
    pools = (Resource.KV_TOKENS, Resource.WINDOW_TOKENS)
    return max((one.used / one.size for one in capacities if one.resource in pools), default=0.0)


def _of_pools(stats: PoolStats, held: int, next_tokens: int) -> Iterator[Capacity]:
    """The pools of tokens and of states. What only the prefix cache holds is free: it goes when it is asked for."""
    pools = (
        (Resource.KV_TOKENS, stats.full_num_used, stats.full_capacity, next_tokens),
        (Resource.WINDOW_TOKENS, stats.swa_num_used, stats.swa_capacity, 1),
        (Resource.STATE_SLOTS, stats.mamba_num_used, _mamba_size(stats), 1),
    )
    for resource, used, size, alone in pools:
        if used is not None and size:
            yield Capacity(resource, used, size, max(1.0, used / held) if held and used > 0 else float(alone))


def _mamba_size(stats: PoolStats) -> int | None:
    """Slots for recurrent states: those in use, those free, and those that the prefix cache would give up."""
    if stats.mamba_num_used is None or stats.mamba_available_size is None:
        return None
    return stats.mamba_num_used + stats.mamba_available_size + (stats.mamba_evictable_size or 0)
