"""DraftingLoop: a decode loop with drafts, without a scheduler, that the real Controller drives with any policy.

So many requests decode at a time, none is prefilled; one that ends is replaced by one with a prompt's context. A step
is launched while the one before runs, and its result is seen one step late. Decisions come as on a server that only
decodes: ten a second, and after each change of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple, Protocol

from roofline_policies.contract.decision import Bounds, Knob, Knobs, Range
from roofline_policies.contract.view import ForwardMode, IterationRecord, QueueState
from roofline_policies.control.controller import DECIDE_AT_LEAST_EVERY_S, Controller, ControllerSettings
from roofline_policies.model.batch import BatchShape
from roofline_policies.policies.base import Policy
from roofline_policies.slo.objectives import Slo
from roofline_policies.steps.speculation import Speculation, verify_shape
from roofline_policies.steps.times import StepTimes
from roofline_policies.testing.device import CEILINGS, work_of

Chooser = Callable[[int, int, float], int]


class Rule(Protocol):
    """What chooses the number of drafts without a view: SGLang's ``AdaptiveSpecPolicy``, as far as it is asked here."""

    def get_steps_for_batch(self, batch_size: int) -> int:
        """Of the next step."""
        ...

    def on_verify_complete(self, num_correct_drafts_per_req: list[int], batch_size: int) -> int | None:
        """A result is there."""
        ...


class TimesAsLong(NamedTuple):
    """Step times that are ``factor`` times as long."""

    times: StepTimes
    factor: float

    def step_s(self, *, prefill: BatchShape, decode: BatchShape, graph: bool) -> float:
        return self.factor * self.times.step_s(prefill=prefill, decode=decode, graph=graph)


@dataclass(slots=True)
class Drafted:
    """What a run came to.

    tokens: expected ones, from the true acceptance of each step's requests, so that runs differ by what they chose and
    not by what was drawn. windows: seconds by number of drafts. trace: (second, window) of each change.
    longest_s: the longest step.
    """

    tokens: float = 0.0
    seconds: float = 0.0
    steps: int = 0
    longest_s: float = 0.0
    windows: dict[int, float] = field(default_factory=dict)
    trace: list[tuple[float, int]] = field(default_factory=list)

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds


