"""What the decider is told and passes on, and what it does when something in it fails.

Stand-ins take the place of SGLang's Scheduler, its batches and requests; Guarded has what the guard needs of a Loop.
"""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from sglang.srt.model_executor.forward_batch_info import ForwardMode as SglangMode

from roofline_policies.contract.decision import Knob
from roofline_policies.control.controller import STALLED_AFTER
from roofline_policies.policies import Proposal
from roofline_policies.settings.loading import load
from roofline_policies.slo.admission import Rank
from roofline_policies.slo.objectives import Objectives, Slo
from roofline_policies.slo.running_targets import AIM
from sglang_patches import hooks
from sglang_patches.hooks import applier_of, decider_of, join
from sglang_patches.loop import decider as decider_module
from sglang_patches.loop.decider import Decider
from sglang_patches.loop.guard import contained, timed
from sglang_patches.requests import waiting as waiting_module
from sglang_patches.server.facts import Served
from tests.sglang_patches.loop.loop_parts import Listens, Request, Ticks, Times, ran, still_clock, with_one_waiting
from tests.sglang_patches.stand_ins import MODEL, StandInBatch, StandInRunningBatch, StandInTree


class Guarded:
    def __init__(self):
        self.spent_s = 0.0
        self.given_up = []

    def fall_back(self, reason, error=None):
        self.given_up.append((reason, error))

    @timed
    @contained
    def works(self, value):
        return value

    @timed
    @contained
    def fails(self, value):
        raise KeyError(value)


def test_a_result_passes_and_its_time_is_accounted_for():
    served = Guarded()
    assert served.works(3) == 3
    assert served.spent_s > 0
    assert served.given_up == []


def test_a_failure_is_contained_and_gives_the_policy_up():
    served = Guarded()
    assert served.fails("x") is None
    ((reason, error),) = served.given_up
    assert reason == "fails raised KeyError: 'x'"
    assert isinstance(error, KeyError)
    assert served.spent_s > 0


@pytest.fixture
def clock(monkeypatch):
    return still_clock(monkeypatch)


@pytest.fixture
def scheduler():
    return with_one_waiting()


def test_a_loop_needs_no_server_to_find_out_what_is_served(clock, scheduler):
    """Model, timing and predictor come from outside; policies see them, and how far the running requests are."""
    policy, times, request = Listens(), Times(), Request(100, received_s=99.5)
    settings = replace(load("adaptive", overrides=["hardware=h200"]), policy=policy)
    settings = replace(settings, objectives=Objectives(Slo(ttft_s=2.0, itl_s=0.1)))
    decider = Decider(scheduler, settings, Served(MODEL, Ticks, predictor=times))
    join(scheduler, decider.applier, decider)
    assert decider_of(scheduler) is decider
    assert applier_of(scheduler) is applier_of(scheduler.policy) is decider.applier

    prefill = StandInBatch(SglangMode.EXTEND, [100], [0], forward_iter=1, requests=[request])
    ran(decider, clock, prefill, request)
    ran(decider, clock, StandInBatch(SglangMode.DECODE, seq_lens=[101], forward_iter=2, requests=[request]), request)
    clock.now_s = 100.2
    assert decider.decide() is None
    told = policy.view
    assert told.predictor is times
    assert (told.queue.next_prefix_tokens, told.queue.decode_context_tokens) == (64, 101)
    assert told.queue.slack_s == pytest.approx(99.5 + 2.0 + 2 * 0.1 - 100.2)
    assert told.queue.prompt_due_s == pytest.approx(2.0)  # it is first seen now
    assert decider.controller.iterations == 2
    assert decider.controller.last_record.seconds_source == "a test's clock"
    assert decider.controller.last_record.seconds == 0.02

    hooks.add_request_to_queue(None, scheduler, request, True)
    decider.decide()
    assert (policy.view.queue.retractions, policy.view.queue.slack_s) == (1, None)


class TenMsPerToken:
    """And 1 ms per row that decodes."""

    def step_s(self, *, prefill, decode, graph):
        return 0.01 * prefill.new_tokens + 0.001 * decode.requests


def test_what_is_due_is_told_beside_when_the_steps_in_flight_end(clock, scheduler):
    """A prefill step of 1 s whose result has not come: its first token is expected when it ends."""
    policy, request = Listens(), Request(100, received_s=99.5)
    settings = replace(load("adaptive", overrides=["hardware=h200"]), policy=policy)
    settings = replace(settings, objectives=Objectives(Slo(itl_s=0.2, itl_kind="mean_tpot")))
    decider = Decider(scheduler, settings, Served(MODEL, Ticks, predictor=TenMsPerToken()))
    prefill = StandInBatch(SglangMode.EXTEND, [100], [0], forward_iter=1, requests=[request])
    decider.launching(prefill)
    scheduler.model_worker.forward_batch_generation(prefill)
    clock.now_s = 100.25
    decider.launched(prefill)
    decider.decide()
    assert policy.view.free_in_s == pytest.approx(0.75)
    assert policy.view.queue.mean_s == 0.2
    assert policy.view.queue.due_s == pytest.approx(0.75 + AIM * 0.2)
    decode = StandInBatch(SglangMode.DECODE, seq_lens=[101], forward_iter=2, requests=[request])
    decider.launching(decode)
    scheduler.model_worker.forward_batch_generation(decode)
    decider.launched(decode)
    decider.decide()
    assert policy.view.free_in_s == pytest.approx(0.751)
    assert policy.view.queue.due_s == pytest.approx(0.75 + AIM * 0.2)  # one step in flight gives its token first
    clock.now_s = 102.0
    decider.decide()
    assert policy.view.free_in_s == 0.0
    assert decider.controller.fallback_reason is None


