"""SGLang's waiting queue in order. Stand-ins take the place of its Scheduler and its requests."""

from types import SimpleNamespace

import pytest

from roofline_policies.model.batch import BatchShape
from roofline_policies.slo.admission import LEAST_IN_FLIGHT, NO_TARGET_S, Rank
from roofline_policies.slo.asking import Asking
from roofline_policies.slo.objectives import Objectives, Slo
from sglang_patches import hooks
from sglang_patches.requests.promises import Promises
from sglang_patches.requests.waiting import Waiting
from tests.sglang_patches.stand_ins import StandInTree, stand_in_scheduler

SERVER = Slo(ttft_s=10.0, itl_s=0.1)
OBJECTIVES = Objectives(SERVER, {10: Slo(ttft_s=1.0), 0: Slo(e2e_s=30.0), -1: Slo()}, Asking(ttft_s=[0.001, None]))


class Request:
    """One that waits; ``slo`` as a client sends it, ``cached`` what of it the prefix cache has."""

    positional_embed_overrides = None

    def __init__(self, rid, tokens=100, priority=None, slo=None, cached=0, custom=None):
        self.rid, self.seqlen, self.priority, self.prefix_len, self.cached = rid, tokens, priority, 0, cached
        custom = {"slo": slo} if slo is not None else custom
        self.sampling_params = SimpleNamespace(max_new_tokens=16, custom_params=custom)

    def __repr__(self):
        return self.rid


class Times:
    """10 ms per prompt token, whatever it attends to."""

    asked = 0

    def step_s(self, *, prefill, decode, graph):
        self.asked += 1
        new, cached = prefill.new_tokens, prefill.context_tokens - prefill.new_tokens
        pairs = new * cached + new * (new + 1) // 2
        assert prefill == BatchShape(1, new, new + cached, new * (new + cached), pairs, 1)
        assert (decode, graph) == (BatchShape(), False)
        self.cached = cached
        return 0.01 * prefill.new_tokens


class Tree(StandInTree):
    """A prefix cache that has of a prompt what the prompt says; matched: who was looked up."""

    def __init__(self, shares=True):
        super().__init__(shares)
        self.matched = []


def scheduler_of(queue, **fields):
    return stand_in_scheduler(**{"waiting_queue": queue, "tree_cache": Tree(), "chunked_req": None, **fields})


@pytest.fixture
def queue():
    return []


@pytest.fixture
def tree():
    return Tree()


@pytest.fixture
def waiting(queue, tree):
    return Waiting(scheduler_of(queue, tree_cache=tree), Promises(OBJECTIVES), Times())


@pytest.fixture
def come(waiting, queue):
    """Requests as SGLang appends them, each at its own time."""

    def come(now_s, *requests, retracted=False):
        waiting.clock_s = now_s
        for request in requests:
            queue.append(request)
            waiting.came(request, retracted=retracted)

    return come


def names(queue):
    return [request.rid for request in queue]


def test_until_an_order_is_asked_for_the_queue_is_sglangs(waiting, queue, come):
    come(0.0, Request("a"), Request("b", priority=10), Request("c"))
    assert names(queue) == ["a", "b", "c"]
    assert waiting.judged(999.0, 0.0, 1.0, 30) == {}
    waiting.move({"a": Rank.RELEGATED})
    assert names(queue) == ["a", "b", "c"]
    assert waiting.chunk_limit(queue[0], 2048, 16) is None
    assert waiting.relegated == 0


def test_prompts_wait_by_when_they_are_due(waiting, queue, come):
    come(0.0, Request("server"), Request("fast", priority=10), Request("end", priority=0), Request("none", priority=-1))
    waiting.order(True)
    assert names(queue) == ["fast", "server", "end", "none"]
    come(9.5, Request("fast later", priority=10), Request("own", slo={"ttft_s": 0.25}))
    assert names(queue) == ["fast", "own", "server", "fast later", "end", "none"]
    assert [waiting.ticket(request).due_s for request in queue] == [1.0, 9.75, 10.0, 10.5, 30.0, NO_TARGET_S]
    waiting.order(False)
    assert set(names(queue)[:4]) == {"end", "fast", "none", "server"}  # by when they came, as far as that is known


def test_who_has_no_target_is_not_starved_by_those_that_have_one(waiting, queue, come):
    waiting.order(True)
    come(0.0, Request("none", priority=-1))
    come(NO_TARGET_S, Request("server"))
    assert names(queue) == ["none", "server"]


