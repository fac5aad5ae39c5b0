"""How soon, and how well, step times are learned while serving: predictions against made-up devices.

    python -m bench.fit.learning

Steps of batches that wander, of one kind at a time, are predicted before they are learned from, by what was told at the
start, by a scale and a constant (``StepCorrection``), and by what a server uses (``LearnedKind``). Errors are against
the device's time without its noise. Seconds of one core; deterministic.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from roofline_policies.contract.view import ForwardMode
from roofline_policies.control.steps_in_flight import StepsInFlight
from roofline_policies.device.hardware import from_catalogue
from roofline_policies.model.batch import BatchShape
from roofline_policies.model.catalogue import shipped_model
from roofline_policies.steps.correction import StepCorrection
from roofline_policies.steps.predictor import StepPredictor
from roofline_policies.steps.roofline_steps import RooflineSteps
from roofline_policies.steps.times import StepTimes

EMPTY = BatchShape()
STEPS = 2000
LARGEST = 128
CAPTURED = (*range(1, 16), *range(16, 2 * LARGEST + 1, 8))
NOISE = 0.03
LEAST_FACTOR = 0.1
ANSWERS = ("told", "scale and constant", "learned")
WINDOWS = {"first 100": (0, 100), "to the middle": (100, STEPS // 2), "next 100": (STEPS // 2, STEPS // 2 + 100),
           "to the end": (STEPS // 2 + 100, STEPS)}  # fmt: skip
TWICE = "twice the batch"
"""Policies ask for larger batches than ran: what was answered behind the first 100 steps of batches twice as large."""


@dataclass(frozen=True)
class Plant:
    """A device and what is told of it. factor: of the device's time, of a batch at a step. noise: of each step, a
    relative standard deviation."""

    told: StepTimes
    device: StepTimes
    factor: Callable[[int, int], float] = lambda step, rows: 1.0
    noise: float = NOISE


def plants() -> dict[str, Plant]:
    """By name: what is told is wrong in one way each."""
    model, captured = shipped_model("llama_3_1_8b").rank(1), CAPTURED
    h200 = StepPredictor.for_device(model, "h200", captured=captured)
    b200 = StepPredictor.for_device(model, "b200", captured=captured)
    nothing = RooflineSteps(model, from_catalogue("h200"), captured=captured)
    return {
        "the truth": Plant(h200, h200),
        "nothing (roofline)": Plant(nothing, h200),
        "another device (B200)": Plant(b200, h200),
        "no bias in small batches, 60% in large": Plant(h200, h200, lambda step, rows: 1.0 + 0.6 * rows / (rows + 64)),
        "clocks fall by 30% in the middle": Plant(h200, h200, lambda step, rows: 1.0 if step < STEPS // 2 else 1 / 0.7),
        "noise of 20%": Plant(h200, h200, noise=0.2),
    }  # fmt: skip


def batches(mode: ForwardMode, seed: int) -> Iterator[tuple[BatchShape, BatchShape]]:
    """Batches of one kind: requests and their contexts wander, prompts and what is cached of them are drawn."""
    random = np.random.default_rng(seed)
    running, context = 20.0, 800.0
    for _ in range(STEPS):
        running = min(
            float(LARGEST), max(1.0, running * np.exp(0.08 * random.standard_normal()) + (60 - running) / 120)
        )
        context = min(4000.0, max(100.0, context * np.exp(0.03 * random.standard_normal()) + (1000 - context) / 100))
        rows, tokens = int(running), int(int(running) * context)
        decode = BatchShape(rows, rows, tokens, tokens, tokens, rows)
        prompt = int(min(8192, max(32, np.exp(random.normal(6.5, 1.0)))))
        cached, prompts = int(random.choice([0, 0, 0, 2048, 8192])), int(random.integers(1, 5))
        each = max(1, prompt // prompts)
        prefill = BatchShape.of([(each, cached), *[(each, 0)] * (prompts - 1)])
        if mode is ForwardMode.DECODE:
            yield EMPTY, decode
        else:
            yield prefill, decode if mode is ForwardMode.MIXED else EMPTY


class Found(NamedTuple):
    """By step. own, twice: absolute relative errors of ANSWERS, of the batch and of one twice as large, [steps, 3].
    exceeded: whether the step took longer than its margin says. margin: that."""

    own: np.ndarray
    twice: np.ndarray
    exceeded: np.ndarray
    margin: np.ndarray


def errors(plant: Plant, mode: ForwardMode, seed: int) -> Found:
    """Of steps before they were learned from."""
    correction, learned = StepCorrection(), StepsInFlight(plant.told)
    random, graph = np.random.default_rng(seed + 1), mode is ForwardMode.DECODE
    now_s, found = 0.0, []

    def of(step: int, prefill: BatchShape, decode: BatchShape) -> tuple[float, float, list[float]]:
        """The device's time, what was told, and the errors of all answers."""
        told_s = plant.told.step_s(prefill=prefill, decode=decode, graph=graph)
        rows = prefill.new_tokens + decode.new_tokens
        true_s = plant.device.step_s(prefill=prefill, decode=decode, graph=graph) * plant.factor(step, rows)
        assert learned.steps is not None
        learned_s = learned.steps.step_s(prefill=prefill, decode=decode, graph=graph)
        answers = (told_s, correction.line.seconds(told_s), learned_s)
        return true_s, told_s, [abs(one / true_s - 1.0) for one in answers]

    for step, (prefill, decode) in enumerate(batches(mode, seed)):
        true_s, told_s, own = of(step, prefill, decode)
        *_, twice = of(step, BatchShape(*(2 * one for one in prefill)), BatchShape(*(2 * one for one in decode)))
        took_s = true_s * max(LEAST_FACTOR, 1.0 + plant.noise * random.standard_normal())
        promised = learned.launched(mode, now_s, prefill, decode)
        assert promised is not None
        found.append((own, twice, took_s > promised.predicted_s * promised.margin, promised.margin))
        correction.observe(told_s, took_s)
        now_s += took_s
        learned.finished(mode, took_s, now_s)
    return Found(*(np.array(column) for column in zip(*found, strict=True)))


