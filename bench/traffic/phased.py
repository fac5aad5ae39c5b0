"""Synthetic traffic in phases, drawn from a seed: chat, a burst of long prompts, chat again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bench.traffic.classes import ClassShare, picked
from bench.traffic.request import Request

CLASSES = 1
"""Names the stream of a phase's classes beside that of its lengths and arrivals."""


@dataclass(frozen=True, slots=True)
class Phase:
    """One stretch of traffic: Poisson arrivals, log-normal lengths.

    duration_s: length of the stretch, seconds.
    rate_per_s: mean arrivals per second.
    prompt_median, output_median: median lengths in tokens.
    prompt_sigma, output_sigma: standard deviation of the logarithm of the length (0: all alike).
    classes: what its requests' priorities are drawn from; empty: they have none of the phase's.
    """

    name: str
    duration_s: float
    rate_per_s: float
    prompt_median: float
    prompt_sigma: float
    output_median: float
    output_sigma: float
    classes: tuple[ClassShare, ...] = ()


def draw_phased(phases: Sequence[Phase], seed: int) -> Iterator[Request]:
    """Requests of the phases one after the other, arrivals in seconds; equal seeds give equal traffic.

    Each phase draws from a stream of its own, so changing one leaves the draws of the others as they are; so do its
    classes, and changing them leaves its lengths and arrivals.
    """
    start_s = 0.0
    for place, phase in enumerate(phases):
        draw = np.random.default_rng((seed, place))
        draw_class = np.random.default_rng((seed, place, CLASSES))
        offset_s = 0.0
        while True:
            offset_s += float(draw.exponential(1.0 / phase.rate_per_s))
            if offset_s >= phase.duration_s:
                break
            prompt = phase.prompt_median * np.exp(phase.prompt_sigma * draw.standard_normal())
            output = phase.output_median * np.exp(phase.output_sigma * draw.standard_normal())
            priority = picked(phase.classes, float(draw_class.random()))
            yield Request(
                start_s + offset_s, max(1, round(prompt)), max(1, round(output)), phase=phase.name, priority=priority
            )
        start_s += phase.duration_s
