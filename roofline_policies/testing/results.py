"""What a Plant is given and what it gives back: requests, answers, steps, decisions."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from roofline_policies.contract.decision import KnobChange, Knobs
from roofline_policies.contract.view import ForwardMode, QueueState


class Request(NamedTuple):
    """One request. arrival_s: from the start of the run. priority: its class (see Objectives), None for no class."""

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    priority: int | None = None


class Answer(NamedTuple):
    """What became of one request.

    token_s: when each of its tokens came. started_s: when the first step with part of its prompt was launched, None
    where none was. relegated: others passed it at some time, because it could not be in time.
    """

    request: Request
    token_s: tuple[float, ...] = ()
    started_s: float | None = None
    relegated: bool = False

    @property
    def finished(self) -> bool:
        """Whether it has all its tokens."""
        return len(self.token_s) == self.request.output_tokens

    @property
    def ttft_s(self) -> float:
        """Seconds from arrival to the first token; infinite where none came."""
        return self.token_s[0] - self.request.arrival_s if self.token_s else float("inf")

    @property
    def gaps_s(self) -> list[float]:
        """Seconds between each two tokens."""
        return [later - earlier for earlier, later in pairwise(self.token_s)]


class Step(NamedTuple):
    """One iteration.

    launched_s: when the host launched it. start_s, done_s: when the device began and ended. prompt_tokens: computed in
    it. rows: running requests that got a token. deferred: a prompt waited and the knob kept it out.
    """

    mode: ForwardMode
    launched_s: float
    start_s: float
    done_s: float
    prompt_tokens: int
    rows: int
    deferred: bool


class Moment(NamedTuple):
    """One decision: when, what the queues were, the knobs from then on, what changed and why."""

    t_s: float
    queue: QueueState
    knobs: Knobs
    changes: tuple[KnobChange, ...]


@dataclass(frozen=True, slots=True)
class Run:
    """A run of a Plant. answers: in the order of the requests. fallback_reason: why the policy failed, or None."""

    answers: tuple[Answer, ...]
    steps: tuple[Step, ...]
    moments: tuple[Moment, ...]
    fallback_reason: str | None

    @property
    def finished(self) -> bool:
        """Whether every request has all its tokens."""
        return all(answer.finished for answer in self.answers)

    def longest_gap_s(self) -> float:
        """The longest that any request waited between two tokens; 0 where no request has two."""
        return max((gap for answer in self.answers for gap in answer.gaps_s), default=0.0)

    def changes(self) -> list[tuple[float, KnobChange]]:
        """Every knob change with its time, oldest first."""
        return [(moment.t_s, change) for moment in self.moments for change in moment.changes]