def test_a_prompt_is_looked_up_in_the_prefix_cache_as_it_comes(clock, scheduler, monkeypatch):
    """The policy hears of the rest of it, and of the prefixes of those behind it."""
    policy = Listens()
    settings = replace(load("adaptive", overrides=["hardware=h200"]), policy=policy)
    scheduler.tree_cache = StandInTree(shares=True)
    scheduler.tree_cache.protected_size = lambda: 0
    cached = {"a": 96, "b": 512}
    monkeypatch.setattr(
        waiting_module, "match_kv_cache", lambda request, tree: setattr(request, "prefix_len", cached[request.rid])
    )
    decider = Decider(scheduler, settings, Served(MODEL, Ticks, predictor=TenMsPerToken()))
    join(scheduler, decider.applier, decider)
    scheduler.waiting_queue = []
    come(decider, Waits("a", 100, 5.0), Waits("b", 600, 5.0))
    decider.decide()
    queue = policy.view.queue
    assert (queue.next_prefix_tokens, queue.next_prompts) == (96, ((4, 96), (88, 512)))
    assert queue.next_prefill_tokens == 4 + 88
    tickets = [decider.applier.waiting.ticket(request) for request in scheduler.waiting_queue]
    assert [ticket.prefill_s for ticket in tickets] == pytest.approx([0.04, 0.88])


def test_progress_is_forgotten_when_nothing_runs_and_kept_while_the_engine_pauses(clock, scheduler):
    policy, request = Listens(), Request(100, received_s=99.5)
    settings = replace(load("adaptive", overrides=["hardware=h200"]), policy=policy)
    decider = Decider(scheduler, settings, Served(MODEL, Ticks))
    ran(decider, clock, StandInBatch(SglangMode.EXTEND, [100], [0], forward_iter=1, requests=[request]), request)
    for paused in (True, False):
        scheduler._engine_paused = paused
        decider.decide()
    assert policy.view.queue.slack_s == pytest.approx(99.5 + 2.0 + 0.1 - 100.02)
    waiting, running = scheduler.waiting_queue, scheduler.running_batch
    scheduler.waiting_queue, scheduler.running_batch = [], StandInRunningBatch(0)
    decider.decide()
    scheduler.waiting_queue, scheduler.running_batch = waiting, running
    decider.decide()
    assert (policy.view.queue.slack_s, policy.view.queue.decode_context_tokens) == (None, 0)


class Orders:
    """A policy that wants prompts by when they are due, and no one passed over for longer than it says."""

    relegate_for_s = 30

    def propose(self, view):
        return (
            Proposal("Orders", Knob.DEADLINE_ORDER, True, "due times"),
            Proposal("Orders", Knob.RELEGATE_FOR_S, self.relegate_for_s, "not for ever"),
        )


class Waits:
    output_ids = ()
    """A request that waits; each token of it takes 10 ms."""

    prefix_len, is_retracted, positional_embed_overrides = 0, False, None

    def __init__(self, rid, tokens, ttft_s, priority=None):
        self.rid, self.seqlen, self.priority = rid, tokens, priority
        self.sampling_params = SimpleNamespace(max_new_tokens=16, custom_params={"slo": {"ttft_s": ttft_s}})


class PerToken:
    def step_s(self, *, prefill, decode, graph):
        return 0.01 * (prefill.new_tokens + decode.new_tokens)


CLASSES = ("slo.requests.ttft_s=[0.001,null]", "+slo.classes={9: {ttft_s: 9.0}}")


def ordering(scheduler):
    settings = replace(load("adaptive", overrides=["hardware=h200", "slo=none", *CLASSES]), policy=Orders())
    decider = Decider(scheduler, settings, Served(MODEL, Ticks, predictor=PerToken()))
    join(scheduler, decider.applier, decider)
    scheduler.waiting_queue = []
    return decider


def come(decider, *requests):
    for request in requests:
        decider.scheduler.waiting_queue.append(request)
        hooks.add_request_to_queue(None, decider.scheduler, request)


def names(decider):
    return [request.rid for request in decider.scheduler.waiting_queue]


