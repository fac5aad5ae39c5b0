"""Policies: view in, proposals out. Each is a frozen dataclass in a file of its own."""

from roofline_policies.policies.base import Kind, Policy, Proposal, Strength
from roofline_policies.policies.batch_size import BatchSize
from roofline_policies.policies.compose import Composition, compose
from roofline_policies.policies.prefill_deferral import PrefillDeferral
from roofline_policies.policies.static import Static

__all__ = [
    "BatchSize",
    "Composition",
    "Kind",
    "Policy",
    "PrefillDeferral",
    "Proposal",
    "Static",
    "Strength",
    "compose",
]
