"""Synthetic traffic in phases, drawn from a seed: chat, a burst of long prompts, chat again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.checks import number, only, section, text
from bench.traffic.classes import ClassShare, picked, read_classes
from bench.traffic.request import Request
from roofline_policies.errors import InputError

CLASSES = 1
"""Names the stream of a phase's classes beside that of its lengths and arrivals."""

KEYS = ("phases",)
PHASE_KEYS = (
    "name", "duration_s", "rate_per_s", "prompt_median", "prompt_sigma", "output_median", "output_sigma",
    "classes",
)  # fmt: skip


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


def read_phased(conf: Mapping[str, Any], seed: int) -> Iterator[Request]:
    """The traffic of ``phases``; see conf/bench/traffic/phased.yaml.

    Raises:
        InputError: a value that cannot be used; names the phase.
    """
    phases = conf.get("phases")
    if not isinstance(phases, list) or not phases:
        raise InputError(
            "is not a list of phases", where="traffic", key="phases", value=phases, allowed="at least one phase"
        )
    read = []
    for place, one in enumerate(phases):
        where = f"traffic.phases[{place}]"
        fields = section(one, where)
        only(fields, where, PHASE_KEYS)
        read.append(
            Phase(
                name=text(fields, "name", where),
                duration_s=number(fields, "duration_s", where, above=0.0),
                rate_per_s=number(fields, "rate_per_s", where, above=0.0),
                prompt_median=number(fields, "prompt_median", where, low=1.0),
                prompt_sigma=number(fields, "prompt_sigma", where, default=0.0, low=0.0),
                output_median=number(fields, "output_median", where, low=1.0),
                output_sigma=number(fields, "output_sigma", where, default=0.0, low=0.0),
                classes=read_classes(fields.get("classes"), where),
            )
        )
    return draw_phased(read, seed)