def test_a_retracted_request_goes_first_whatever_is_due(waiting, queue, come):
    waiting.order(True)
    come(0.0, Request("fast", priority=10))
    back = Request("back")
    come(5.0, back, retracted=True)
    assert names(queue) == ["back", "fast"]
    assert waiting.ticket(back).rank is Rank.AGED


def test_a_retracted_request_goes_first_also_where_the_order_is_adopted_later(waiting, queue, come):
    come(0.0, Request("fast", priority=10))
    come(5.0, Request("back"), retracted=True)
    waiting.order(True)
    assert names(queue) == ["back", "fast"]


def test_a_request_that_was_refused_or_passed_on_is_left_alone(waiting, queue, come):
    waiting.order(True)
    come(0.0, Request("a"))
    waiting.came(Request("refused", priority=10), retracted=False)
    assert names(queue) == ["a"]
    queue.clear()
    waiting.came(Request("passed on"), retracted=False)
    assert queue == []


def test_the_queue_may_be_replaced_by_its_owner(waiting, queue, come):
    waiting.order(True)
    come(0.0, Request("a"), Request("fast", priority=10))
    waiting._scheduler.waiting_queue = [queue[1]]
    request = Request("own", slo={"ttft_s": 0.1})
    waiting._scheduler.waiting_queue.append(request)
    waiting.came(request, retracted=False)
    assert names(waiting._scheduler.waiting_queue) == ["own", "a"]


def test_a_prompt_is_priced_once(waiting, queue, come):
    come(0.0, *[Request(str(n), tokens=n + 1) for n in range(20)])
    waiting.order(True)
    for _ in range(5):
        waiting.judged(1.0, 0.0, 1.0, 30)
    assert waiting._times.asked == 20
    assert [waiting.ticket(request).prefill_s for request in queue] == pytest.approx([0.01 * n for n in range(1, 21)])


def test_a_prompt_costs_what_of_it_is_not_cached_when_it_comes(waiting, tree, come):
    """The tokens in the cache are attended to, and not computed."""
    request = Request("hit", tokens=1000, cached=960)
    come(2.0, request)
    ticket = waiting.ticket(request)
    assert (ticket.arrival_s, ticket.due_s, ticket.tokens) == (2.0, 12.0, 40)
    assert ticket.prefill_s == pytest.approx(0.4)
    assert (waiting._times.cached, request.prefix_len) == (960, 960)


def test_the_cache_is_asked_once_as_a_prompt_comes_also_after_a_retraction(waiting, queue, tree, come):
    request = Request("a", tokens=100, cached=64)
    come(0.0, request)
    request.cached, waiting.clock_s = 96, 3.0  # what is found later changes no place
    waiting.order(True)
    waiting.judged(3.0, 0.0, 1.0, 30)
    queue.clear()
    come(4.0, request, retracted=True)
    assert tree.matched == ["a"]
    assert (waiting.ticket(request).tokens, waiting.ticket(request).arrival_s) == (36, 0.0)


def test_a_request_that_has_to_end_is_due_as_long_before_as_its_answer_takes(waiting, queue, come):
    waiting.order(True)
    waiting.answer_s = 3.0
    come(0.0, Request("whole", priority=0), Request("both", priority=0, slo={"ttft_s": 28.0}))
    assert [waiting.ticket(request).due_s for request in queue] == [27.0, 27.0]
    waiting.answer_s = 0.5
    come(0.0, Request("first", priority=0, slo={"ttft_s": 28.0}))
    assert waiting.ticket(queue[-1]).due_s == 28.0


def test_a_prompt_that_is_cached_whole_still_computes_a_token(waiting, come):
    request = Request("known", tokens=128, cached=128)
    come(0.0, request)
    assert waiting.ticket(request).tokens == 1
    assert waiting.ticket(request).prefill_s == pytest.approx(0.01)


def test_nothing_is_looked_up_where_no_prefix_is_shared(waiting, tree, come):
    tree.shares = False
    request = Request("a", tokens=1000, cached=960)
    come(0.0, request)
    assert (tree.matched, waiting.ticket(request).tokens, request.prefix_len) == ([], 1000, 0)


def test_a_prompt_of_replaced_embeddings_shares_no_prefix(waiting, tree, come):
    """Equal tokens are not equal then."""
    request = Request("a", tokens=1000, cached=960)
    request.positional_embed_overrides = object()
    come(0.0, request)
    assert (tree.matched, waiting.ticket(request).tokens, request.prefix_len) == ([], 1000, 0)


