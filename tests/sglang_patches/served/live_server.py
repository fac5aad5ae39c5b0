"""What the tests ask of a real server: concurrent streamed generations, and the status page."""

from __future__ import annotations

import asyncio
import json
import random
import urllib.request
from typing import Any

import aiohttp


def prompts(lengths: list[int], *, vocab_size: int, seed: int) -> list[list[int]]:
    """Random token ids, all different from the first token on, so that no prompt finds another's prefix cached."""
    chooser = random.Random(seed)
    return [[16 + i, *(chooser.randrange(16, vocab_size) for _ in range(n - 1))] for i, n in enumerate(lengths)]


def generate(base_url: str, token_ids: list[list[int]], output_tokens: int) -> list[list[int]]:
    """Greedy output ids of every prompt, all sent at once and streamed."""
    sampling = {"max_new_tokens": output_tokens, "ignore_eos": True}
    return [last["output_ids"] for last in streamed(base_url, token_ids, sampling)]


def streamed(
    base_url: str,
    token_ids: list[list[int]],
    sampling: dict[str, Any],
    *,
    left_at: dict[int, int] | None = None,
    **more: Any,
) -> list[dict[str, Any]]:
    """The last that came of the greedy answer to every prompt, all sent at once. left_at: places whose request is left
    once it has so many tokens."""
    leaves = left_at or {}

    async def one(session: aiohttp.ClientSession, place: int) -> dict[str, Any]:
        body = {
            "input_ids": token_ids[place],
            "sampling_params": {"temperature": 0, **sampling},
            "stream": True,
            **more,
        }
        last: dict[str, Any] = {}
        async with session.post(f"{base_url}/generate", json=body) as response:
            assert response.status == 200, await response.text()
            async for line in response.content:
                if line.startswith(b"data: {"):
                    last = json.loads(line[6:])
                    if place in leaves and len(last["output_ids"]) >= leaves[place]:
                        break
        return last

    async def everything() -> list[dict[str, Any]]:
        async with aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=900), connector=aiohttp.TCPConnector(limit=0)
        ) as session:
            return await asyncio.gather(*(one(session, place) for place in range(len(token_ids))))

    return asyncio.run(everything())


def get(base_url: str, path: str) -> str:
    with urllib.request.urlopen(f"{base_url}{path}", timeout=30) as response:
        return response.read().decode()


def roofline(base_url: str) -> dict[str, Any]:
    """The one rank's status page."""
    (rank,) = json.loads(get(base_url, "/roofline"))["ranks"]
    return rank
