"""The acceptance process drawn one number at a time, in Python's integers: what runs of any batch must agree with."""

from __future__ import annotations

from collections.abc import Iterator
from math import exp

from roofline_policies.steps.acceptance import Acceptance

WORD = 2**64


def stream(key: int) -> Iterator[float]:
    """SplitMix64 as it is defined: a state that steps, and a mix of it."""
    state = key
    while True:
        state = (state + 0x9E3779B97F4A7C15) % WORD
        mixed = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % WORD
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) % WORD
        yield ((mixed ^ (mixed >> 31)) >> 11) / 2**53


def probability(acceptance: Acceptance, place: int, level: float) -> float:
    given = acceptance.per_position[min(place, len(acceptance.per_position) - 1)]
    if level == 0 or given in (0.0, 1.0):
        return given
    odds = given / (1 - given) * exp(level)
    return odds / (1 + odds)


def runs_of(acceptance: Acceptance, request: str, steps: int, output_tokens: int) -> list[int]:
    """Tokens that come at a time: one from the prompt, then one more than drafts were accepted, up to the end."""
    draws = stream(acceptance.key(request))
    uniform = [next(draws) for _ in range(output_tokens + steps + 1)]
    level, done, runs = acceptance.level(request), 1, [1]
    while done < output_tokens:
        run = 0
        while run < steps and uniform[done + run] < probability(acceptance, run, level):
            run += 1
        runs.append(min(run + 1, output_tokens - done))
        done += run + 1
    return runs
