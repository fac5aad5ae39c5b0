"""What the next steps would run, as a view tells it, for policies that ask a predictor."""

from __future__ import annotations

from roofline_policies.contract.view import SchedulerView
from roofline_policies.model.batch import BatchShape
from roofline_policies.slo.admission import beside
from roofline_policies.steps.speculation import verify_shape

NOT_PREDICTED = "step times are not predicted here (efficiency)"
"""Why a policy that asks a predictor idles where there is none."""


NO_ACCEPTANCE = "nothing is known of acceptance yet"
"""Why a policy idles that has to know how many tokens a step of drafts yields."""


def prompt_shape(view: SchedulerView, tokens: int) -> BatchShape:
    """A chunk of ``tokens``, of the prompts that are next, each as far as it goes.

    A prompt part-way leaves room for those that are due before it (``Admission.kept_tokens``). Tokens beyond all that
    wait are of one more prompt, which has as much cached as the next one.
    """
    queue = view.queue
    prompts = queue.next_prompts
    left, count = tokens, 0
    context = pairs = causal_pairs = 0
    kept = sum(beside((asked for asked, _ in prompts[1 : 1 + queue.due_before]), tokens)) if queue.due_before else 0
    for asked, prefix in (*prompts, (tokens, queue.next_prefix_tokens)):
        share = min(asked, left - kept)
        kept = 0  # only the first leaves room
        if share > 0:
            count += 1
            context += prefix + share
            pairs += share * (prefix + share)
            causal_pairs += share * prefix + share * (share + 1) // 2
            left -= share
        if left <= 0:
            break
    return BatchShape(count, tokens, context, pairs, causal_pairs, count)


def context_before(view: SchedulerView) -> int:
    """Tokens in the KV cache of running requests before the next step, which the view counts with what it computes."""
    return max(0, view.queue.decode_context_tokens - view.queue.running * view.rows_per_request)


def running_shape(view: SchedulerView) -> BatchShape:
    """One token of each running request, or all of its drafts; empty where nothing runs."""
    running = view.queue.running
    if not running:
        return BatchShape()
    context = max(running, view.queue.decode_context_tokens)
    if view.rows_per_request > 1:
        return verify_shape(running, context - running, view.rows_per_request - 1)
    return BatchShape(running, running, context, context, context, running)
