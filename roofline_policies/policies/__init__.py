"""Policies: view in, proposals out. Each is a frozen dataclass in a file of its own."""

from roofline_policies.policies.answer_room import AnswerRoom
from roofline_policies.policies.base import Kind, Policy, Proposal, Static, Strength
from roofline_policies.policies.batch_size import BatchSize, RidgeBatchSize
from roofline_policies.policies.compose import Composition, When, compose, when
from roofline_policies.policies.defence import Defence
from roofline_policies.policies.prefill_deferral import PrefillDeferral
from roofline_policies.policies.quant_tier import QuantTier, RidgeQuantTier
from roofline_policies.policies.ridge_prefill_deferral import RidgePrefillDeferral
from roofline_policies.policies.slo_guard import SloGuard
from roofline_policies.policies.speculation_window import RidgeSpeculationWindow, SpeculationWindow

__all__ = [
    "AnswerRoom",
    "BatchSize",
    "Composition",
    "Defence",
    "Kind",
    "Policy",
    "PrefillDeferral",
    "Proposal",
    "QuantTier",
    "RidgeBatchSize",
    "RidgePrefillDeferral",
    "RidgeQuantTier",
    "RidgeSpeculationWindow",
    "SloGuard",
    "SpeculationWindow",
    "Static",
    "Strength",
    "When",
    "compose",
    "when",
]
