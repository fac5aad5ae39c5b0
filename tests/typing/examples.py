"""Uses of the public surface. ``make lint`` checks their types, ``test_examples`` runs them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_type

from roofline_policies import (
    BatchSize,
    Bytes,
    Composition,
    Flops,
    ItlKind,
    Knob,
    Objectives,
    Policy,
    PrefillDeferral,
    Proposal,
    SchedulerView,
    Slo,
    SloGuard,
    Work,
    compose,
    when,
)
from roofline_policies.policies.conditions import kv_use


@dataclass(frozen=True)
class HalfAsMany:
    """A policy of one's own."""

    most: int = 64

    def propose(self, view: SchedulerView) -> tuple[Proposal, ...]:
        cap = max(1, min(self.most, view.knobs.max_running_requests // 2))
        return (Proposal("half as many", Knob.MAX_RUNNING_REQUESTS, cap, "to see what that does"),)


def own_policy() -> Policy:
    return HalfAsMany(most=8)


def composed() -> Composition:
    whole = compose(BatchSize(), PrefillDeferral(), SloGuard(), when(kv_use > 0.9, HalfAsMany()))
    assert_type(whole, Composition)
    return whole


def promised() -> Objectives:
    objectives = Objectives(Slo(ttft_s=2.0, itl_s=0.05), {10: Slo(ttft_s=0.5, itl_kind=ItlKind.MEAN_TPOT)})
    assert_type(objectives.of(10), Slo)
    return objectives


def work() -> Work:
    moved = Bytes(read=4096) + Bytes(written=64)
    assert_type(moved, Bytes)
    twice = Work(issued=Flops(bf16=8192), useful=Flops(bf16=8000), compulsory=moved) + Work()
    assert_type(twice, Work)
    assert_type(twice.intensity_flops_per_byte, float)
    return twice


def knobs_of(policy: Policy, view: SchedulerView) -> list[Knob]:
    return [proposal.knob for proposal in policy.propose(view)]


def counting() -> str:
    """A kernel of one's own, counting what it executes; needs torch and Triton."""
    from roofline_policies import counted

    return counted.__name__
