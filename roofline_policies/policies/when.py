"""When: a policy that speaks only while a condition holds."""

from __future__ import annotations

from dataclasses import dataclass

from roofline_policies.contract.view import SchedulerView
from roofline_policies.errors import FieldError
from roofline_policies.policies.base import Policy, Proposal
from roofline_policies.policies.conditions import Condition
from roofline_policies.policies.gate import accepted


@dataclass(frozen=True, slots=True)
class When:
    """The proposals of ``policy`` while ``condition`` holds, of ``otherwise`` while it does not; itself a policy.

    condition: of signals in roofline_policies.policies.conditions; in a configuration file the same as text.
    otherwise: None proposes nothing, so a costly knob stays where it is and any other goes back to its launch setting.

    It has no memory: a signal that hovers about its number switches it in every step. How often and by how much a
    costly knob may move is settled once, by the dwell and hysteresis of roofline_policies/control/transitions.py.

    Raises:
        FieldError: something that is no condition, or no policy.
    """

    condition: Condition
    policy: Policy
    otherwise: Policy | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.condition, Condition):
            raise FieldError("condition", self.condition, "a comparison of a signal, such as kv_use > 0.9")
        for key in ("policy", "otherwise"):
            policy = getattr(self, key)
            if not isinstance(policy, Policy) and not (key == "otherwise" and policy is None):
                raise FieldError(key, policy, "an object with a method propose(view)")

    def propose(self, view: SchedulerView) -> tuple[Proposal, ...]:
        """What the policy that decides now proposes, each reason followed by the condition."""
        if self.condition.holds(view):
            return _because(self.condition, self.policy.propose(view))
        return () if self.otherwise is None else _because(~self.condition, self.otherwise.propose(view))


def when(condition: Condition, policy: Policy, otherwise: Policy | None = None) -> When:
    """``When`` of the arguments, for reading well in Python: ``when(kv_use > 0.9, SaveMemory())``."""
    return When(condition, policy, otherwise)


def _because(condition: Condition, proposals: tuple[Proposal, ...]) -> tuple[Proposal, ...]:
    return tuple(proposal._replace(reason=f"{proposal.reason} (while {condition})") for proposal in accepted(proposals))