@dataclass(frozen=True, slots=True)
class DraftingLoop:
    """target, speculation: what steps take and which drafts are accepted, in truth. load: (second, requests that decode
    from then on), ascending from 0. windows: what K moves among, ascending. told: what the controller is told of the
    target's steps; None: the truth. noise: standard deviation of each step's own factor. gap_s: target of all requests.
    """

    target: StepTimes
    speculation: Speculation
    load: Sequence[tuple[float, int]]
    windows: tuple[int, ...] = (0, 1, 3, 5, 7)
    seconds: float = 30.0
    prompt_tokens: int = 1024
    output_tokens: int = 512
    told: StepTimes | None = None
    noise: float = 0.0
    gap_s: float | None = None
    seed: int = 0

    def fixed(self, window: int) -> Drafted:
        """With so many drafts in every step."""
        return self._run(lambda requests, context, second: window)

    def foreseen(self) -> Drafted:
        """With most tokens per second in each step, by the truth."""

        def best(requests: int, context: int, second: float) -> int:
            return max(self.windows, key=lambda window: self._speed(requests, context, second, window))

        return self._run(best)

    def by(self, rule: Rule) -> Drafted:
        """By a rule that is told how many drafts of each request were accepted, and the size of the batch."""
        return self._run(lambda requests, context, second: rule.get_steps_for_batch(requests), rule=rule)

    def under(self, policy: Policy, start: int = 3) -> tuple[Drafted, Controller]:
        """Under a policy, ``start`` drafts being the first; and the controller as it is at the end."""
        knob = Knob.SPECULATION_WINDOW
        bounds = Bounds({knob: Range(self.windows[0], self.windows[-1])}, {}, {knob: self.windows})
        controller = Controller(
            policy, ceilings=CEILINGS, bounds=bounds, launch=Knobs(4096, None, speculation_window=start),
            slo=Slo(itl_s=self.gap_s), settings=ControllerSettings(budget_s=60.0), started_s=0.0,
            predictor=self.told or self.target, rows_per_request=start + 1,
        )  # fmt: skip
        return self._run(None, controller), controller

    def _speed(self, requests: int, context: int, second: float, window: int) -> float:
        seconds = self.speculation.decode(self.target, requests, context, window).total_s
        return requests * self._yield(window, second) / seconds

    def _yield(self, window: int, second: float) -> float:
        """Tokens per request, of one at level 0: requests of other levels make it up on either side."""
        acceptance = self.speculation.acceptance
        return 1.0 + acceptance.mean_accepted(window, acceptance.drifted(second))

    def _run(self, choose: Chooser | None, controller: Controller | None = None, rule: Rule | None = None) -> Drafted:
        draw, made, now_s, decided_s = Random(self.seed), Drafted(), 0.0, float("-inf")
        contexts: list[int] = []
        window = last = -1
        late: tuple[IterationRecord, int, list[int]] | None = None
        told: list[int] | None = None
        while now_s < self.seconds:
            requests = next(count for second, count in reversed(self.load) if second <= now_s)
            changed = requests != len(contexts)
            while len(contexts) < requests:
                contexts.append(self.prompt_tokens + draw.randrange(self.output_tokens))
            del contexts[requests:]
            context = sum(contexts)
            if choose is not None:
                window = choose(requests, context, now_s)
            elif controller is not None:
                if changed or now_s - decided_s >= DECIDE_AT_LEAST_EVERY_S:
                    rows = (controller.knobs.speculation_window or 0) + 1
                    queue = QueueState(
                        running=requests, decode_context_tokens=context + rows * requests, gap_s=self.gap_s
                    )
                    controller.decide(now_s, queue)
                    decided_s = now_s
                window = controller.knobs.speculation_window or 0
            shape = verify_shape(requests, context, window)
            if controller is not None:
                controller.launched(ForwardMode.DECODE, now_s, decode=shape)
            took_s = self.speculation.decode(self.target, requests, context, window).total_s
            if self.noise:
                took_s *= max(0.1, draw.gauss(1.0, self.noise))
            chances = self.speculation.acceptance.probabilities(window, self.speculation.acceptance.drifted(now_s))
            seen = controller is not None or rule is not None
            runs = [_run_of(draw, chances) for _ in contexts] if seen else []
            made.tokens += requests * self._yield(window, now_s)
            if window != last:
                made.trace.append((now_s, window))
                last = window
            made.windows[window] = made.windows.get(window, 0.0) + took_s
            made.steps += 1
            made.longest_s = max(made.longest_s, took_s)
            now_s += took_s
            made.seconds = now_s
            if rule is not None:
                if told is not None:
                    rule.on_verify_complete(told, len(told))
                told = runs
            if controller is not None:
                if late is not None:
                    _tell(controller, now_s, late)
                record = IterationRecord(
                    made.steps, ForwardMode.DECODE, requests, shape.new_tokens, shape.context_tokens, 0, True,
                    work_of(shape), took_s, "host clock", now_s, took_s,
                )  # fmt: skip
                late = (record, window, runs)
            grown = self._yield(window, now_s)
            for place, length in enumerate(contexts):
                length += int(grown) + (draw.random() < grown % 1.0)
                ended = length >= self.prompt_tokens + self.output_tokens
                contexts[place] = self.prompt_tokens if ended else length
        return made


def _run_of(draw: Random, chances: Sequence[float]) -> int:
    run = 0
    for chance in chances:
        if draw.random() >= chance:
            break
        run += 1
    return run


def _tell(controller: Controller, now_s: float, late: tuple[IterationRecord, int, list[int]]) -> None:
    record, window, runs = late
    controller.observe(record)
    if window:
        controller.observe_drafts(now_s, window, runs, [None] * len(runs))
