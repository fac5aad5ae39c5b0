"""Prompts that may come in the very pass that is decided, and who goes before the one in flight."""

from roofline_policies.slo.admission import Rank
from sglang_patches.requests.waiting import RECENT
from tests.sglang_patches.requests.test_waiting import Request, come, in_flight, queue, tree, waiting

__all__ = ["come", "in_flight", "queue", "tree", "waiting"]


def test_who_may_come_is_like_the_one_of_the_last_prompts_that_had_most_cached(waiting, come):
    assert waiting.newcomer == (0, 0)
    come(0.0, Request("a", cached=5), Request("b", tokens=120, cached=90), Request("c", tokens=60, cached=7))
    assert waiting.newcomer == (30, 90)
    come(1.0, *(Request(f"{number}", cached=6) for number in range(RECENT - 1)))
    assert waiting.newcomer == (53, 7)
    come(2.0, Request("d", tokens=50, cached=6))
    assert waiting.newcomer[1] == 6


def test_who_comes_is_first_where_nobody_waits_or_others_are_passed(waiting, queue, come):
    assert waiting.newcomer_first
    come(0.0, Request("a"))
    assert not waiting.newcomer_first
    waiting.order(True)
    assert not waiting.newcomer_first
    waiting.move({"a": Rank.RELEGATED})
    assert waiting.newcomer_first
    waiting.move({"a": Rank.AGED})
    assert not waiting.newcomer_first


def test_whether_the_prompt_in_flight_is_late_and_who_is_due_before_it(waiting, come, in_flight):
    assert (waiting.in_flight_is_late, waiting.due_before()) == (False, 0)  # there is none
    waiting._scheduler.chunked_req = in_flight
    waiting.ticket(in_flight)
    come(
        1.0,
        Request("sooner", tokens=100, priority=10),
        Request("sooner too", tokens=500, priority=10),
        Request("later"),
    )
    assert (waiting.in_flight_is_late, waiting.due_before()) == (False, 2)
    waiting.clock_s = 11.0
    assert (waiting.in_flight_is_late, waiting.due_before()) == (True, 3)