def test_prompts_are_put_in_order_and_those_that_cannot_be_in_time_let_others_pass(clock, scheduler):
    """Where no other rank has to be told, before the chunk is planned for those who go first."""
    decider = ordering(scheduler)
    decider.decide()
    come(decider, Waits("late", 100, 50.0))
    update = decider.decide()
    assert (update.knobs.deadline_order, update.knobs.relegate_for_s, update.clock_s) == (True, 30, 100.0)
    assert not decider.applier.actuator.knobs.deadline_order  # until every rank hears of it
    decider.applier.apply(update)
    come(decider, Waits("soon", 100, 20.0), Waits("hopeless", 1000, 9.0, priority=9))
    assert names(decider) == ["hopeless", "soon", "late"]
    clock.now_s = 100.01
    assert decider.decide() is None  # nothing is left to be told
    assert names(decider) == ["soon", "late", "hopeless"]
    assert decider.controller.queue.next_prompts[0] == (100, 0)
    clock.now_s = 130.5
    decider.decide()
    assert names(decider)[0] == "hopeless"


def test_other_ranks_are_told_who_is_passed_over(clock, scheduler, monkeypatch):
    monkeypatch.setattr(decider_module, "alone", lambda: False)
    decider = ordering(scheduler)
    decider.applier.apply(decider.decide())
    come(decider, Waits("soon", 100, 20.0), Waits("hopeless", 1000, 9.0, priority=9))
    update = decider.decide()
    assert update.moved == {"hopeless": Rank.RELEGATED}
    assert names(decider) == ["hopeless", "soon"]
    decider.applier.apply(update)
    assert names(decider) == ["soon", "hopeless"]
    assert decider.decide().moved == {}  # nothing is left to be told
    clock.now_s = 130.5
    assert decider.decide().moved == {"soon": Rank.RELEGATED, "hopeless": Rank.AGED}


def test_ranks_that_share_a_queue_are_told_the_time_with_every_decision(clock, scheduler, monkeypatch):
    monkeypatch.setattr(decider_module, "alone", lambda: False)
    decider = ordering(scheduler)
    come(decider, Waits("a", 100, 500.0))
    decider.applier.apply(decider.decide())
    clock.now_s = 100.5
    update = decider.decide()
    assert update.clock_s == 100.5
    assert decider.applier.waiting.clock_s == 100.0  # the deciding rank, too, goes by what it has told
    decider.applier.apply(update)
    assert decider.applier.waiting.clock_s == 100.5


def test_a_policy_that_is_given_up_gives_the_queue_back_as_it_came(clock, scheduler):
    decider = ordering(scheduler)
    decider.decide()
    come(decider, Waits("first", 100, 50.0))
    decider.applier.apply(decider.decide())
    clock.now_s = 100.5
    decider.decide()
    come(decider, Waits("second", 100, 5.0))
    assert names(decider) == ["second", "first"]
    decider.fall_back("broken on purpose")
    decider.applier.apply(decider.decide())
    assert names(decider) == ["first", "second"]
    assert decider.applier.chunk_limit(scheduler.waiting_queue[0], 2048, 16) is None
    come(decider, Waits("third", 100, 1.0))
    assert names(decider) == ["first", "second", "third"]


def test_a_request_that_asks_for_nonsense_does_not_end_the_policy(clock, scheduler):
    decider = ordering(scheduler)
    come(decider, Waits("good", 100, 50.0), Waits("bad", 100, "soon"), Waits("huge", 100, 10**400))
    decider.applier.apply(decider.decide())
    assert decider.controller.fallback_reason is None
    assert decider.applier.promises.last.startswith("request huge: custom_params.slo: ttft_s = 1")
    assert set(names(decider)) == {"good", "bad", "huge"}


def test_the_prompt_in_flight_leaves_room_for_those_due_before_it(clock, scheduler):
    decider = ordering(scheduler)
    come(decider, Waits("in flight", 9000, 900.0))
    decider.applier.apply(decider.decide())
    flying = scheduler.waiting_queue.pop()
    come(decider, Waits("soon", 100, 20.0))
    asked = (scheduler.policy, flying, scheduler.waiting_queue, 2048, 16)
    assert hooks.shortest_prefill_chunk_limit(None, *asked) == 2048 - 112


def test_a_retracted_request_goes_first(clock, scheduler):
    decider = ordering(scheduler)
    come(decider, Waits("soon", 100, 1.0))
    decider.applier.apply(decider.decide())
    back = Waits("back", 100, 500.0)
    scheduler.waiting_queue.append(back)
    hooks.add_request_to_queue(None, scheduler, back, True)
    assert names(decider) == ["back", "soon"]
    assert decider.applier.retractions == 1


def test_batches_that_compute_nothing_are_no_steps_that_reported_nothing(clock, scheduler):
    """An attention rank without requests runs empty batches for as long as others have some."""
    settings = replace(load("adaptive", overrides=["hardware=h200"]), policy=Listens())
    decider = Decider(scheduler, settings, Served(MODEL, Ticks, predictor=Times()))
    for iteration in range(2 * STALLED_AFTER):
        batch = StandInBatch(SglangMode.IDLE, forward_iter=iteration)
        decider.launching(batch)
        decider.launched(batch)
    assert decider.status()["policy"]["state"] == "active"
