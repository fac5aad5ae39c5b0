"""Static: the settings the server was launched with."""

from __future__ import annotations

from dataclasses import dataclass

from roofline_policies.contract.view import SchedulerView
from roofline_policies.policies.base import Proposal


@dataclass(frozen=True, slots=True)
class Static:
    """Proposes nothing, so every knob keeps its launch value. The baseline of every comparison."""

    def propose(self, view: SchedulerView) -> tuple[Proposal, ...]:
        """Always empty."""
        return ()
