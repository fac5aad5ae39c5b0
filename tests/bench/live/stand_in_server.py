"""StandInServer: NOT SGLang. It streams made-up tokens in the shape of SGLang's endpoints, to test the client with.

As a program it takes (and ignores) server arguments, so that it can be started in SGLang's place.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time
from types import TracebackType
from typing import Any, Self

from aiohttp import web

FINISHES = {
    5: {"type": "abort", "message": "made to abort"},
    12: {"type": "stop", "matched": "NaN happened"},
    13: {"type": "moderation", "message": "made up"},
}
"""By fault, the reason to finish that comes with the second token."""


class StandInServer:
    """Streams ``tokens_per_chunk`` tokens every ``step_s`` seconds after ``first_s`` seconds.

    events_per_write: so many events leave in one write, as a proxy that buffers sends them.
    The prompt's first token chooses a fault: 3 breaks the stream off, 4 sends an error event, 5 aborts, 6 answers
    HTTP 500, 7 never answers, 8 sends an event of an unknown shape, 9 sends what is no JSON, 10 finishes without a
    token, 11 finishes at half the length, 12 stops for logits that are no numbers, 13 gives a reason of its own.
    """

    def __init__(
        self,
        first_s: float = 0.01,
        step_s: float = 0.005,
        tokens_per_chunk: int = 1,
        policy: bool = False,
        faults: bool = True,
        events_per_write: int = 1,
    ) -> None:
        self.events_per_write = events_per_write
        self.first_s, self.step_s, self.tokens_per_chunk, self.policy = first_s, step_s, tokens_per_chunk, policy
        self.faults = faults
        self.bodies: list[dict[str, Any]] = []
        self.born = time.monotonic()
        self.running = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._ready = threading.Event()
        self.port = 0

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_get("/health_generate", self._ok)
        app.router.add_post("/flush_cache", self._ok)
        app.router.add_post("/generate", self._generate)
        app.router.add_get("/v1/loads", self._loads)
        app.router.add_get("/metrics", self._metrics)
        if self.policy:
            app.router.add_get("/roofline", self._roofline)
        return app

    async def serve(self, port: int = 0) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        runner = web.AppRunner(self.app(), shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        self.port = runner.addresses[0][1]
        self._ready.set()
        await self._stop.wait()
        await runner.cleanup()

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=lambda: asyncio.run(self.serve()), daemon=True)
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._loop is not None
        assert self._stop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    async def _ok(self, request: web.Request) -> web.Response:
        return web.Response()

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        wanted, fault = body["sampling_params"]["max_new_tokens"], body["input_ids"][0] if self.faults else 0
        if fault == 6:
            return web.json_response({"error": "made to fail"}, status=500)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        self.running += 1
        try:
            await self._stream(response, body, wanted, fault)
        finally:
            self.running -= 1
        return response

    async def _stream(self, response: web.StreamResponse, body: dict[str, Any], wanted: int, fault: int) -> None:
        await asyncio.sleep(3600 if fault == 7 else self.first_s)
        if fault == 4:
            await self._send(response, {"error": {"message": "made to fail", "code": 400}})
        elif fault == 8:
            await self._send(response, {"surprise": 1})
        elif fault == 9:
            await response.write(b"data: {oops\n\n")
        else:
            done, events = 0, []
            last = {10: 0, 11: wanted // 2}.get(fault, wanted)
            while True:
                done = min(last, done + self.tokens_per_chunk)
                reason: dict[str, Any] | None = {"type": "length", "length": wanted} if done == last else None
                if fault in FINISHES and done >= 2:
                    reason = FINISHES[fault]
                meta = {
                    "prompt_tokens": len(body["input_ids"]),
                    "completion_tokens": done,
                    "cached_tokens": len(body["input_ids"]) // 4,
                    "finish_reason": reason,
                }
                events.append({"text": "a " * done, "output_ids": [1] * done, "meta_info": meta})
                if len(events) == self.events_per_write or reason:
                    await self._send(response, *events)
                    events = []
                if reason or (fault == 3 and done >= 2):
                    break
                await asyncio.sleep(self.step_s)
            if fault == 3:
                return
        await response.write(b"data: [DONE]\n\n")

    async def _send(self, response: web.StreamResponse, *events: dict[str, Any]) -> None:
        await response.write(b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events))

    async def _loads(self, request: web.Request) -> web.Response:
        load = {"num_running_reqs": self.running, "num_waiting_reqs": 1, "token_usage": 0.25}
        return web.json_response({"loads": [load]})

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(text='sglang:num_retracted_requests_total{tp_rank="0"} 3.0\nsglang:other{} 1.0\n')

    async def _roofline(self, request: web.Request) -> web.Response:
        return web.json_response({"ranks": [rank_page(time.monotonic() - self.born)]})


def rank_page(uptime_s: float) -> dict[str, Any]:
    """One rank of GET /roofline, made up: one change at 0.5 s with a reason that needs escaping."""
    point = {"bound": "memory", "seconds": 1.0, "iterations": 10, "age_s": 0.25}
    last = {
        "prefill": {"flops_per_s": 1e11, "bytes_per_s": 1e9, "intensity_flops_per_byte": 100.0, **point},
        "decode": {"flops_per_s": 2e10, "bytes_per_s": 1e10, "intensity_flops_per_byte": 2.0, **point},
        "mixed": None,
    }
    return {
        "device": "stand-in",
        "policy": {"name": "adaptive", "state": "active", "fallback_reason": None},
        "ceilings": {"flops_per_s": {"bf16": 2e11}, "bytes_per_s": 2e10, "source": "made up"},
        "ridge_flops_per_byte": {"bf16": 10.0},
        "precision": "bf16",
        "iterations": 100,
        **last,
        "last": last,
        "knobs": {
            "max_running_requests": 16,
            "prefill_chunk_tokens": 256,
            "defer_prefill": False,
            "mixed_chunk": False,
        },
        "bounds": {"max_running_requests": [1, 64]},
        "changes": [
            {
                "t_s": 0.5,
                "iteration": 7,
                "knob": "prefill_chunk_tokens",
                "old": 512,
                "new": 256,
                "reason": "predicted ITL 41 ms > 30 ms <at batch 12>",
                "policy": "PrefillDeferral",
            }
        ],
        "changes_total": {"prefill_chunk_tokens": 1 if uptime_s > 0.5 else 0},
        "running": 1,
        "waiting": 1,
        "kv_use": 0.25,
        "retractions": 0,
        "cache_hit_rate": None,
        "policy_time_s": {"p50": 2e-5, "p99": 9e-5, "iterations": 100},
        "uptime_s": uptime_s,
    }


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if "--die-at-once" in arguments:
        print("loading weights")
        sys.exit("made to die")
    stand_in = StandInServer(policy="--policy" in arguments, faults=False)
    if "--die-after" in arguments:
        delay_s = float(arguments[arguments.index("--die-after") + 1])
        threading.Timer(delay_s, lambda: (print("made to crash", flush=True), os._exit(9))).start()
    asyncio.run(stand_in.serve(int(arguments[arguments.index("--port") + 1])))
