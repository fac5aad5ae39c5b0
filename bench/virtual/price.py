"""What the virtual clock charges for a step, over what is predicted of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bench.checks import number, only
from roofline_policies.errors import InputError
from roofline_policies.model.batch import BatchShape
from roofline_policies.steps.times import StepTimes

KEYS = ("bias", "bias_per_request", "slower", "slower_from_s", "noise", "pause_share", "pause_factor")


@dataclass(frozen=True, slots=True)
class Price:
    """How a step's time differs from its prediction::

        charged = predicted * (bias + bias_per_request * requests) * slower * drawn

    bias, bias_per_request: a predictor that errs, by as much for every request of the step, prompts among them.
    slower: of steps that start ``slower_from_s`` seconds after the traffic began, or later; None: of none. A device
        whose clocks drop by 30% takes 1 / 0.7 of its time.
    noise: standard deviation of ``drawn``, a factor of each step's own, whose mean is 1; it is never below 0.1.
    pause_share, pause_factor: this share of the steps, drawn at random, takes so many times as long besides, as where
        the host does something else between steps.
    """

    bias: float = 1.0
    bias_per_request: float = 0.0
    slower: float = 1.0
    slower_from_s: float | None = None
    noise: float = 0.0
    pause_share: float = 0.0
    pause_factor: float = 1.0

    @classmethod
    def from_config(cls, price: Mapping[str, Any]) -> Price:
        """From the section ``price``.

        Raises:
            InputError: a key or a value that cannot be used.
        """
        only(price, "price", KEYS)
        slower, from_s = number(price, "slower", "price", above=0.0), price.get("slower_from_s")
        if from_s is not None:
            from_s = number(price, "slower_from_s", "price", low=0.0)
        elif slower != 1.0:
            allowed = "1, or with it price.slower_from_s, the second from which on it holds"
            raise InputError("holds at no time", where="price", key="slower", value=slower, allowed=allowed)
        return cls(
            bias=number(price, "bias", "price", above=0.0),
            bias_per_request=number(price, "bias_per_request", "price", low=0.0),
            slower=slower,
            slower_from_s=from_s,
            noise=number(price, "noise", "price", low=0.0),
            pause_share=number(price, "pause_share", "price", low=0.0, high=1.0),
            pause_factor=number(price, "pause_factor", "price", low=1.0),
        )

    def without_chance(self) -> Price:
        """What can be known of it before a step has run: all but noise and pauses."""
        return replace(self, noise=0.0, pause_share=0.0)


class PricedSteps:
    """Step times at a price. Equal seeds give equal sequences of what is drawn.

    starts_s: seconds after the traffic began at which a step that is asked for now would start.
    """

    LEAST = 0.1
    _DRAWN = 4096

    def __init__(self, steps: StepTimes, price: Price, seed: int, starts_s: Callable[[], float]) -> None:
        self._steps = steps
        self._price = price
        self._starts_s = starts_s
        self._random = np.random.default_rng(seed)
        self._pausing = np.random.default_rng((seed, 1))  # of its own: noise is the same with pauses and without
        self._factors: list[float] = []

    def step_s(self, *, prefill: BatchShape, decode: BatchShape, graph: bool) -> float:
        price = self._price
        factor = price.bias + price.bias_per_request * (prefill.requests + decode.requests)
        if price.slower_from_s is not None and self._starts_s() >= price.slower_from_s:
            factor *= price.slower
        return self._steps.step_s(prefill=prefill, decode=decode, graph=graph) * factor * self._drawn()

    def _drawn(self) -> float:
        if not self._factors:
            price = self._price
            drawn = np.maximum(self.LEAST, 1.0 + price.noise * self._random.standard_normal(self._DRAWN))
            if price.pause_share:
                drawn *= np.where(self._pausing.random(self._DRAWN) < price.pause_share, price.pause_factor, 1.0)
            self._factors = drawn.tolist()
        return self._factors.pop()
