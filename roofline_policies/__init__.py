"""Roofline-adaptive scheduling for SGLang: count the work, place it on the roofline, choose the knobs.

What stands here is the public surface: policies and how they are composed, what a policy is shown and says, and work as
it is counted. ``counted`` is looked up when it is asked for, because it needs torch and Triton.
"""

from typing import TYPE_CHECKING, Any

from roofline_policies.contract.decision import Bounds, Decision, Knob, Knobs, Range
from roofline_policies.contract.view import QueueState, SchedulerView
from roofline_policies.errors import InputError, RooflineError
from roofline_policies.policies import (
    AnswerRoom,
    BatchSize,
    Composition,
    Defence,
    Kind,
    Policy,
    PrefillDeferral,
    Proposal,
    QuantTier,
    SloGuard,
    SpeculationWindow,
    Static,
    Strength,
    compose,
    when,
)
from roofline_policies.slo.objectives import ItlKind, Objectives, Slo
from roofline_policies.work import Bytes, Flops, Precision, Work

if TYPE_CHECKING:
    from roofline_policies.counting import counted

__all__ = [
    "AnswerRoom",
    "BatchSize",
    "Bounds",
    "Bytes",
    "Composition",
    "Decision",
    "Defence",
    "Flops",
    "InputError",
    "ItlKind",
    "Kind",
    "Knob",
    "Knobs",
    "Objectives",
    "Policy",
    "Precision",
    "PrefillDeferral",
    "Proposal",
    "QuantTier",
    "QueueState",
    "Range",
    "RooflineError",
    "SchedulerView",
    "Slo",
    "SloGuard",
    "SpeculationWindow",
    "Static",
    "Strength",
    "Work",
    "compose",
    "counted",
    "when",
]


def __getattr__(name: str) -> Any:
    if name == "counted":
        from roofline_policies.counting import counted

        return counted
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
