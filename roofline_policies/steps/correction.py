"""What a predictor of step times gets wrong, as it is used: seconds and margin of a step that has not run.

``StepCorrection`` learns the least of it, a scale and a constant; ``learned`` learns more where there is more.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from math import sqrt
from typing import NamedTuple

from roofline_policies.model.batch import BatchShape
from roofline_policies.steps.times import StepTimes

EMPTY = BatchShape()

Z = 2.5
"""Standard deviations of the margin. The residuals are what the margin is made of, because a fixed one is too small for
a noisy device and too large for a quiet one."""

STEPS_PER_LATE_ONE = 160.0
"""One step in so many exceeds its margin, where errors are normal: 1 / (1 - Phi(Z)) is 161."""

PRIOR_SPREAD = 0.1
"""Relative standard deviation of a predictor of which nothing is known yet. Held-out kernels of the H200 were off by
7 to 8% at the median (``python -m bench.fit.efficiency``), and a step has more than kernels."""

LEAST_SPREAD = 0.02
"""Of the most regular device: what runs is never quite what was planned. Prompts are cut or found cached, and whose
answer has ended is known a step late, which a residual, of what did run, does not show."""

MEMORY = 64.0
"""Recent steps of a kind that carry about two thirds of the weight: a second or two of serving. A judgement: fewer
follow a shift sooner, more average noise out."""

FARTHEST = 3.0
"""A step that took this many times as long as expected, or as little, says that something else happened; it counts as
one at this distance, so that a pause does not undo what was learned and a real shift is still followed. So does the
first one, which may have compiled a kernel: an average of ratios comes down far more slowly than it goes up."""

LEAST_S, MOST_S = 1e-9, 1e9
"""What a step can take: sums of squares of anything beyond would not be numbers any more."""

FLATNESS = 0.02
"""Weight of the belief that there is no constant time: relative variance that is added to that of 1 / predicted. While
all steps are of one size, nothing tells a constant from a factor, and this gives all of it to the factor. Steps whose
sizes differ by more than about 14%, its square root, decide for themselves. A judgement."""


_STARTS = (2, 8, 32, 129, 257, 385, 513, 769, 1025, 2049, 4097, 8193)
"""Fewest rows of each region of batch size but the first, a row alone. A step's error changes where what binds it
changes, which is a matter of factors, and with the tiles of 128 rows that products compute: one row more than 384 costs
a whole tile, a third of the time; one more than 8,192 next to nothing."""

REGIONS = len(_STARTS) + 1


class Line(NamedTuple):
    """Seconds of a step of one kind, and their relative standard deviation::

        scale * predicted + add_s + sum of each_s * sums

    each_s: seconds for one of each of the kind's sums (``sums_of``); empty: none. spreads: standard deviation by region
    of rows; empty: ``spread`` everywhere. start: scale and constant of another answer, and by region of rows the
    factor by which this one may be below it at most; None: it stands alone. factors: by the value of the sum at
    ``group``, what the whole is multiplied by; None, and others: 1.
    """

    scale: float = 1.0
    add_s: float = 0.0
    spread: float = PRIOR_SPREAD
    each_s: tuple[float, ...] = ()
    spreads: tuple[float, ...] = ()
    start: tuple[float, float, tuple[float, ...]] | None = None
    group: int = 0
    factors: Mapping[int, float] | None = None

    def seconds(self, predicted_s: float, sums: Sequence[int] = (), rows: int = 0) -> float:
        """Of a step with these sums, in the order of ``sums_of``; those beyond ``each_s`` cost nothing of their own.
        rows: of the batch; 0: of any size."""
        seconds = self.scale * predicted_s + self.add_s
        for each_s, amount in zip(self.each_s, sums, strict=False):
            seconds += each_s * amount
        if self.factors and sums:
            seconds *= self.factors.get(sums[self.group], 1.0)
        if self.start is not None and rows:
            scale, add_s, mosts = self.start
            start_s, most = scale * predicted_s + add_s, mosts[region(rows)]
            seconds = max(seconds, start_s / most)
        return seconds

    def margin(self, rows: int = 0) -> float:
        """Factor above 1 by which a step hardly ever takes longer. rows: of the batch; 0: of any size."""
        return 1.0 + Z * (self.spreads[region(rows)] if rows and self.spreads else self.spread)


def region(rows: int) -> int:
    """Of REGIONS, by rows of a batch."""
    return bisect_right(_STARTS, rows)


def fewest_rows(place: int) -> int:
    """Of the batches in a region."""
    return _STARTS[place - 1] if place else 1


PROMPT_SUMS = ("prompt_tokens", "pairs", "rows", "kv_tokens")
ROW_SUMS = ("requests", "kv_tokens", "rows", "drafts", "drafts x kv_tokens", "catching up", "catching up x kv_tokens")


def sums_of(prefill: BatchShape, decode: BatchShape) -> tuple[int, ...]:
    """What a step's time can depend on beside its prediction: PROMPT_SUMS of one with prompts, else ROW_SUMS.

    Pairs are scores of prompts that are not masked; rows and KV tokens are of requests that decode. Drafts make rows
    more than requests; they are made one after the other, so each is a pass over the KV cache of its own, and where any
    are made the draft model catches up once. How many prompts share a chunk is left out: who asks before it runs does
    not know. States of requests are as many as requests, and the experts that a batch reaches are in the prediction.
    """
    if not prefill.requests:
        drafts = decode.new_tokens // decode.requests - 1 if decode.requests else 0
        kv_tokens = decode.context_tokens
        catches_up = 1 if drafts else 0
        of_drafts = (drafts, drafts * kv_tokens, catches_up, catches_up * kv_tokens)
        return (decode.requests, kv_tokens, decode.new_tokens, *of_drafts)
    return (prefill.new_tokens, prefill.causal_pairs, decode.new_tokens, decode.context_tokens)


class StepCorrection:
    """Learns one Line from pairs of predicted and measured seconds. O(1) in time and memory.

    A regression of ``measured / predicted`` on ``1 / predicted`` with weights that decay per step: relative errors
    count alike for short and long steps, and the constant time (host, launches) shows in the short ones.
    """

    def __init__(self, prior: Line | None = None) -> None:
        self.line = prior or Line()
        self.steps = 0
        self._keep = 1.0 - 1.0 / MEMORY
        self._weight = self._x = self._y = self._xx = self._xy = 0.0
        self._variance = self.line.spread**2

    def observe(self, predicted_s: float, measured_s: float) -> None:
        """Count one step. Times that no step takes, such as none at all, say nothing."""
        if not (LEAST_S <= predicted_s <= MOST_S and LEAST_S <= measured_s <= MOST_S):
            return
        expected = self.line.seconds(predicted_s) / predicted_s
        ratio = min(max(measured_s / predicted_s, expected / FARTHEST), expected * FARTHEST)
        x, keep = 1.0 / predicted_s, self._keep
        self._weight = self._weight * keep + 1.0
        self._x = self._x * keep + x
        self._y = self._y * keep + ratio
        self._xx = self._xx * keep + x * x
        self._xy = self._xy * keep + x * ratio
        scale, add_s = self._solved()
        residual = (ratio - scale - add_s * x) / (scale + add_s * x)
        self.steps += 1
        # The first steps are averaged with the prior; from there on the past decays.
        share = max(1.0 - keep, 1.0 / (self.steps + 8.0))
        self._variance += share * (residual * residual - self._variance)
        self.line = Line(scale, add_s, max(LEAST_SPREAD, sqrt(self._variance)))

    def _solved(self) -> tuple[float, float]:
        """Scale and constant of the regression."""
        mean_x, mean_y = self._x / self._weight, self._y / self._weight
        variance_x = max(0.0, self._xx / self._weight - mean_x * mean_x)
        covariance = self._xy / self._weight - mean_x * mean_y
        add_s = max(0.0, covariance / (variance_x + FLATNESS * mean_x * mean_x))
        add_s = min(add_s, 0.9 * mean_y / mean_x)  # the scale stays positive
        scale = mean_y - add_s * mean_x
        return scale, add_s

    def kept(self) -> list[float]:
        """What ``restored`` takes."""
        return [self._weight, self._x, self._y, self._xx, self._xy, self._variance]

    @classmethod
    def restored(cls, kept: Sequence[float], most: float) -> StepCorrection:
        """One that goes on where another one was, with no more evidence than ``most`` steps.

        kept: six finite numbers of 0 or more.
        """
        made = cls()
        less = min(1.0, most / kept[0]) if kept[0] else 1.0
        made._weight, made._x, made._y, made._xx, made._xy = (less * one for one in kept[:5])
        made._variance = kept[5]
        made.steps = round(made._weight)
        if made._weight:
            made.line = Line(*made._solved(), max(LEAST_SPREAD, sqrt(made._variance)))
        return made


class CorrectedSteps(NamedTuple):
    """A predictor with what was learned of its errors, at one moment. Equal questions have equal answers.

    asked: answers that were given; policies of one composition ask the same.
    """

    times: StepTimes
    prefill: Line = Line()
    decode: Line = Line()
    mixed: Line = Line()
    asked: dict[tuple[BatchShape, BatchShape, bool], float] | None = None

    def step_s(self, *, prefill: BatchShape = EMPTY, decode: BatchShape = EMPTY, graph: bool = False) -> float:
        """Seconds that the step is expected to take, host time included."""
        question = (prefill, decode, graph)
        known = None if self.asked is None else self.asked.get(question)
        if known is not None:
            return known
        line = self._line(prefill, decode)
        predicted_s = self.times.step_s(prefill=prefill, decode=decode, graph=graph)
        if line.each_s:
            rows = prefill.new_tokens + decode.new_tokens
            seconds = line.seconds(predicted_s, sums_of(prefill, decode), rows)
        else:
            seconds = line.scale * predicted_s + line.add_s
        if self.asked is not None:
            self.asked[question] = seconds
        return seconds

    def margin(self, *, prefill: bool, decode: bool, rows: int = 0) -> float:
        """Factor above 1 by which a step of this kind hardly ever takes longer than expected.

        rows: of the batch, prompt tokens and rows that decode; 0: of any size.
        """
        line = (self.mixed if decode else self.prefill) if prefill else self.decode
        return line.margin(rows)

    def slow_s(self, *, prefill: BatchShape = EMPTY, decode: BatchShape = EMPTY, graph: bool = False) -> float:
        """Seconds that the step hardly ever exceeds: those expected, with the margin of its kind and size."""
        seconds = self.step_s(prefill=prefill, decode=decode, graph=graph)
        rows = prefill.new_tokens + decode.new_tokens
        return seconds * self.margin(prefill=prefill.requests > 0, decode=decode.requests > 0, rows=rows)

    def _line(self, prefill: BatchShape, decode: BatchShape) -> Line:
        if not prefill.requests:
            return self.decode
        return self.mixed if decode.requests else self.prefill
