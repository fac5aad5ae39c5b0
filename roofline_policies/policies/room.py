"""Limits of a cap on running requests: what the server has room for, the captured graphs, and room for prompts."""

from __future__ import annotations

from roofline_policies.contract.decision import Knob
from roofline_policies.contract.view import SchedulerView
from roofline_policies.model.batch import BatchShape
from roofline_policies.policies.base import Proposal
from roofline_policies.policies.shapes import prompt_shape, running_shape
from roofline_policies.slo.capacity import binding, graph_requests, more_requests


def within_capacities(view: SchedulerView, cap: Proposal) -> Proposal:
    """A cap that is not raised past what every hard capacity is expected to hold.

    It is not lowered for one either: the server itself lets nobody in then, and what the next requests take may be less
    than what those that run do.
    """
    queue, now = view.queue, view.knobs.max_running_requests
    held = max(now, queue.running + more_requests(queue.capacities))
    if cap.value <= held:
        return cap
    first = binding(one for one in queue.capacities if one.hard)
    assert first is not None  # where no hard capacity is known, there is room for any cap
    reason = f"{first.resource.value} ({first.used} of {first.size} in use) hold {held:.0f} requests"
    return cap._replace(value=int(held), reason=reason)


def within_graphs(view: SchedulerView, cap: Proposal) -> Proposal:
    """A cap that stays at the largest captured decode batch where a batch beyond it is predicted to yield fewer tokens
    a second.

    The batch in question is the largest that the requests that run and wait could make under the cap; while they are
    too few to leave the graphs, one of twice the largest, so that the cap is where it should be before they come.
    """
    queue, steps, largest = view.queue, view.steps, graph_requests(view.queue.capacities)
    if largest is None or steps is None or not queue.running or cap.value <= largest:
        return cap
    wanted = min(int(cap.value), queue.running + queue.waiting)
    if wanted <= largest:
        wanted = min(int(cap.value), 2 * largest)
    decode = running_shape(view)
    within_s = steps.step_s(decode=scaled(decode, largest), graph=True)
    beyond_s = steps.step_s(decode=scaled(decode, wanted), graph=True)
    if wanted * within_s >= largest * beyond_s:
        return cap
    reason = (
        f"{largest} requests decode under a captured graph in {within_s * 1e3:.1f} ms, "
        f"{wanted} without one in {beyond_s * 1e3:.1f} ms"
    )
    return cap._replace(value=largest, reason=reason)


LEAST_CHUNK_TOKENS = 128
"""Prompt tokens of the smallest chunk that is worth a step: one tile of a matrix product's rows."""


def least_chunk(view: SchedulerView, tokens: int = LEAST_CHUNK_TOKENS) -> BatchShape:
    """The smallest chunk of the prompt that comes next: so many tokens, or all that waits where that is less."""
    return prompt_shape(view, min(tokens, view.queue.next_prefill_tokens or tokens))


def next_least_chunk(view: SchedulerView) -> BatchShape:
    """The least chunk that the batch should leave room for from now on: what is left of a prompt in flight may be a few
    tokens, and says nothing of the chunks that follow it."""
    return prompt_shape(view, LEAST_CHUNK_TOKENS) if view.queue.chunk_in_flight else least_chunk(view)


def chunk_fits(view: SchedulerView, target_s: float, decode: BatchShape, least: BatchShape) -> bool:
    """Whether this chunk fits into a gap between two tokens of this batch, with margins: before its decode step, or
    beside its rows where the server can mix. False where step times are not predicted."""
    steps = view.steps
    if steps is None:
        return False
    if steps.slow_s(prefill=least) + steps.slow_s(decode=decode, graph=True) <= target_s:
        return True
    return _can_mix(view) and steps.slow_s(prefill=least, decode=decode) <= target_s


def fits_no_gap(view: SchedulerView, target_s: float, decode: BatchShape, least: BatchShape) -> bool:
    """Whether this chunk has no room in a gap of this target beside a batch of one, and takes longer than a step of
    ``decode``, so that they cannot share the time of two such steps either. False where step times are not predicted.
    """
    steps = view.steps
    if steps is None or chunk_fits(view, target_s, scaled(decode, 1), least):
        return False
    return not chunk_fits(view, 2.0 * steps.slow_s(decode=decode, graph=True), decode, least)


def beside_a_chunk_s(
    view: SchedulerView, target_s: float, decode: BatchShape, decode_s: float, least: BatchShape
) -> float:
    """Expected seconds that a decode step may take so that this chunk has room in the gap with it.

    decode, decode_s: a batch and what it takes. Where the server can mix, a mixed step is taken to grow with the batch
    as the decode step does: in some kernels a row costs many times as much there.
    """
    steps = view.steps
    if steps is None:
        return target_s
    margin = steps.margin(prefill=False, decode=True, rows=decode.new_tokens)
    apart_s = (target_s - steps.slow_s(prefill=least)) / margin
    if not _can_mix(view):
        return apart_s
    mixed_s = steps.slow_s(prefill=least, decode=decode)
    return max(apart_s, target_s * decode_s / mixed_s if mixed_s else target_s)


def _can_mix(view: SchedulerView) -> bool:
    return view.knobs.mixed_chunk or view.bounds.movable(Knob.MIXED_CHUNK)


def scaled(decode: BatchShape, requests: int) -> BatchShape:
    """A decode batch of so many requests with the mean context of another one, which has some."""
    rows = decode.new_tokens // decode.requests * requests
    logits = decode.logit_rows // decode.requests * requests
    context, pairs, causal = (
        max(requests, part * requests // decode.requests)
        for part in (decode.context_tokens, decode.pairs, decode.causal_pairs)
    )
    return BatchShape(requests, rows, context, pairs, causal, logits)
