"""Runs the arms of an experiment one after the other, each on a fresh server: start, warm up, replay, stop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench.live.client import Limits, Replay
from bench.live.prompts import PromptBuilder
from bench.live.sampler import Sampler
from bench.live.server import Server, ServerDied
from bench.live.settings import Arm, LiveSettings
from bench.report.records import ArmRun, RequestRecord, write_run
from bench.traffic import Request

DEATH_CHECK_S = 0.5
WARMUP_OUTPUT_TOKENS = 8
WARMUP_LIMITS = Limits(300.0, 300.0)


def run_all(settings: LiveSettings) -> list[ArmRun]:
    """Every arm in every repeat, each on a fresh server; a server that dies gives a run marked as crashed."""
    prompts = PromptBuilder(settings.seed, settings.vocab_size)
    runs = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        for repeat, arm in settings.schedule():
            task = progress.add_task(f"{arm.name} #{repeat + 1}: loading", total=None)
            run = run_arm(
                settings,
                arm,
                repeat,
                prompts,
                lambda text, task=task, **kw: progress.update(task, description=text, **kw),
            )
            write_run(run, settings.out_dir)
            runs.append(run)
            if run.crash:
                progress.update(task, description=f"{arm.name} #{repeat + 1}: crashed")
                progress.console.print(
                    "\n".join([f"{arm.name}: {run.crash}", *run.log_tail]), markup=False, soft_wrap=True
                )
    return runs


def run_arm(
    settings: LiveSettings,
    arm: Arm,
    repeat: int,
    prompts: PromptBuilder,
    tell: Callable[..., None],
) -> ArmRun:
    """One run on a server of its own: start, warm up, replay, stop."""
    label = f"{arm.name} #{repeat + 1}"
    server = Server(
        [*settings.server_args, *arm.server_args],
        settings.out_dir / f"{arm.name}.{repeat}.log",
        start_timeout_s=settings.start_timeout_s,
        env=settings.server_env,
        waiting=lambda seconds: tell(f"{label}: loading {seconds:.0f} s"),
    )
    try:
        with server:
            return asyncio.run(_replay(settings, arm, repeat, prompts, server, tell))
    except ServerDied as death:
        return ArmRun(arm.name, repeat, (), (), death.problem, death.log_tail)


async def _replay(
    settings: LiveSettings, arm: Arm, repeat: int, prompts: PromptBuilder, server: Server, tell: Callable[..., None]
) -> ArmRun:
    label, total = f"{arm.name} #{repeat + 1}", len(settings.requests)
    await _warm_up(settings, server, tell, label)
    concurrency = None if settings.closed is None else settings.closed.concurrency
    replay = Replay(server.base_url, settings.requests, prompts, settings.limits, concurrency)
    background: list[asyncio.Task[None]] = []
    samplers: list[Sampler] = []
    finished = 0

    def started(start: float) -> None:
        samplers.append(Sampler(server.base_url, start))
        background.append(asyncio.create_task(samplers[0].run()))
        background.append(asyncio.create_task(_watch(server, replay)))

    def done(record: RequestRecord) -> None:
        nonlocal finished
        finished += 1
        tell(f"{label} on {server.base_url}", completed=finished, total=total)

    tell(f"{label} on {server.base_url}", completed=0, total=total)
    try:
        records = await replay.run(started, done)
    finally:
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
    crash = server.death()
    tail = tuple(server.log_tail()) if crash else ()
    return ArmRun(arm.name, repeat, tuple(records), tuple(samplers[0].samples), crash, tail)


async def _warm_up(settings: LiveSettings, server: Server, tell: Callable[..., None], label: str) -> None:
    """Requests that nothing is recorded of, then an empty prefix cache.

    Those that closed-loop traffic warms up with, in its manner; else a few of the traffic's prompts, and short answers.
    """
    limits, concurrency = WARMUP_LIMITS, None
    if settings.closed is not None:
        warm: Sequence[Request] = settings.closed.warmup
        limits, concurrency = settings.limits, settings.closed.concurrency
    else:
        step = max(1, len(settings.requests) // max(1, settings.warmup_requests))
        chosen = settings.requests[::step][: settings.warmup_requests]
        warm = [Request(0.0, one.prompt_tokens, min(one.output_tokens, WARMUP_OUTPUT_TOKENS)) for one in chosen]
    if not warm:
        return
    tell(f"{label}: warming up")
    prompts = PromptBuilder(settings.seed + 1, settings.vocab_size)
    await Replay(server.base_url, warm, prompts, limits, concurrency).run()
    if death := server.death():
        raise ServerDied(f"{death} during warm-up", server.log_tail())
    await asyncio.to_thread(server.post, "/flush_cache")


async def _watch(server: Server, replay: Replay) -> None:
    while True:
        await asyncio.sleep(DEATH_CHECK_S)
        if death := server.death():
            replay.stop(death)
            return
