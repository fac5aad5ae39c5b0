"""A storm over a real server: mixed load over HTTP, some of whose clients leave."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import orjson
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from bench.live.prompts import PromptBuilder
from bench.live.server import Server
from bench.storm.load import leaves_after_s, storm_load
from bench.storm.round import OVERRIDES, Result
from bench.storm.rounds import retracting
from bench.traffic.request import Request
from roofline_policies.errors import InputError

STORM = "roofline_policies.testing:Storm"
SERVER_ARGS = ("--chunked-prefill-size", "256", "--max-running-requests", "16", "--max-total-tokens", "20000")
"""Small limits are reached: a long prompt has a dozen chunks, and memory holds six of the longest requests where
sixteen may run."""

TARGETS = ("slo.ttft_s=2", "slo.itl_s=0.05")
"""Those of ``OBJECTIVES`` without its classes."""

OPEN_AT_MOST = 48
"""Requests on their way: three times as many as may run, so that there is always a queue to put in order. Above it the
load waits, so that it is bounded on any machine."""

DRAIN_S = 600.0
"""Longest wait for open requests after the last was sent; then they are lost. Two CPU cores serve 8 a second
(docs/measured/storms.md), so OPEN_AT_MOST take a hundredth of it."""

MOST_PROMPT_TOKENS, MOST_OUTPUT_TOKENS = 3000, 64
"""Half of a virtual round's: a step takes ten times as long (47 ms, docs/measured/storms.md)."""

INTERARRIVAL_S, LEAVING = 0.1, 0.05
"""As of a virtual round. With its bursts that is 30 requests a second, more than two CPU cores serve, so the queue is
as long as it may be."""

LEAVE_WITHIN_S = 5.0
"""Longest that a client who leaves stays, seconds; longer than on the virtual clock, as everything takes longer."""


def run(
    model_path: Path,
    arguments: tuple[str, ...],
    *,
    policy: str | None,
    seconds: int,
    seed: int,
    retract_every: int | None,
) -> tuple[str, Result]:
    """Send to a server for so long, then wait for what is open; the server's arguments, and what became of it all.

    retract_every: see ``rounds.retracting``.

    Raises:
        InputError: the folder holds no model.
        ServerDied: the server does not start.
    """
    if not (model_path / "config.json").is_file():
        raise InputError(
            "holds no config.json", where="--model-path", value=str(model_path), allowed="a model's folder"
        )
    vocabulary = json.loads((model_path / "config.json").read_text())["vocab_size"]
    environment = retracting(retract_every)
    launch = ["--model-path", str(model_path), *arguments, "--policy", policy or STORM]
    launch += ["--policy-set", " ".join((*OVERRIDES, *TARGETS)), "--random-seed", str(seed)]
    with (
        tempfile.TemporaryDirectory(prefix="roofline-storm-") as folder,
        Server(launch, Path(folder) / "server.log", env=environment) as server,
    ):
        ends, page = asyncio.run(send(server, seconds, seed, PromptBuilder(seed, vocabulary)))
        death = server.death()
        problem = None if death is None else " | ".join([death, *server.log_tail(4)])
    if problem is None and page.get("policy", {}).get("state") != "active":
        problem = f"the policy failed: {page.get('policy', {}).get('fallback_reason', 'GET /roofline fails')}"
    result = Result(
        requests=sum(ends.values()),
        served=ends["served"],
        left=ends["left"],
        lost=ends["lost"],
        iterations=page.get("iterations", 0),
        changes=sum(page.get("changes_total", {}).values()),
        retractions=page.get("retractions", 0),
        seconds=seconds,
        problem=problem,
    )
    return " ".join([*arguments, *(f"{key}={value}" for key, value in environment.items())]), result


async def send(server: Server, seconds: int, seed: int, prompts: PromptBuilder) -> tuple[Counter[str], dict[str, Any]]:
    """Send mixed load to a server for so long: how many requests ended how, and the server's status after the last.

    Keys: ``served``, ``left``, ``lost``. The status is empty where nobody answers.
    """
    count = max(1, round(3 * seconds / INTERARRIVAL_S))  # three times what comes in that time: they do not run out
    requests = storm_load(
        seed,
        count,
        most_prompt_tokens=MOST_PROMPT_TOKENS,
        most_output_tokens=MOST_OUTPUT_TOKENS,
        interarrival_s=INTERARRIVAL_S,
    )
    ends: Counter[str] = Counter()
    tasks: set[asyncio.Task[None]] = set()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("storm", total=seconds)
        async with aiohttp.ClientSession(connector=connector, trust_env=False, read_bufsize=1 << 22) as session:
            begin_s = time.monotonic()

            async def one(index: int, request: Request) -> None:
                leaves_s = leaves_after_s(seed, index, LEAVING, LEAVE_WITHIN_S)
                ends[await end_of(session, server.base_url, prompts.tokens(request, index), request, leaves_s)] += 1

            behind_s = 0.0  # what waiting for others has cost
            for index, request in enumerate(requests):
                while len(tasks) >= OPEN_AT_MOST or time.monotonic() < begin_s + behind_s + request.arrival_s:
                    await asyncio.sleep(0.01)
                now_s = time.monotonic() - begin_s
                behind_s = max(behind_s, now_s - request.arrival_s)
                if now_s > seconds or server.death():
                    break
                progress.update(bar, completed=now_s, description=f"{sum(ends.values())} ended, {ends['lost']} lost")
                task = asyncio.create_task(one(index, request))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            if tasks:
                _, late = await asyncio.wait(tasks, timeout=DRAIN_S)
                ends["lost"] += len(late)
                for task in late:
                    task.cancel()
            return ends, await _page(session, server.base_url)


async def end_of(
    session: aiohttp.ClientSession, url: str, tokens: list[int], request: Request, leaves_s: float | None
) -> str:
    """What became of a request: ``served``, ``left`` or ``lost``."""
    sampling = {"temperature": 0, "max_new_tokens": request.output_tokens, "ignore_eos": True}
    body = orjson.dumps({"input_ids": tokens, "sampling_params": sampling, "stream": True})
    got = 0
    try:
        async with asyncio.timeout(leaves_s):
            async with session.post(
                f"{url}/generate", data=body, headers={"Content-Type": "application/json"},
                timeout=aiohttp.ClientTimeout(total=None),
            ) as answer:  # fmt: skip
                async for line in answer.content:
                    if line.startswith(b"data: {"):
                        got = orjson.loads(line[6:]).get("meta_info", {}).get("completion_tokens", 0)
    except TimeoutError:
        return "left"
    except (aiohttp.ClientError, OSError, ValueError):
        return "lost"
    return "served" if got == request.output_tokens else "lost"


async def _page(session: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    """The status page's first rank; empty where nobody answers."""
    try:
        async with session.get(f"{url}/roofline", timeout=aiohttp.ClientTimeout(total=30)) as answer:
            page: dict[str, Any] = (await answer.json())["ranks"][0]
            return page
    except (aiohttp.ClientError, OSError, ValueError, KeyError, IndexError, TimeoutError):
        return {}
