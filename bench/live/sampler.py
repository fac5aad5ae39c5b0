"""Once a second, what the server says of itself: /v1/loads, /roofline, the retraction counter of /metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import perf_counter
from typing import Any

import aiohttp
import orjson

from bench.report.records import ServerSample

RETRACTIONS = b"sglang:num_retracted_requests_total{"
"""Prometheus counter of retracted requests. Source: SGLang 0.5.23, observability/metrics_collector.py."""


class Sampler:
    """Samples a server until cancelled. An endpoint that answers 404 is not asked again."""

    def __init__(self, base_url: str, start: float, period_s: float = 1.0) -> None:
        """``start``: the run's zero on ``perf_counter``, seconds."""
        self._base_url = base_url
        self._start = start
        self._period_s = period_s
        self._absent: set[str] = set()
        self.samples: list[ServerSample] = []

    async def run(self) -> None:
        """Takes a sample at once and then every period, until cancelled."""
        timeout = aiohttp.ClientTimeout(total=10.0)
        async with aiohttp.ClientSession(timeout=timeout, trust_env=False) as session:
            while True:
                begin = perf_counter()
                self.samples.append(await self._sample(session))
                await asyncio.sleep(max(0.0, begin + self._period_s - perf_counter()))

    async def _sample(self, session: aiohttp.ClientSession) -> ServerSample:
        now_s = perf_counter() - self._start
        loads = await self._get(session, "/v1/loads?include=all", orjson.loads)
        roofline = await self._get(session, "/roofline", orjson.loads)
        counted = await self._get(session, "/metrics", retractions)
        ranks = tuple(roofline.get("ranks", ())) if isinstance(roofline, dict) else ()
        if counted is None and ranks and ranks[0].get("retractions") is not None:
            counted = int(ranks[0]["retractions"])
        return ServerSample(now_s, load_of(loads), counted, ranks)

    async def _get(self, session: aiohttp.ClientSession, path: str, read: Callable[[bytes], Any]) -> Any:
        if path in self._absent:
            return None
        try:
            async with session.get(self._base_url + path) as response:
                if response.status == 404:
                    self._absent.add(path)
                if response.status != 200:
                    return None
                return read(await response.read())
        except (aiohttp.ClientError, OSError, ValueError):
            return None  # a sample may be missed: the run goes on, the report shows a gap


def load_of(loads: Any) -> dict[str, float]:
    """running, waiting and kv_use (0..1) summed or, for kv_use, averaged over the data-parallel ranks."""
    ranks = loads.get("loads", []) if isinstance(loads, dict) else []
    if not ranks:
        return {}
    return {
        "running": float(sum(rank.get("num_running_reqs", 0) for rank in ranks)),
        "waiting": float(sum(rank.get("num_waiting_reqs", 0) for rank in ranks)),
        "kv_use": sum(rank.get("token_usage", 0.0) for rank in ranks) / len(ranks),
    }


def retractions(page: bytes) -> int | None:
    """Retracted requests since the server started, from its Prometheus page; None where the page is not SGLang's.

    The counter appears with the first retraction. Only its lines are read: parsing the whole page each second would
    cost the client milliseconds.
    """
    if b"sglang:" not in page:
        return None
    return int(sum(float(line.rsplit(b" ", 1)[1]) for line in page.splitlines() if line.startswith(RETRACTIONS)))
