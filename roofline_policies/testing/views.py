"""Views of a made-up server, any part of them set by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from roofline_policies.contract.decision import Bounds, Knob, Knobs, Range
from roofline_policies.contract.view import MOST_TOLD, QueueState, SchedulerView
from roofline_policies.device.roofline import Bound, OperatingPoint
from roofline_policies.errors import FieldError
from roofline_policies.slo.objectives import TARGETS, ItlKind, Slo
from roofline_policies.steps.correction import CorrectedSteps
from roofline_policies.testing.device import LinearSteps

PROMPT_TOKENS = 1000
"""Length of every prompt of a made-up server."""

_KNOBS = tuple(item.name for item in fields(Knobs))
_TARGETS = {f"target_{name}": name for name in TARGETS}
_ONE_PRECISION = "the weights were loaded in one precision"
_NO_DRAFTS = "nothing drafts (--speculative-algorithm)"


def fake_knobs(**changes: Any) -> Knobs:
    """The launch setting of a made-up server, changed by name: 64 requests, chunks of 8,192 tokens, all else off."""
    return Knobs(**{"max_running_requests": 64, "prefill_chunk_tokens": 8192, **changes})


def fake_bounds(
    *,
    max_running_requests: int = 64,
    prefill_chunk_tokens: int | None = 8192,
    immovable: Mapping[Knob, str] | None = None,
) -> Bounds:
    """What a server launched with these settings can do: everything but drafts and other precisions.

    prefill_chunk_tokens: None where chunked prefill is off: neither the chunk nor mixing can be moved then.
    immovable: further knobs that cannot be moved, each with the reason.
    """
    reasons: dict[Knob, str] = {Knob.SPECULATION_WINDOW: _NO_DRAFTS, Knob.QUANT_TIER: _ONE_PRECISION}
    ranges = {
        Knob.MAX_RUNNING_REQUESTS: Range(1, max_running_requests), Knob.RELEGATE_FOR_S: Range(0, 3600),
        Knob.DEFENDED_FROM_US: Range(0, 10**9), Knob.NEW_TOKEN_PERMILLE: Range(0, 1000, 10),
    }  # fmt: skip
    if prefill_chunk_tokens is None:
        off = "chunked prefill is off (--chunked-prefill-size)"
        reasons |= {Knob.PREFILL_CHUNK_TOKENS: off, Knob.MIXED_CHUNK: off}
    else:
        step = min(64, prefill_chunk_tokens)
        ranges[Knob.PREFILL_CHUNK_TOKENS] = Range(step, prefill_chunk_tokens, step)
    reasons |= immovable or {}
    return Bounds({knob: limits for knob, limits in ranges.items() if knob not in reasons}, reasons)


def fake_point(bound: Bound = Bound.MEMORY, compute: float = 0.5, memory: float = 0.5) -> OperatingPoint:
    """An operating point with this bound. compute, memory: shares of the roofs that it reaches."""
    return OperatingPoint(compute * 1e15, memory * 4e12, compute, memory, 1.0, 10.0, bound)


def fake_view(**overrides: Any) -> SchedulerView:
    """What a policy would see of a quiet server: two requests decode, nobody waits, no target, steps are predicted.

    overrides: by name and in any mix

    - fields of SchedulerView (``itl_s=0.08``: the latency that was measured), whole parts of it among them (``queue``,
      ``knobs``, ``slo``);
    - fields of QueueState (``running=8, waiting=3, kv_use=0.95``) and of Knobs (``max_running_requests=32``);
    - targets of the server as ``target_ttft_s, target_itl_s, target_itl_kind, target_e2e_s``.

    What is left out follows from what is given, as on a server: prompts have 1,000 tokens, so waiting=3 gives
    next_prefill_tokens=3000; running requests have the server's target (queue.gap_s, or mean_s and due_s);
    predictor=None leaves steps None, and a predictor that is given is the one that steps corrects.

    Raises:
        FieldError: a name that is none of these.
    """
    known = (*SchedulerView._fields, *QueueState._fields, *_KNOBS, *_TARGETS)
    for name, value in overrides.items():
        if name not in known:
            raise FieldError(name, value, f"one of {', '.join(known)}")
    whole = {name: overrides[name] for name in SchedulerView._fields if name in overrides}
    slo = whole.get("slo", Slo()).narrowed({name: overrides[key] for key, name in _TARGETS.items() if key in overrides})
    knobs = whole.get("knobs", fake_knobs())
    for name in _KNOBS:
        if name in overrides:
            knobs = knobs.with_value(Knob(name), overrides[name])
    queue = _queue({name: overrides[name] for name in QueueState._fields if name in overrides}, knobs, slo)
    if "queue" in whole:
        queue = whole["queue"]._replace(**{name: overrides[name] for name in QueueState._fields if name in overrides})
    predictor = whole.get("predictor", LinearSteps())
    made: dict[str, Any] = {
        "now_s": 1000.0,
        "bounds": fake_bounds(
            max_running_requests=max(64, knobs.max_running_requests),
            prefill_chunk_tokens=None if knobs.prefill_chunk_tokens is None else max(8192, knobs.prefill_chunk_tokens),
        ),
        "steps": None if predictor is None else CorrectedSteps(predictor),
        "decisions": 1,
        **whole,
        "queue": queue, "knobs": knobs, "slo": slo, "predictor": predictor,
    }  # fmt: skip
    return SchedulerView(**made)


def _queue(given: dict[str, Any], knobs: Knobs, slo: Slo) -> QueueState:
    running, waiting = given.get("running", 2), given.get("waiting", 0)
    most = knobs.prefill_chunk_tokens or 16384
    made: dict[str, Any] = {
        "running": running,
        "kv_use": 0.02,
        "decode_context_tokens": running * PROMPT_TOKENS,
        "next_prefill_tokens": min(most, waiting * PROMPT_TOKENS),
        "next_prompts": ((PROMPT_TOKENS, 0),) * min(waiting, MOST_TOLD),
    }
    if running and slo.itl_s is not None:
        mean = slo.itl_kind is ItlKind.MEAN_TPOT
        made |= {"mean_s": slo.itl_s, "due_s": slo.itl_s} if mean else {"gap_s": slo.itl_s, "slack_s": slo.itl_s}
    return QueueState(**{**made, **given})