def test_ranks_that_predict_nothing_look_up_the_same(queue):
    """Looking up moves what the cache evicts first, so that it has to happen everywhere or nowhere."""
    other = Tree()
    waiting = Waiting(scheduler_of(queue, tree_cache=other), Promises(OBJECTIVES), None)
    queue.append(Request("a", cached=64))
    waiting.came(queue[0], retracted=False)
    assert other.matched == ["a"]
    assert (waiting.ticket(queue[0]).tokens, waiting.ticket(queue[0]).prefill_s) == (36, 0.0)


def test_a_long_prompt_that_is_cached_is_in_time_and_the_same_one_that_is_not_is_not(waiting, queue, come):
    waiting.order(True)
    come(0.0, Request("hit", tokens=5000, cached=4800), Request("miss", tokens=5000))
    assert waiting.judged(0.0, 0.0, 1.0, 30) == {"miss": Rank.RELEGATED}


def test_those_that_cannot_be_in_time_let_others_pass_until_they_have_aged(waiting, queue, come):
    """8 s, 7 s and 2 s of prefill, all due at 10 s: without the longest the other two are in time."""
    waiting.order(True)
    come(0.0, Request("a", tokens=800), Request("b", tokens=700), Request("c", tokens=200))
    assert waiting.judged(0.0, 0.0, 0.5, 30) == {}
    moved = waiting.judged(0.0, 0.0, 1.0, 30)
    assert moved == {"a": Rank.RELEGATED}
    assert names(queue) == ["a", "b", "c"]  # nothing has moved yet
    waiting.move(moved)
    assert names(queue) == ["b", "c", "a"]
    assert waiting.judged(0.0, 0.0, 1.0, 30) == {}
    assert waiting.relegated == 1
    come(20.0, Request("d"))
    assert names(queue) == ["b", "c", "d", "a"]
    aged = waiting.judged(30.5, 0.0, 1.0, 30)
    assert aged["a"] is Rank.AGED
    waiting.move({"a": Rank.AGED, "gone by now": Rank.AGED})
    assert names(queue)[0] == "a"
    assert waiting.judged(31.0, 0.0, 1.0, 30).get("a") is None
    assert waiting.relegated == 0


def test_zero_seconds_pass_nobody_over_and_take_back_those_that_were(waiting, queue, come):
    waiting.order(True)
    come(0.0, Request("a", tokens=8000), Request("b"))
    assert waiting.judged(1.0, 0.0, 1.0, 0) == {}
    waiting.move({"a": Rank.RELEGATED})
    assert waiting.judged(1.0, 0.0, 1.0, 0) == {"a": Rank.AGED}


def test_where_nothing_is_predicted_nobody_is_known_to_be_late(queue):
    waiting = Waiting(scheduler_of(queue), Promises(OBJECTIVES), None)
    waiting.order(True)
    queue.append(Request("a", tokens=10**6))
    waiting.came(queue[0], retracted=False)
    assert waiting.judged(500.0, 0.0, 1.0, 30) == {}
    assert waiting.ticket(queue[0]).prefill_s == 0.0


def test_a_rank_that_does_not_decide_comes_to_the_same_order(queue):
    """What moves is told, and so is the time."""
    deciding, other = [], []
    ranks = [
        Waiting(scheduler_of(deciding), Promises(OBJECTIVES), Times()),
        Waiting(scheduler_of(other), Promises(OBJECTIVES), None),
    ]
    for now_s, requests in [(0.0, [("a", 800, None), ("b", 700, 10), ("c", 200, None)]), (3.0, [("d", 5000, 0)])]:
        told = ranks[0].judged(now_s, 0.0, 1.0, 30)
        for rank, queue in zip(ranks, (deciding, other), strict=True):
            rank.clock_s = now_s
            rank.order(True)
            rank.move(told)
            for rid, tokens, priority in requests:
                queue.append(Request(rid, tokens, priority))
                rank.came(queue[-1], retracted=rid == "c")
        assert names(deciding) == names(other)
    told = ranks[0].judged(9.0, 0.0, 1.0, 30)
    assert Rank.RELEGATED in told.values()
    for rank in ranks:
        rank.move(told)
    assert names(deciding) == names(other)


@pytest.fixture
def in_flight(waiting):
    """A prompt part-way through its chunks, due at 10 s."""
    waiting.order(True)
    return Request("in flight", tokens=9000)


