"""The decider while ranks that share its queue are missing. Stand-ins take the place of SGLang's Scheduler."""

from dataclasses import replace

from torch.distributed import HashStore

from roofline_policies.settings.loading import load
from sglang_patches.loop.decider import Decider
from sglang_patches.server.company import Company
from sglang_patches.server.facts import Served
from tests.sglang_patches.loop.loop_parts import Listens, Ticks, Times, still_clock, with_one_waiting
from tests.sglang_patches.stand_ins import MODEL


def test_nothing_is_decided_or_sent_before_every_rank_of_the_queue_follows(monkeypatch):
    """A rank that knows no policy would fail on the first decision that reaches it."""
    clock, scheduler, store = still_clock(monkeypatch), with_one_waiting(), HashStore()
    company = Company(store, 0, [1], "the same")
    policy = Listens()
    settings = replace(load("adaptive", overrides=["hardware=h200"]), policy=policy)
    decider = Decider(scheduler, settings, Served(MODEL, Ticks, predictor=Times()), company)
    assert decider.decide() is None
    assert policy.view is None
    assert decider.status()["waits_for"].startswith("ranks that share the queue do not follow: 1;")
    Company(store, 1, [0], "the same")
    clock.now_s += 2.0
    decider.decide()
    assert policy.view is not None
    assert decider.status()["waits_for"] is None