def summary(plant: Plant, mode: ForwardMode, seed: int) -> dict[str, Any]:
    """Median and 90th percentile of each answer's errors by window, the share of steps that exceeded their margin, and
    the median margin."""
    found = errors(plant, mode, seed)
    parts = {window: found.own[start:end] for window, (start, end) in WINDOWS.items()} | {TWICE: found.twice[100:]}
    return {
        "errors": {
            window: dict(zip(ANSWERS, np.quantile(part, (0.5, 0.9), axis=0).T.tolist(), strict=True))
            for window, part in parts.items()
        },
        "exceeded": float(found.exceeded.mean()),
        "margin": float(np.median(found.margin)),
    }


def rendered(found: Mapping[tuple[str, str], Mapping[str, Any]]) -> Table:
    """Three rows for each plant and kind of step, one per answer."""
    columns = (*WINDOWS, TWICE)
    table = Table("told", "steps", "answer", *columns, "exceeded", "margin", title="median / P90 error in %")
    for (name, mode), one in found.items():
        for answer in ANSWERS:
            cells = [one["errors"][column][answer] for column in columns]
            last = answer == ANSWERS[-1]
            table.add_row(
                name if answer == ANSWERS[0] else "", mode if answer == ANSWERS[0] else "", answer,
                *(f"{100 * median:.1f} / {100 * p90:.1f}" for median, p90 in cells),
                f"{one['exceeded']:.1%}" if last else "", f"{one['margin']:.2f}" if last else "",
            )  # fmt: skip
    return table


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.fit.learning", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0, help="of batches and noise")
    parser.add_argument("--json", action="store_true", help="one JSON object in place of the table")
    arguments = parser.parse_args(argv)
    found = {
        (name, mode.value): summary(plant, mode, arguments.seed)
        for name, plant in plants().items()
        for mode in ForwardMode
    }
    if arguments.json:
        print(json.dumps({f"{name}: {mode}": one for (name, mode), one in found.items()}))
    else:
        Console(width=170).print(rendered(found))


if __name__ == "__main__":
    main()
