"""Rounds of a storm on the virtual clock, drawn at random: every kind of server that a policy may meet."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from random import Random

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench.storm.round import Result, Round
from bench.virtual.processes import Crash, run_each

LEAST_ITERATIONS = 50
"""Of a round, so that rounds enough are drawn. With 600 requests they have some 4,500 (docs/measured/storms.md); rounds
that are not needed are not run."""

CHUNKS = (64, 128, 256, 1000, 2048)
"""From one page to more than most prompts have; 1000 is no multiple of any page but 1."""

PAGES = (1, 1, 16, 64)
"""SGLang's default twice, as the commonest; a small page; and that of its FlashMLA backend."""

OWN_ORDERS = ("lpm", "dfs-weight", "lof", "random", "hrrn", "shortest-prefill-first")
SWITCHES = (
    "--enable-mixed-chunk", "--disable-radix-cache", "--disable-overlap-schedule", "--enable-priority-scheduling",
)  # fmt: skip


def draw_round(seed: int, requests: int, policy: str | None = None) -> Round:
    """A server and its load; equal arguments give equal rounds.

    The shares are judgements: rare enough for most servers to be mostly as SGLang comes, common enough for two unusual
    settings to meet in one of twenty rounds. Half of the servers are pressed for memory: 4,096 tokens hold two of the
    longest requests, and SGLang is told to expect short answers, so that it retracts.
    """
    draw = Random(f"round {seed}")
    page = draw.choice(PAGES)
    arguments = ["--chunked-prefill-size", str(max(page, draw.choice(CHUNKS) // page * page)), "--page-size", str(page)]
    arguments += [switch for switch in SWITCHES if draw.random() < 0.25]
    if draw.random() < 0.3 and "--enable-priority-scheduling" not in arguments:
        orders = [
            one for one in OWN_ORDERS if one != "shortest-prefill-first" or "--disable-radix-cache" not in arguments
        ]
        arguments += ["--schedule-policy", draw.choice(orders)]
    if draw.random() < 0.3:
        arguments += ["--max-running-requests", str(draw.randint(1, 12))]
    if draw.random() < 0.2:
        arguments += ["--prefill-max-requests", str(draw.randint(1, 6))]
    pressed = draw.random() < 0.5
    if pressed:
        arguments += ["--schedule-conservativeness", "0.1"]
    return Round(
        seed,
        requests,
        tuple(arguments),
        kv_tokens=4096 if pressed else 65_536,
        most_prompt_tokens=1500 if pressed else 6000,
        most_output_tokens=400 if pressed else 128,
        interarrival_s=0.02 if pressed else draw.choice((0.02, 0.1, 0.3)),
        leaving=draw.choice((0.0, 0.05, 0.3)),
        policy=policy,
    )


def run(
    *,
    iterations: int,
    seconds: float,
    requests: int,
    seed: int,
    processes: int,
    policy: str | None,
    retract_every: int | None,
) -> list[tuple[str, Result]]:
    """Rounds on the virtual clock, until so many iterations are done or so many seconds of this machine have passed.

    Each round's server, and what became of its requests, as rounds end. A round that dies is one of them.
    """
    os.environ.update(retracting(retract_every))  # the processes' own: SGLang reads it when it is imported
    begin_s, done, results = time.monotonic(), 0, list[tuple[str, Result]]()
    drawn = [draw_round(seed + place, requests, policy) for place in range(max(1, iterations // LEAST_ITERATIONS))]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("iterations", total=iterations)
        for index, outcome in run_each(serve_in_child, [(one,) for one in drawn], processes, lambda *_: None):
            one = drawn[index]
            name = " ".join([f"seed {one.seed}", *one.server_args, f"({one.kv_tokens} tokens of KV)"])
            if isinstance(outcome, Crash):
                outcome = Result(
                    one.requests, 0, 0, one.requests, 0, 0, 0, 0.0, " | ".join([outcome.problem, *outcome.tail[-2:]])
                )
            results.append((name, outcome))
            done += outcome.iterations
            lost = sum(result.lost for _, result in results)
            progress.update(bar, completed=min(done, iterations), description=f"{len(results)} servers, {lost} lost")
            if done >= iterations or time.monotonic() - begin_s > seconds:
                break
    return results


def retracting(every: int | None) -> dict[str, str]:
    """The environment in which SGLang retracts in every so many-th step, as its own tests have it do; None: none."""
    return {} if every is None else {"SGLANG_TEST_RETRACT": "true", "SGLANG_TEST_RETRACT_INTERVAL": str(every)}


def serve_in_child(one: Round, told: Callable[[int, float], None]) -> Result:
    """What a process does for one round."""
    from bench.storm.virtual import serve  # here: it imports SGLang, which the process that asks for this need not do

    return serve(one, told)
