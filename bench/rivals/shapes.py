"""What the next steps would run, as a view tells it, for rivals that ask a predictor."""

from __future__ import annotations

from roofline_policies.contract.view import SchedulerView
from roofline_policies.model.batch import BatchShape

NOTHING = BatchShape()


def prompt_shape(view: SchedulerView, tokens: int, done: int = 0) -> BatchShape:
    """``tokens`` prompt tokens, all of them taken for tokens of the prompt whose chunk comes next.

    done: tokens of it that are computed before them, beside those that the view knows of.
    """
    prefix = view.queue.next_prefix_tokens + done
    context = prefix + tokens
    return BatchShape(1, tokens, context, tokens * context, tokens * prefix + tokens * (tokens + 1) // 2, logit_rows=1)
