"""What the next steps would run, as a view tells it, for rivals that ask a predictor."""

from __future__ import annotations

from roofline_policies.batch import BatchShape
from roofline_policies.view import SchedulerView

NOTHING = BatchShape()

NO_PREDICTOR = "step times are not predicted here (efficiency)"


def prompt_shape(view: SchedulerView, tokens: int) -> BatchShape:
    """``tokens`` prompt tokens, all of them taken for tokens of the prompt whose chunk comes next."""
    prefix = view.queue.next_prefix_tokens
    context = prefix + tokens
    return BatchShape(1, tokens, context, tokens * context, tokens * prefix + tokens * (tokens + 1) // 2, logit_rows=1)


def running_shape(view: SchedulerView) -> BatchShape:
    """One token of each running request; empty where nothing runs."""
    running = view.queue.running
    context = max(running, view.queue.decode_context_tokens)
    return BatchShape(running, running, context, context, context, logit_rows=running) if running else NOTHING
