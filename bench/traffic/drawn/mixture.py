"""Synthetic traffic of requests of several shapes at the same time: short and long ones, giants among small ones."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np

from bench.checks import number, only, section, text
from bench.traffic.classes import ClassShare, picked, read_classes
from bench.traffic.drawn.lengths import LogNormal, arrivals_s, read_tokens
from bench.traffic.request import Request
from roofline_policies.errors import InputError

STREAM, CLASSES = 0x317, 0x318
"""Name the streams of a shape and of its classes: last in a seed, since a seed's trailing zeros say nothing."""

KEYS = ("duration_s", "shapes")
SHAPE_KEYS = ("name", "rate_per_s", "prompt", "output", "classes")


@dataclass(frozen=True, slots=True)
class Shape:
    """Requests of one shape: Poisson arrivals, log-normal lengths in tokens.

    rate_per_s: mean arrivals per second; those of all shapes add up. classes: what its requests' priorities are drawn
    from; empty: they have none of the shape's.
    """

    name: str
    rate_per_s: float
    prompt: LogNormal
    output: LogNormal
    classes: tuple[ClassShare, ...] = ()


def draw_mixture(shapes: Sequence[Shape], duration_s: float, seed: int) -> Iterator[Request]:
    """Requests of all shapes in order of arrival, in [0, duration_s); equal seeds give equal traffic.

    Each shape draws from streams of its own: changing one, or the duration, leaves the draws of the others as they are.
    A request's phase is the name of its shape.
    """
    return heapq.merge(
        *(_of_shape(shape, place, duration_s, seed) for place, shape in enumerate(shapes)), key=attrgetter("arrival_s")
    )


def _of_shape(shape: Shape, place: int, duration_s: float, seed: int) -> Iterator[Request]:
    lengths = np.random.default_rng((seed, place, 0, STREAM))
    classes = np.random.default_rng((seed, place, 0, CLASSES))
    for arrival_s in arrivals_s(shape.rate_per_s, duration_s, np.random.default_rng((seed, place, 1, STREAM))):
        prompt, output = shape.prompt.tokens(lengths), shape.output.tokens(lengths)
        priority = picked(shape.classes, float(classes.random()))
        yield Request(arrival_s, prompt, output, phase=shape.name, priority=priority)


def read_mixture(conf: Mapping[str, Any], seed: int) -> Iterator[Request]:
    """The traffic of ``duration_s`` and ``shapes``; see conf/bench/traffic/mixture.yaml.

    Raises:
        InputError: a value that cannot be used; names the shape.
    """
    given = conf.get("shapes")
    if not isinstance(given, list) or not given:
        raise InputError(
            "is not a list of shapes", where="traffic", key="shapes", value=given, allowed="at least one shape"
        )
    shapes = []
    for place, one in enumerate(given):
        where = f"traffic.shapes[{place}]"
        fields = section(one, where)
        only(fields, where, SHAPE_KEYS)
        shapes.append(
            Shape(
                name=text(fields, "name", where),
                rate_per_s=number(fields, "rate_per_s", where, above=0.0),
                prompt=read_tokens(fields, "prompt", where),
                output=read_tokens(fields, "output", where),
                classes=read_classes(fields.get("classes"), where),
            )
        )
    return draw_mixture(shapes, number(conf, "duration_s", "traffic", above=0.0), seed)
