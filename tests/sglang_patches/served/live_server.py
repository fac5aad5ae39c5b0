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

    async def one(session: aiohttp.ClientSession, ids: list[int]) -> list[int]:
        sampling = {"temperature": 0, "max_new_tokens": output_tokens, "ignore_eos": True}
        body = {"input_ids": ids, "sampling_params": sampling, "stream": True}
        last: dict[str, Any] = {}
        async with session.post(f"{base_url}/generate", json=body) as response:
            assert response.status == 200, await response.text()
            async for line in response.content:
                if line.startswith(b"data: {"):
                    last = json.loads(line[6:])
        return last["output_ids"]

    async def everything() -> list[list[int]]:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=300)) as session:
            return await asyncio.gather(*(one(session, ids) for ids in token_ids))

    return asyncio.run(everything())


def get(base_url: str, path: str) -> str:
    with urllib.request.urlopen(f"{base_url}{path}", timeout=30) as response:
        return response.read().decode()


def roofline(base_url: str) -> dict[str, Any]:
    """The one rank's status page."""
    (rank,) = json.loads(get(base_url, "/roofline"))["ranks"]
    return rank
