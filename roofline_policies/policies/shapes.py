"""What the next steps would run, as a view tells it, for policies that ask a predictor."""

from __future__ import annotations

from roofline_policies.contract.view import SchedulerView
from roofline_policies.model.batch import BatchShape
from roofline_policies.steps.speculation import verify_shape

NOT_PREDICTED = "step times are not predicted here (efficiency)"
"""Why a policy that asks a predictor idles where there is none."""


DRAFTS = "a step of drafts yields several tokens, and neither how many nor when they are due is known"
"""Why a policy idles that would let a step take as long as a token may."""


def prompt_shape(view: SchedulerView, tokens: int) -> BatchShape:
    """``tokens`` prompt tokens: of the prompt whose chunk comes next as far as it goes, then of those behind it."""
    queue = view.queue
    prefix = queue.next_prefix_tokens
    first = min(tokens, queue.first_prompt_tokens or tokens)
    context = prefix + first
    pairs = first * context
    causal_pairs = first * prefix + first * (first + 1) // 2
    rest = tokens - first
    if rest <= 0:
        return BatchShape(1, tokens, context, pairs, causal_pairs, 1)
    later = queue.later_prefix_tokens
    pairs += rest * (later + rest)
    causal_pairs += rest * later + rest * (rest + 1) // 2
    return BatchShape(2, tokens, context + later + rest, pairs, causal_pairs, 2)


def running_shape(view: SchedulerView) -> BatchShape:
    """One token of each running request, or all of its drafts; empty where nothing runs."""
    running = view.queue.running
    if not running:
        return BatchShape()
    context = max(running, view.queue.decode_context_tokens)
    if view.rows_per_request > 1:
        return verify_shape(running, context - running, view.rows_per_request - 1)
    return BatchShape(running, running, context, context, context, running)
