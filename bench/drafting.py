"""How many drafts a step should verify: every rule on a decode loop with drafts, without a scheduler; tables.

    python -m bench.drafting draft=head hardware=h200 model=llama_3_1_8b

For each size of the batch, acceptance, length of contexts and price of a draft, and for acceptance that drifts and
batches that swing: expected tokens per second of each rule over the best fixed number of drafts, and over foresight.
Nothing is prefilled; what a whole server does is found by python -m bench.sweep axes=drafts. Keys of
conf/bench/virtual.yaml can be overridden in hydra's syntax.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from bench.command import overrides_of
from bench.composition import read_config
from bench.virtual.arms import AVERAGE, PROFILE, TABLE
from bench.virtual.device import Device
from bench.virtual.draft import Draft
from bench.virtual.run import rule_of
from roofline_policies.errors import EXIT_BAD_INPUT, InputError
from roofline_policies.policies import SpeculationWindow
from roofline_policies.steps.acceptance import Acceptance
from roofline_policies.steps.speculation import Speculation
from roofline_policies.steps.times import StepTimes
from roofline_policies.testing.drafting import DraftingLoop, TimesAsLong

WINDOWS, START = (0, 1, 3, 5, 7), 3
BATCHES = (1, 8, 32, 128)
ACCEPTED = {"often": (0.9, 0.88, 0.86), "usually": (0.75, 0.7, 0.65), "seldom": (0.4, 0.3, 0.25)}
CONTEXTS = (1024, 12000)
PRICES = (1.0, 4.0)
"""Times that a draft takes what the configured one does: a head, or about a model of its own."""

SECONDS = 30.0
NOISE, BIAS = 0.03, 1.25
"""Standard deviation of each step's factor, and how many times as long all steps take as the policy is told."""

DRIFT = ((0.0, 0.0), (7.0, 0.0), (8.0, -2.0), (15.0, -2.0), (16.0, 1.0), (22.0, 1.0), (23.0, -1.0))
SWINGS = ((0.0, 2), (5.0, 128), (10.0, 16), (15.0, 192), (20.0, 48), (25.0, 2))
RIVALS = (AVERAGE, TABLE, PROFILE)


def cells(target: StepTimes, base: Speculation, kv_tokens: int) -> dict[str, DraftingLoop]:
    """Every loop by its name: the product, those that fit, and those in which something changes."""

    def loop(
        batch: int, chances: tuple[float, ...], context: int, price: float, drifts: bool = False, swings: bool = False
    ) -> DraftingLoop:
        acceptance = Acceptance(chances, drift=DRIFT if drifts else ())
        speculation = replace(base, draft=TimesAsLong(base.draft, price * BIAS), acceptance=acceptance)
        load = SWINGS if swings else ((0.0, batch),)
        return DraftingLoop(
            TimesAsLong(target, BIAS), speculation, load, WINDOWS, SECONDS, context, told=target, noise=NOISE
        )

    usual = ACCEPTED["usually"]
    found = {
        f"{batch} x {context}, {name} accepted, price {price:g}": loop(batch, chances, context, price)
        for price in PRICES
        for context in CONTEXTS
        for name, chances in ACCEPTED.items()
        for batch in BATCHES
        if batch * (context + 512) <= kv_tokens
    }
    for price in PRICES:
        found |= {
            f"drifting, {batch} x 1024, price {price:g}": loop(batch, usual, 1024, price, drifts=True)
            for batch in (8, 64)
        }
        found[f"swinging, price {price:g}"] = loop(0, usual, 1024, price, swings=True)
        found[f"drifting and swinging, price {price:g}"] = loop(0, usual, 1024, price, drifts=True, swings=True)
    return found


def rates(loop: DraftingLoop) -> dict[str, Any]:
    """Tokens per second of every fixed number, of each rule, of foresight."""
    fixed = {window: loop.fixed(window).tokens_per_s for window in loop.windows}
    best = max(fixed, key=fixed.__getitem__)
    found = {"best fixed": best, "fixed": fixed, "foresight": loop.foreseen().tokens_per_s}
    for name in RIVALS:
        rule = rule_of(name, START, loop.windows, loop.speculation, loop.target)
        assert rule is not None
        found[name] = loop.by(rule).tokens_per_s
    found["ours"] = loop.under(SpeculationWindow(), START)[0].tokens_per_s
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: 0, or EXIT_BAD_INPUT before anything ran."""
    overrides = overrides_of(argv, "virtual", __doc__)
    try:
        conf = read_config("virtual", overrides)
        device = Device.from_config(conf)
        draft = Draft.from_config(conf.get("draft"), device, 0)
        if draft is None:
            raise InputError("nothing drafts", where="virtual", key="draft", value=None, allowed="draft=head")
        speculation = draft.speculation(device, max(WINDOWS))
    except InputError as error:
        print(error, file=sys.stderr)
        return EXIT_BAD_INPUT
    target = device.steps([*range(1, 9), *range(10, 33, 2), *range(40, 161, 8), *range(176, 257, 16)])
    names = (*RIVALS, "ours")
    print("| cell | best fixed | foresight | " + " | ".join(names) + " |")
    print("|---" * (len(names) + 3) + "|")
    table = {}
    for cell, loop in cells(target, speculation, device.kv_tokens).items():
        found = table[cell] = rates(loop)
        best = found["fixed"][found["best fixed"]]
        values = " | ".join(f"{found[name] / best:.3f}" for name in ("foresight", *names))
        print(f"| {cell} | {found['best fixed']}: {best:.0f} tok/s | {values} |", flush=True)
    means = {name: fmean(one["ours"] / one[name] for one in table.values()) for name in ("foresight", *RIVALS)}
    least = {name: min(one["ours"] / one[name] for one in table.values()) for name in ("foresight", *RIVALS)}
    for name in means:
        print(f"ours over {name}: {means[name]:.3f} in the mean, {least[name]:.3f} at least")
    print(json.dumps(table))
    return 0


if __name__ == "__main__":
    sys.exit(main())
