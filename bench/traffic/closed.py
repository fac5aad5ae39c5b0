"""Closed-loop traffic: so many requests in flight, and a new one is sent when one ends.

As the serving benchmarks of SGLang and vLLM have it with a largest concurrency and an infinite request rate: requests
that only warm the server up go first and are left out of every figure, then all slots are filled at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.checks import count, number
from bench.traffic.request import Request

STREAM = 0xC105ED
"""Names the stream of lengths: with a seed before it, no other stream of a traffic is drawn from the same."""

KEYS = ("concurrency", "prompt_tokens", "output_tokens", "range_ratio", "prompts_per_slot", "warmup_per_slot")


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """concurrency: requests in flight. warmup: sent in the same manner, and ended before the first that counts."""

    concurrency: int
    warmup: tuple[Request, ...] = ()


def read_closed(conf: Mapping[str, Any], seed: int) -> tuple[list[Request], ClosedLoop]:
    """The requests that count, in the order in which they are sent, and the loop that sends them.

    Lengths are whole numbers, uniform from ``range_ratio`` x L to L; equal seeds give equal lengths, and more prompts
    per slot leave those before them as they are.

    Source: ``--random-range-ratio`` of SGLang's serving benchmark.

    Raises:
        InputError: a value that is missing, no number, or out of range.
    """
    concurrency = count(conf, "concurrency", "traffic")
    ratio = number(conf, "range_ratio", "traffic", default=1.0, above=0.0, high=1.0)
    longest = [count(conf, key, "traffic") for key in ("prompt_tokens", "output_tokens")]
    counted = count(conf, "prompts_per_slot", "traffic") * concurrency
    first = count(conf, "warmup_per_slot", "traffic", default=0, low=0) * concurrency
    shortest = [max(1, int(length * ratio)) for length in longest]
    made = []
    for place, total in enumerate((counted, first)):
        draw = np.random.default_rng((seed, STREAM, place))
        lengths = draw.integers(shortest, longest, (total, 2), endpoint=True).tolist()
        made.append([Request(0.0, prompt, output) for prompt, output in lengths])
    requests, warmup = made
    return requests, ClosedLoop(concurrency, tuple(warmup))
