"""Mixed load for every way of admitting a prompt: long and short ones, shared prefixes, clients that leave."""

from __future__ import annotations

from math import exp, log
from random import Random

from bench.traffic.request import Request

URGENT = 10
"""Priority of the class whose first tokens are due soon. It only has to differ from that of requests without one."""

PREFIX_TOKENS = (16, 60, 96, 400)
"""Lengths of prefixes: within a page of 64, near one, beyond one, many pages and longer than most chunks. 60 is that of
the burst that ended a server (tests/sglang_patches/served/test_storm.py)."""

BURST = (2, 14)
"""Fewest and most short prompts of a burst: up to two more than in the burst that ended a server."""

OWN_TOKENS = (1, 1, 5, 40)
"""Tokens of a short prompt of a burst behind its prefix: one is a prompt that is all but cached, and fits into the
rest of any step."""

SHARE_OF_BURSTS, SHARE_OF_FOLLOWERS, SHARE_OF_URGENT = 0.25, 0.25, 0.4
"""Of the arrivals, and of the requests. Judgements: every kind is common enough for a few hundred requests to hold each
kind next to each other, and urgent ones are a minority, so that there is somebody to overtake."""


def storm_load(
    seed: int, count: int, *, most_prompt_tokens: int, most_output_tokens: int, interarrival_s: float
) -> list[Request]:
    """``count`` requests in order of arrival; equal arguments give equal requests.

    Lengths are log-uniform. A quarter of the arrivals are bursts: several short prompts with a prefix in common that
    nobody had before, and a long one behind them, all in the same instant. Others follow with a prefix that was there
    before. interarrival_s: mean seconds between arrivals.
    """
    draw, at_s, known, requests = Random(f"{seed}"), 0.0, list[tuple[int, int]](), list[Request]()

    def ask(own_tokens: int, block: tuple[int, int] | None = None) -> None:
        shared = 0 if block is None else block[1]
        requests.append(
            Request(
                at_s,
                min(most_prompt_tokens, shared + own_tokens),
                _length(draw, most_output_tokens),
                prefix_blocks=() if block is None else (block[0],),
                block_tokens=max(1, shared),
                priority=URGENT if draw.random() < SHARE_OF_URGENT else None,
            )
        )

    while len(requests) < count:
        at_s += draw.expovariate(1 / interarrival_s)
        kind = draw.random()
        if kind < SHARE_OF_BURSTS:
            block = (len(known), draw.choice(PREFIX_TOKENS))
            known.append(block)
            for _ in range(draw.randint(*BURST)):
                ask(draw.choice(OWN_TOKENS), block)
            ask(_length(draw, most_prompt_tokens))
        elif kind < SHARE_OF_BURSTS + SHARE_OF_FOLLOWERS and known:
            ask(_length(draw, most_prompt_tokens), draw.choice(known))
        else:
            ask(_length(draw, most_prompt_tokens))
    return requests[:count]


def leaves_after_s(seed: int, index: int, share: float, most_s: float) -> float | None:
    """When a request's client goes away, in seconds after it came; None for one that stays."""
    draw = Random(f"{seed} {index}")
    return draw.uniform(0.0, most_s) if draw.random() < share else None


def _length(draw: Random, most: int) -> int:
    return round(exp(draw.uniform(0.0, log(most))))
