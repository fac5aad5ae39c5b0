"""What was observed (IterationRecord) and what a policy may know (SchedulerView). Immutable, SGLang-free.

Both are made in every scheduler iteration: named tuples cost a fifth of frozen dataclasses to make.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

from roofline_policies.contract.decision import Bounds, Knobs
from roofline_policies.device.roofline import OperatingPoint
from roofline_policies.slo.capacity import Capacity
from roofline_policies.slo.demand import Demand
from roofline_policies.slo.objectives import Slo
from roofline_policies.steps.correction import CorrectedSteps
from roofline_policies.steps.times import StepTimes
from roofline_policies.work import Work


class ForwardMode(StrEnum):
    """What one scheduler iteration ran."""

    PREFILL = "prefill"
    DECODE = "decode"
    MIXED = "mixed"

    # Enum hashes by a Python-level function; these are dictionary keys in every iteration.
    __hash__ = str.__hash__


class PlannedGap(NamedTuple):
    """The gap between tokens that a step ends, as it was planned when the step was launched.

    number: of the steps that gave running requests tokens. slow_s: what all steps since the last of them were hardly
    to exceed together, margins included; None where that is not known. gap_s, mean_s: the tightest targets of running
    requests when it was decided, as in QueueState, before any tightening.
    """

    number: int
    slow_s: float | None
    gap_s: float | None
    mean_s: float | None


class IterationRecord(NamedTuple):
    """One scheduler iteration as it was executed.

    iteration: the server's own forward counter. requests: rows of the batch.
    new_tokens: tokens computed, padding excluded. context_tokens: KV tokens visible to them, summed over requests.
    padded_rows: rows added to reach a captured graph's size. cuda_graph: the step was a graph replay.
    work: what the step executed, with its provenance.
    seconds: time of the forward pass. seconds_source: ``device events`` or ``host clock``.
    done_s: monotonic time at which the step was done.
    step_s: wall time the step took from the server's point of view: since the previous step was done in a busy stretch,
        host time and launch gaps included; equal to ``seconds`` after an idle pause.
    alone: False where the step waited for prompts of another rank of data-parallel attention: its time is theirs.
    predicted_s: what step_s was expected to be when it was launched, with what was learned until then; None where steps
        are not predicted. margin: the factor by which it was hardly to exceed that.
    gap: the gap that it ends, as planned; None where it gives running requests no token.
    told_s: monotonic time at which its result was processed, when its tokens leave the scheduler; None: at ``done_s``.
    window: drafts per request that a decode step verified, 0 where there were none; None where nothing drafts, and of
        steps with prompts. accepted: drafts that were correct, summed over requests, the target's own token not among
        them; None where it is not known. Of a step with drafts new_tokens are all rows, useful work that of the tokens
        it yielded.
    """

    iteration: int
    mode: ForwardMode
    requests: int
    new_tokens: int
    context_tokens: int
    padded_rows: int
    cuda_graph: bool
    work: Work
    seconds: float
    seconds_source: str
    done_s: float
    step_s: float
    alone: bool = True
    predicted_s: float | None = None
    margin: float | None = None
    gap: PlannedGap | None = None
    told_s: float | None = None
    window: int | None = None
    accepted: int | None = None


MOST_TOLD = 16
"""Prompts that a view tells apart. A chunk of more has short ones, whose prefixes make little difference one by one."""


def told_apart(prompts: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Prompts as a view has them: the first of them one by one, those that follow as one."""
    if len(prompts) <= MOST_TOLD:
        return tuple(prompts)
    rest = prompts[MOST_TOLD - 1 :]
    tokens, cached = (sum(part) for part in zip(*rest, strict=True))
    return (*prompts[: MOST_TOLD - 1], (tokens, cached // len(rest)))


class QueueState(NamedTuple):
    """The scheduler's queues and caches at one moment.

    kv_use and cache_hit_rate are fractions; cache_hit_rate is None until a prompt was prefilled.
    running: requests past their prompt. next_prefill_tokens: prompt tokens that the next prefill step could take,
        counted up to one chunk. chunk_in_flight: a prompt is part-way through its chunks.
    next_prefix_tokens: tokens in the KV cache already of the prompt whose chunk comes next, as far as the server has
        looked.
    next_prompts: what the next chunk is expected to take, in its order, the prompt part-way first: of each prompt the
        tokens to be computed and those cached, as BatchShape.of takes them. At most MOST_TOLD; the last stands for all
        that follow, with their mean prefix. A prompt may come in the very pass that is decided. Where it would be
        first, those that may come are in it too, as the one of the last prompts with the most cached tokens: the longer
        its prefix, the longer its chunk takes.
    due_before: how many of those behind the one part-way are due before it, and get room of its chunk; 0 without one.
    decode_context_tokens: KV tokens that the next decode step attends to, summed over the running requests; those that
        left since the last step are still in it.
    gap_s: the tightest target per gap of a running request that can still meet its objective, None without one.
    mean_s: the tightest target on a mean of such a request, None without one. Policies are shown both tightened while
        measured gaps are late more often than was promised (``control.lateness``).
    due_s: seconds until the next token of a running request is due so that it keeps its mean TPOT or its end-to-end
        time, of the tightest one; below 0 it is late. None where no running request has such a target.
    slack_s: seconds until the next token of a running request is due, of the tightest one; below 0 it is late. A token
        is due at ``arrival + ttft_s + itl_s * (tokens before it)``, arrival at the scheduler; without a ttft_s the
        first token is due when it comes. By the server's objective alone. None where nothing runs, there is no itl_s,
        or steps yield several tokens (speculative decoding).
    prompt_due_s: seconds until the first token is due of the prompt that is next, or of the one part-way through
        its chunks, the earlier; below 0 it is late. None where there is no such prompt, or it is passed over.
    relegated: waiting requests that are passed over because they cannot be in time.
    capacities: what requests can run out of here, each with its use and size; kv_use is the share of the fuller of the
        first two. Empty where nothing is known.
    peers_decoding: requests that decode on the other ranks of data-parallel attention and wait for this rank's step.
    unwritten_tokens: that running requests may still generate, as the server counts them for its own estimate.
    next_unwritten_tokens: the same of the next prompt; the server lets it in only where there is room for all of them.
    demand: what was asked for lately, None where that is not known.
    """

    running: int = 0
    waiting: int = 0
    next_prefill_tokens: int = 0
    chunk_in_flight: bool = False
    next_prefix_tokens: int = 0
    next_prompts: tuple[tuple[int, int], ...] = ()
    due_before: int = 0
    decode_context_tokens: int = 0
    gap_s: float | None = None
    mean_s: float | None = None
    due_s: float | None = None
    slack_s: float | None = None
    prompt_due_s: float | None = None
    relegated: int = 0
    kv_use: float = 0.0
    retractions: int = 0
    cache_hit_rate: float | None = None
    capacities: tuple[Capacity, ...] = ()
    peers_decoding: int = 0
    unwritten_tokens: int = 0
    next_unwritten_tokens: int = 0
    demand: Demand | None = None


class SchedulerView(NamedTuple):
    """Everything a policy may know, at one moment.

    now_s: monotonic seconds; a policy has no clock of its own.
    slo: of requests of which nothing else is known; queue.gap_s and queue.due_s are of those that run.
    prefill, decode: operating points of the recent past, None where there was no such iteration.
    decode_step_s: mean seconds of the last decode iterations, None before the first; decode_requests: their mean batch.
    prefill_tokens_per_s: rate at which the next prompt tokens are expected to be computed, from the last ones; None
        before the first prefill.
    itl_s: the running requests' recent inter-token latency as the SLO's kind judges it (the slow tail of the gaps
        for per_gap, their mean for mean_tpot), None before the first gap.
    since_decode_s: time since the running requests last had a decode step launched, 0 when nothing runs.
    prefills_since_decode: prefill steps launched since then.
    since_prefill_s: time since the last step with a prompt in it is expected to have ended, while one could have had
        another; 0 when none waits.
    token_age_s: how long the running requests will have waited for their next token when the next step can start,
        steps in flight included as predicted.
    free_in_s: seconds until the next step can start, as predicted; 0 where none is in flight.
    steps: prices iterations that have not run, corrected by those that have; None where steps are not predicted.
    predictor: the same without the correction.
    decisions: how many there were before this one.
    acceptance: for each draft position, the share accepted of the drafts that got there, of requests such as run now;
        None before the first verify step.
    rows_per_request: rows that a decode step runs per request; more than one where drafts are verified.
    tokens_per_request: tokens that a decode step is expected to yield per request; 1 where nothing drafts, None where
        drafts are verified and nothing is known of acceptance.
    windows_run: numbers of drafts that ran often enough to know what they take; empty where they do not move.
    since_drafts_s: seconds since the result of a step with drafts was seen; None before the first.
    """

    now_s: float
    queue: QueueState
    knobs: Knobs
    bounds: Bounds
    slo: Slo = Slo()
    prefill: OperatingPoint | None = None
    decode: OperatingPoint | None = None
    decode_step_s: float | None = None
    decode_requests: float | None = None
    prefill_tokens_per_s: float | None = None
    itl_s: float | None = None
    since_decode_s: float = 0.0
    prefills_since_decode: int = 0
    since_prefill_s: float = 0.0
    token_age_s: float = 0.0
    free_in_s: float = 0.0
    steps: CorrectedSteps | None = None
    predictor: StepTimes | None = None
    decisions: int = 0
    acceptance: tuple[float, ...] | None = None
    rows_per_request: int = 1
    tokens_per_request: float | None = 1.0
    windows_run: tuple[int, ...] = ()
    since_drafts_s: float | None = None
