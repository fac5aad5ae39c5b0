"""The page is of the moment in which it is asked for. Stand-ins take the place of SGLang's Scheduler and batches."""

from dataclasses import replace

import pytest
from sglang.srt.model_executor.forward_batch_info import ForwardMode as SglangMode

from roofline_policies.settings.loading import load
from roofline_policies.slo.objectives import Objectives, Slo
from sglang_patches.loop.decider import Decider
from sglang_patches.server.facts import Served
from tests.sglang_patches.loop.loop_parts import Listens, Request, Ticks, Times, ran, still_clock, with_one_waiting
from tests.sglang_patches.stand_ins import MODEL, StandInBatch, pools


@pytest.fixture
def clock(monkeypatch):
    return still_clock(monkeypatch)


@pytest.fixture
def scheduler():
    return with_one_waiting()


def loop_after_two_steps(clock, scheduler, policy):
    """A prompt of 100 tokens and one decode step, seen by a decision at 100.05 s."""
    settings = replace(load("adaptive", overrides=["hardware=h200"]), policy=policy)
    settings = replace(settings, objectives=Objectives(Slo(ttft_s=2.0, itl_s=0.1)))
    decider, request = (
        Decider(scheduler, settings, Served(MODEL, Ticks, predictor=Times())),
        Request(100, received_s=99.5),
    )
    ran(decider, clock, StandInBatch(SglangMode.EXTEND, [100], [0], forward_iter=1, requests=[request]), request)
    ran(decider, clock, StandInBatch(SglangMode.DECODE, seq_lens=[101], forward_iter=2, requests=[request]), request)
    clock.now_s = 100.05
    decider.decide()
    return decider


def test_the_page_is_of_the_moment_in_which_it_is_asked_for(clock, scheduler):
    """Nothing is decided, observed or even passed between the last step and the page: SGLang sleeps."""
    decider = loop_after_two_steps(clock, scheduler, Listens())
    page = decider.status()
    assert (page["running"], page["waiting"], page["kv_use"]) == (1, 1, 0.5)
    assert page["decode"]["flops_per_s"] > 0
    scheduler.running_batch.size, scheduler.waiting_queue, scheduler.pool_stats_observer = 0, [], pools(0.0)
    clock.now_s = 100.06
    page = decider.status()
    assert (page["running"], page["waiting"], page["kv_use"], page["decode_context_tokens"]) == (0, 0, 0.0, 0)
    assert (page["slack_s"], page["itl_s"], page["prefill"], page["decode"]) == (None, None, None, None)
    assert page["last"]["decode"]["age_s"] == pytest.approx(100.06 - 100.04)
    assert page["totals"]["decode"]["iterations"] == 1
    assert (decider.controller.queue.running, decider.controller.queue.kv_use) == (1, 0.5)  # what was decided by stays


def test_after_a_fallback_the_page_still_shows_the_queues_of_the_moment(clock, scheduler):
    decider = loop_after_two_steps(clock, scheduler, Listens())
    decider.fall_back("a test says so")
    decider.decide()
    scheduler.running_batch.size, scheduler.waiting_queue, scheduler.pool_stats_observer = 3, [], pools(0.125)
    page = decider.status()
    assert (page["policy"]["state"], page["running"], page["waiting"], page["kv_use"]) == ("fallback", 3, 0, 0.125)
    assert (page["slack_s"], page["decode_context_tokens"]) == (None, 0)  # nobody follows them


def test_asking_for_the_page_changes_no_decision(clock, scheduler):
    """KV use is read now and then for decisions: a page does not make that more often."""
    decider = loop_after_two_steps(clock, scheduler, policy := Listens())
    scheduler.pool_stats_observer = pools(0.25)
    clock.now_s = 100.06
    assert decider.status()["kv_use"] == 0.25
    decider.decide()
    assert policy.view.queue.kv_use == 0.5
