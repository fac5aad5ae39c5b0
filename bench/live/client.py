"""The load generator: sends each request at its time, or when one before it ended, and records every token."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import Any

import aiohttp
import orjson

from bench.live.prompts import PromptBuilder
from bench.report.records import WHOLE, RequestRecord
from bench.traffic.request import Request

IGNORE_EOS = True
"""Answers have the length that the traffic asks for; one that is shorter was cut."""

READ_BUFFER_BYTES = 1 << 22
STOP_CHECK_S = 0.5
NAN = "NaN happened"
"""What SGLang says to have matched where it ended an answer because its logits were no numbers."""


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
    """Seconds. request_s: longest life of one request. drain_s: how long after the last arrival an open loop may go on.

    A closed loop ends by the first alone.
    """

    request_s: float = 600.0
    drain_s: float = 600.0


class Replay:
    """One traffic against one server.

    Open loop: no arrival waits for an answer, nothing bounds concurrency. Closed loop: ``concurrency`` requests are in
    flight, the next one is sent when one ends, and that is when it was scheduled.
    """

    def __init__(
        self,
        base_url: str,
        requests: Sequence[Request],
        prompts: PromptBuilder,
        limits: Limits | None = None,
        concurrency: int | None = None,
    ) -> None:
        """``base_url``: of a server on this machine, ``http://127.0.0.1:port``. ``requests``: in order of arrival.

        concurrency: of a closed loop; None: an open one.
        """
        self._url = base_url + "/generate"
        self._requests = requests
        self._limits = limits or Limits()
        self._concurrency = concurrency
        self._bodies = [_body(prompts.tokens(request, i), request) for i, request in enumerate(requests)]
        self._start = 0.0
        self._stopped: str | None = None
        self._tasks: list[asyncio.Task[list[RequestRecord]]] = []

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
            connector=connector, timeout=timeout, read_bufsize=READ_BUFFER_BYTES, trust_env=False
        ) as session:
            self._start = perf_counter()
            loop_offset = loop.time() - self._start
            if started:
                started(self._start)
            last_arrival_s = self._requests[-1].arrival_s if self._requests else 0.0
            deadline = self._start + last_arrival_s + self._limits.drain_s
            send = partial(self._one, session, done=done)
            try:
                if self._concurrency is None:
                    for index, request in enumerate(self._requests):
                        await self._sleep_until(request.arrival_s)
                        one = self._in_turn(partial(send, deadline=deadline + loop_offset), iter([index]))
                        self._tasks.append(asyncio.create_task(one))
                else:
                    left = iter(range(len(self._requests)))
                    for _ in range(min(self._concurrency, len(self._requests))):
                        slot = self._in_turn(partial(send, deadline=float("inf")), left)
                        self._tasks.append(asyncio.create_task(slot))
                records = [record for made in await asyncio.gather(*self._tasks) for record in made]
                return sorted(records, key=lambda record: record.index)
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

    @staticmethod
    async def _in_turn(send: Callable[..., Awaitable[RequestRecord]], indices: Iterator[int]) -> list[RequestRecord]:
        """One request after the other. Slots of a closed loop share ``indices``."""
        return [await send(index) for index in indices]

    async def _one(
        self,
        session: aiohttp.ClientSession,
        index: int,
        deadline: float,
        done: Callable[[RequestRecord], None] | None,
    ) -> RequestRecord:
        request, progress = self._requests[index], _Progress()
        scheduled_s = request.arrival_s if self._concurrency is None else perf_counter() - self._start
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
            scheduled_s=scheduled_s,
            sent_s=progress.sent_s,
            token_s=tuple(progress.token_s),
            end_s=perf_counter() - self._start,
            prompt_tokens=request.prompt_tokens if progress.prompt_tokens is None else progress.prompt_tokens,
            cached_tokens=progress.cached_tokens,
            output_tokens_asked=request.output_tokens,
            error=progress.error,
            zero_s=self._start,
            priority=request.priority,
            finish=progress.finish,
            ignore_eos=IGNORE_EOS,
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
            rest, now_s = b"", progress.sent_s
            async for read in response.content.iter_any():
                # What came in one read arrived together, however many events a server or a proxy made of it.
                now_s = perf_counter() - self._start
                *lines, rest = (rest + read).split(b"\n")
                if _take_lines(lines, now_s, progress):
                    return
            _take_lines([rest], now_s, progress)


def _take_lines(lines: Sequence[bytes], now_s: float, progress: _Progress) -> bool:
    """The events among these lines; whether the answer is over."""
    for line in lines:
        if not line.startswith(b"data:"):
            continue
        payload = line[5:].strip()
        if payload == b"[DONE]":
            return True
        _take(orjson.loads(payload), now_s, progress)
        if progress.error is not None:
            return True
    return False


def _body(tokens: list[int], request: Request) -> bytes:
    sampling: dict[str, object] = {
        "temperature": 0, "max_new_tokens": request.output_tokens, "ignore_eos": IGNORE_EOS,
    }  # fmt: skip
    if request.slo is not None:
        sampling["custom_params"] = {"slo": request.slo}
    body: dict[str, object] = {"input_ids": tokens, "sampling_params": sampling, "stream": True}
    return orjson.dumps(body if request.priority is None else {**body, "priority": request.priority})


def _take(event: dict[str, Any], now_s: float, progress: _Progress) -> None:
    """One server-sent event of /generate: new tokens get ``now_s``; an error or an abort is noted.

    How many tokens are new is what the server counts, not the text: a detokenizer holds some back.
    """
    if "error" in event:
        error, progress.finish = event["error"], "error"
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
        about = reason if isinstance(reason, dict) else {"type": reason}
        progress.finish = str(about.get("type"))
        if progress.finish not in WHOLE:
            how = "aborted" if progress.finish == "abort" else f"ended by {progress.finish!r}"
            progress.error = f"{how}: {about.get('message') or ''}"[:200]
        elif about.get("matched") == NAN:
            progress.error = "ended by logits that are no numbers"
