"""Composition: several policies made into one. The merge rules are defined here and nowhere else.

1. Caps combine by minimum.
2. Targets of guards outrank targets of optimisers.
3. Of targets of equal strength that want the same direction, the one nearest to the current value stands.
4. Targets of equal strength that want opposite directions cancel: the current value stays.

None of the rules depends on the order in which the policies are listed. ``When`` makes one of a policy and a condition.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from roofline_policies.contract.decision import Knob
from roofline_policies.contract.view import SchedulerView
from roofline_policies.errors import FieldError
from roofline_policies.policies.base import Kind, Policy, Proposal
from roofline_policies.policies.conditions import Condition
from roofline_policies.policies.gate import accepted


@dataclass(frozen=True, slots=True)
class Composition:
    """Policies merged by the rules of this module; itself a policy, so compositions nest.

    Raises:
        FieldError: something listed has no ``propose``.
    """

    policies: tuple[Policy, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "policies", tuple(self.policies))
        for policy in self.policies:
            if not isinstance(policy, Policy):
                raise FieldError("policies", policy, "objects with a method propose(view)")

    def propose(self, view: SchedulerView) -> tuple[Proposal, ...]:
        """The merged proposals: at most one target and one cap per knob."""
        proposals: list[Proposal] = []
        for policy in self.policies:
            proposals.extend(accepted(policy.propose(view)))
        return _merge(view, tuple(proposals))


def compose(*policies: Policy) -> Composition:
    """``Composition`` of the arguments, for reading well in Python."""
    return Composition(policies)


def merged(policy: Policy, view: SchedulerView) -> tuple[Proposal, ...]:
    """What a policy proposes, merged; a composition's proposals are.

    Raises:
        PolicyError: something that cannot be meant; see policies.gate.
    """
    proposals = policy.propose(view)
    # What a composition returns has passed the gate; a class that only derives from one may return anything.
    return proposals if type(policy) is Composition else merge(view, proposals)


def merge(view: SchedulerView, proposals: Iterable[Proposal]) -> tuple[Proposal, ...]:
    """Proposals of many policies made into at most one target and one cap per knob.

    Raises:
        PolicyError: something that cannot be meant; see policies.gate.
    """
    return _merge(view, accepted(proposals))


def _merge(view: SchedulerView, proposals: tuple[Proposal, ...]) -> tuple[Proposal, ...]:
    met = {(proposal.knob, proposal.kind) for proposal in proposals}
    if len(met) == len(proposals):
        return proposals  # nothing meets: the common case, in every step of a server
    targets: dict[Knob, list[Proposal]] = {}
    caps: dict[Knob, Proposal] = {}
    for proposal in proposals:
        if proposal.kind is Kind.TARGET:
            targets.setdefault(proposal.knob, []).append(proposal)
        elif proposal.knob not in caps or _tightness(proposal) < _tightness(caps[proposal.knob]):
            caps[proposal.knob] = proposal
    merged = [_merge_targets(view, knob, rivals) for knob, rivals in targets.items()]
    return (*merged, *caps.values())


def _tightness(proposal: Proposal) -> tuple[float, int, str, str]:
    return (proposal.value, -proposal.strength, proposal.policy, proposal.reason)


def _merge_targets(view: SchedulerView, knob: Knob, rivals: list[Proposal]) -> Proposal:
    strongest = max(rival.strength for rival in rivals)
    rivals = [rival for rival in rivals if rival.strength == strongest]
    current = view.knobs.get(knob)
    if current is None or len(rivals) == 1:
        return rivals[0]
    raising = [rival for rival in rivals if rival.value > current]
    lowering = [rival for rival in rivals if rival.value < current]
    if raising and lowering:
        names = " and ".join(sorted({rival.policy for rival in (*raising, *lowering)}))
        return Proposal(names, knob, current, f"{names} want opposite directions", strength=strongest)
    return min(rivals, key=lambda rival: (abs(rival.value - current), rival.policy, rival.reason))


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