def test_prompts_due_before_the_one_in_flight_have_room_beside_it(waiting, come, in_flight):
    waiting.ticket(in_flight)
    assert waiting.chunk_limit(in_flight, 2048, 16) is None
    come(1.0, Request("later", tokens=50))
    assert waiting.chunk_limit(in_flight, 2048, 16) is None  # it is due after it
    come(1.0, Request("sooner", tokens=100, priority=10), Request("sooner too", tokens=500, priority=10, cached=300))
    assert waiting.chunk_limit(in_flight, 2048, 16) == 2048 - 112 - 208  # whole pages, without what is cached


def test_one_in_flight_that_will_be_late_steps_back_and_is_not_waited_for(waiting, queue, come, in_flight):
    """90 s of prefill, due at 10 s. Who does not fit beside it would be late behind it."""
    waiting._scheduler.chunked_req = in_flight
    waiting.ticket(in_flight)
    come(1.0, Request("fits", tokens=100), Request("long", tokens=300))
    moved = waiting.judged(1.0, 90.0, 1.0, 30, soon_s=1.0, chunk_tokens=256)
    assert moved == {"in flight": Rank.RELEGATED, "long": Rank.RELEGATED}
    other = Waiting(scheduler_of([], chunked_req=Request("in flight", tokens=9000)), Promises(OBJECTIVES), None)
    other.order(True)
    for rank in (waiting, other):
        rank.move({"in flight": Rank.RELEGATED})
        assert rank.ticket(rank._scheduler.chunked_req).rank is Rank.RELEGATED
        assert rank.in_flight_is_late
    assert waiting.due_before() == 2
    assert waiting.judged(1.0, 90.0, 1.0, 30, soon_s=1.0, chunk_tokens=256) == {"long": Rank.RELEGATED}
    assert waiting.judged(1.0, 90.0, 1.0, 30, soon_s=1.0, chunk_tokens=2048) == {}
    assert waiting.chunk_limit(in_flight, 2048, 16) == 2048 - 112 - 304


def test_prompts_that_do_not_fit_beside_it_get_no_room(waiting, come, in_flight):
    waiting.ticket(in_flight)
    come(0.0, Request("short", tokens=160, priority=10), Request("long", tokens=5000, priority=10))
    assert waiting.chunk_limit(in_flight, 2048, 16) == 2048 - 160
    come(0.0, Request("before", tokens=5000, slo={"ttft_s": 0.1}))
    assert waiting.chunk_limit(in_flight, 2048, 16) is None  # the first that waits is not passed by the second


@pytest.mark.parametrize(("budget", "page"), [(2048, 16), (512, 16), (128, 64), (2048, 1)])
def test_the_one_in_flight_always_gets_its_part(waiting, come, in_flight, budget, page):
    waiting.ticket(in_flight)
    come(0.0, *[Request(str(n), tokens=37, priority=10) for n in range(200)])
    limit = waiting.chunk_limit(in_flight, budget, page)
    assert limit >= max(page, budget // LEAST_IN_FLIGHT // page * page)
    assert limit % page == 0


def test_one_in_flight_that_is_late_already_is_due_after_everybody(waiting, come, in_flight):
    waiting.ticket(in_flight)
    come(10.5, Request("due at 20.5", tokens=160))
    assert waiting.chunk_limit(in_flight, 2048, 16) == 2048 - 160


def test_relegated_prompts_get_no_room(waiting, come, in_flight):
    waiting.ticket(in_flight)
    come(0.0, Request("late", tokens=160, priority=10))
    waiting.move({"late": Rank.RELEGATED})
    assert waiting.chunk_limit(in_flight, 2048, 16) is None


@pytest.mark.parametrize(
    ("sglangs", "ours", "limit"), [(None, None, None), (64, None, 64), (None, 32, 32), (64, 32, 32), (16, 32, 16)]
)
def test_of_two_limits_the_smaller_holds(sglangs, ours, limit):
    policy = SimpleNamespace(_roofline_applier=SimpleNamespace(chunk_limit=lambda *asked: ours))
    assert hooks.shortest_prefill_chunk_limit(sglangs, policy, "request", [], 2048, 16) == limit
    assert hooks.shortest_prefill_chunk_limit(sglangs, SimpleNamespace(), "request", [], 2048, 16) == sglangs


def test_a_request_that_asks_for_nonsense_has_a_place_all_the_same(waiting, queue, come):
    waiting.order(True)
    come(0.0, Request("bad", priority=10, slo=3), Request("good"))
    assert names(queue) == ["bad", "good"]
    assert waiting.judged(0.0, 0.0, 1.0, 30) == {}
