"""The queue of a server that only prefills, and chunks where nobody can enter. Stand-ins as in ``test_waiting``."""

from sglang.srt.disaggregation.utils import DisaggregationMode

from sglang_patches.requests.promises import Promises
from sglang_patches.requests.waiting import Waiting
from tests.sglang_patches.requests.test_waiting import OBJECTIVES, Request, Times, Tree, names, scheduler_of
from tests.sglang_patches.stand_ins import pools, request_table


def only_prefills(queue):
    scheduler = scheduler_of(queue, tree_cache=Tree(), disaggregation_mode=DisaggregationMode.PREFILL)
    return Waiting(scheduler, Promises(OBJECTIVES), Times())


def test_a_server_that_only_prefills_orders_what_comes_out_of_the_queue_of_transfers():
    """Nobody says there that a request joined the queue: SGLang extends the list once the other server is ready."""
    queue = [Request("late", priority=0), Request("soon", priority=10)]
    waiting = only_prefills(queue)
    waiting.order(True)
    waiting.clock_s = 5.0
    queue += [Request("sooner", priority=10, slo={"ttft_s": 0.5}), Request("last", priority=0)]
    waiting.settle()
    assert names(queue) == ["soon", "sooner", "late", "last"]
    assert [waiting.ticket(one).arrival_s for one in queue] == [0.0, 5.0, 0.0, 5.0]
    waiting.clock_s = 9.0
    waiting.settle()
    assert waiting.ticket(queue[1]).due_s == 5.5  # a ticket is kept


def test_ranks_that_settle_in_the_same_pass_order_alike_whatever_the_deciding_one_looked_at():
    deciding, other = ([Request("b", priority=0), Request("a", priority=10)] for _ in range(2))
    ranks = [only_prefills(deciding), only_prefills(other)]
    for rank in ranks:
        rank.clock_s = 1.0
        rank.settle()  # before an order was asked for
    ranks[0].clock_s = 2.0
    ranks[0].due_s(2.0)
    for rank in ranks:
        rank.clock_s = 2.0
        rank.order(True)
    assert names(deciding) == names(other) == ["a", "b"]
    assert [ranks[0].ticket(one).due_s for one in deciding] == [ranks[1].ticket(one).due_s for one in other]


def test_elsewhere_the_queue_is_not_looked_through_in_every_pass():
    queue = [Request("a")]
    Waiting(scheduler_of(queue), Promises(OBJECTIVES), Times()).settle()
    assert not hasattr(queue[0], "_roofline_ticket")


def test_no_room_is_kept_of_a_chunk_where_no_request_can_enter():
    soon, in_flight = Request("soon", priority=10, tokens=160), Request("in flight", tokens=5000)
    for table, limit in ((request_table(64, held=10), 2048 - 160), (request_table(64, held=64), None)):
        there = scheduler_of([soon], req_to_token_pool=table, pool_stats_observer=pools(0.0, 10**6))
        waiting = Waiting(there, Promises(OBJECTIVES), Times())
        waiting.order(True)
        waiting.ticket(in_flight)
        assert waiting.chunk_limit(in_flight, 2048, 16) == limit
