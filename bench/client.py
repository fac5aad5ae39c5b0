"""The load generator: sends each request at its time, whatever became of the others, and records every token."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import aiohttp
import orjson

from bench.prompts import PromptBuilder
from bench.records import RequestRecord
from bench.traffic.request import Request

LONGEST_LINE_BYTES = 1 << 22
STOP_CHECK_S = 0.5


@dataclass(slots=True)
class _Progress:
    """What has arrived of one answer so far."""

    sent_s: float | None = None
    token_s: list[float] = field(default_factory=list)
    prompt_tokens: int | None = None
    cached_tokens: int = 0
    finish: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds. request_s: longest life of one request. drain_s: how long after the last arrival the run may go on."""

    request_s: float = 600.0
    drain_s: float = 600.0


class Replay:
    """One traffic against one server, open loop: no arrival waits for an answer, nothing bounds concurrency."""

    def __init__(
        self, base_url: str, requests: Sequence[Request], prompts: PromptBuilder, limits: Limits | None = None
    ) -> None:
        """``base_url``: of a server on this machine, ``http://127.0.0.1:port``. ``requests``: in order of arrival."""
        self._url = base_url + "/generate"
        self._requests = requests
        self._limits = limits or Limits()
        self._bodies = [_body(prompts.tokens(request, i), request) for i, request in enumerate(requests)]
        self._start = 0.0
        self._stopped: str | None = None
        self._tasks: list[asyncio.Task[RequestRecord]] = []

    async def run(
        self, started: Callable[[float], None] | None = None, done: Callable[[RequestRecord], None] | None = None
    ) -> list[RequestRecord]:
        """Sends everything, waits for the answers, returns one record per request in order of arrival.

        ``started`` gets the run's zero on ``perf_counter`` (seconds); ``done`` each record as it is completed.
        A request still open at the deadline is recorded with an error. Cancelling the run cancels its
        requests. Runs once.
        """
        loop = asyncio.get_running_loop()
        # A connection per request: the server drops idle ones after seconds, and a reused one may be dropped mid-send.
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, read_bufsize=LONGEST_LINE_BYTES, trust_env=False
        ) as session:
            self._start = perf_counter()
            loop_offset = loop.time() - self._start
            if started:
                started(self._start)
            last_arrival_s = self._requests[-1].arrival_s if self._requests else 0.0
            deadline = self._start + last_arrival_s + self._limits.drain_s
            try:
                for index, request in enumerate(self._requests):
                    await self._sleep_until(request.arrival_s)
                    self._tasks.append(asyncio.create_task(self._one(session, index, deadline + loop_offset, done)))
                return list(await asyncio.gather(*self._tasks))
            finally:
                for task in self._tasks:
                    task.cancel()
                await asyncio.gather(*self._tasks, return_exceptions=True)

    def stop(self, reason: str) -> None:
        """Ends the run early: what is open or not yet sent is recorded with ``reason`` as its error."""
        self._stopped = reason
        for task in self._tasks:
            task.cancel()

    async def _sleep_until(self, moment_s: float) -> None:
        while self._stopped is None and (ahead_s := self._start + moment_s - perf_counter()) > 0:
            await asyncio.sleep(min(ahead_s, STOP_CHECK_S))

    async def _one(
        self,
        session: aiohttp.ClientSession,
        index: int,
        deadline: float,
        done: Callable[[RequestRecord], None] | None,
    ) -> RequestRecord:
        request, progress = self._requests[index], _Progress()
        until = min(deadline, asyncio.get_running_loop().time() + self._limits.request_s)
        try:
            if self._stopped is None:
                async with asyncio.timeout_at(until):
                    await self._stream(session, index, progress)
        except asyncio.CancelledError:
            if self._stopped is None:
                raise
        except TimeoutError:
            progress.error = "deadline" if until == deadline else f"no end within {self._limits.request_s:g} s"
        except (aiohttp.ClientError, OSError, ValueError) as error:
            progress.error = f"{type(error).__name__}: {error}"[:200]
        if progress.error is None and progress.finish is None:
            progress.error = self._stopped or "the answer broke off"
        record = RequestRecord(
            index=index,
            phase=request.phase,
            scheduled_s=request.arrival_s,
            sent_s=progress.sent_s,
            token_s=tuple(progress.token_s),
            end_s=perf_counter() - self._start,
            prompt_tokens=request.prompt_tokens if progress.prompt_tokens is None else progress.prompt_tokens,
            cached_tokens=progress.cached_tokens,
            output_tokens_asked=request.output_tokens,
            error=progress.error,
            zero_s=self._start,
            priority=request.priority,
        )
        if done:
            done(record)
        return record

    async def _stream(self, session: aiohttp.ClientSession, index: int, progress: _Progress) -> None:
        headers = {"Content-Type": "application/json"}
        progress.sent_s = perf_counter() - self._start
        async with session.post(self._url, data=self._bodies[index], headers=headers) as response:
            if response.status != 200:
                progress.error = f"HTTP {response.status}: {(await response.text())[:160]}"
                return
            async for line in response.content:
                if not line.startswith(b"data:"):
                    continue
                payload = line[5:].strip()
                if payload == b"[DONE]":
                    return
                _take(orjson.loads(payload), perf_counter() - self._start, progress)
                if progress.error is not None:
                    return


def _body(tokens: list[int], request: Request) -> bytes:
    sampling = {"temperature": 0, "max_new_tokens": request.output_tokens, "ignore_eos": True}
    body: dict[str, object] = {"input_ids": tokens, "sampling_params": sampling, "stream": True}
    return orjson.dumps(body if request.priority is None else {**body, "priority": request.priority})


def _take(event: dict[str, Any], now_s: float, progress: _Progress) -> None:
    """One server-sent event of /generate: new tokens get ``now_s``; an error or an abort is noted."""
    if "error" in event:
        error = event["error"]
        progress.error = str(error.get("message", error) if isinstance(error, dict) else error)[:200]
        return
    meta = event.get("meta_info")
    if not isinstance(meta, dict) or not isinstance(meta.get("completion_tokens"), int):
        progress.error = f"not an answer of /generate: {str(event)[:120]}"
        return
    progress.prompt_tokens = meta.get("prompt_tokens", progress.prompt_tokens)
    progress.cached_tokens = meta.get("cached_tokens") or 0
    fresh = meta["completion_tokens"] - len(progress.token_s)
    progress.token_s.extend([now_s] * fresh)
    reason = meta.get("finish_reason")
    if reason:
        progress.finish = reason["type"] if isinstance(reason, dict) else str(reason)
        if progress.finish == "abort":
            progress.error = f"aborted: {reason.get('message', '') if isinstance(reason, dict) else ''}"[:200]
