"""Guarantee: a policy that is loaded while a server runs decides as if it had been there from the start."""

import pytest

from roofline_policies.control.controller import Controller
from roofline_policies.policies import Static
from roofline_policies.slo.objectives import Objectives, Slo
from roofline_policies.testing import Machine, plant
from tests.roofline_policies.guarantees.guarantee_plants import POLICIES, drawn, run

PROMISED = Objectives(Slo(ttft_s=2.0, itl_s=0.03), {10: Slo(ttft_s=0.5, itl_s=0.02)})
ASKED = drawn(seed=5, count=400, per_s=10.0, longest=8000)
AT_S = 15.0


def loads(*policies):
    """Controllers that take these policies, one after the other, AT_S seconds into a run and at once."""

    class Reloaded(Controller):
        left = policies

        def decide(self, now_s, queue):
            if now_s >= AT_S and self.left:
                for policy in self.left:
                    self.adopt(now_s, policy, self.slo, self.settings, self.bounds)
                self.left = ()
            return super().decide(now_s, queue)

    return Reloaded


@pytest.fixture
def reloads(monkeypatch):
    return lambda *policies: monkeypatch.setattr(plant, "Controller", loads(*policies))


@pytest.mark.parametrize("machine", [Machine(), Machine(bias=1.4, noise=0.1, overlap=True)], ids=["exact", "off"])
@pytest.mark.parametrize("name", POLICIES)
def test_the_same_policy_again_changes_nothing(name, machine, reloads):
    once = run(name, machine, PROMISED, ASKED)
    reloads(POLICIES[name])
    again = run(name, machine, PROMISED, ASKED)
    assert again.steps == once.steps
    assert again.changes() == once.changes()


def test_behind_another_policy_it_keeps_what_it_would_have_kept(reloads):
    """The steps of the other policy have taught the predictor what there is to know."""
    machine = Machine(bias=1.4, noise=0.1)
    after = [index for index, (at_s, *_) in enumerate(ASKED) if at_s > AT_S + 1.0]
    kept = good(run("predictive", machine, PROMISED, ASKED), after)
    reloads(POLICIES["predictive"])
    behind = good(run(Static(), machine, PROMISED, ASKED), after)
    assert behind >= 0.98 * kept
    assert kept > 0


def good(done, which):
    """How many of these requests were served as promised."""
    served = [done.answers[index] for index in which]
    return sum(
        answer.finished
        and answer.ttft_s <= PROMISED.of(answer.request.priority).ttft_s
        and max(answer.gaps_s, default=0.0) <= PROMISED.of(answer.request.priority).itl_s
        for answer in served
    )
