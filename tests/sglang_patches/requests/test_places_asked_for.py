"""Places in the waiting queue of requests that bring targets of their own. Stand-ins as of test_waiting."""

import pytest

from roofline_policies.slo.admission import NO_TARGET_S, Rank
from roofline_policies.slo.asking import Asking
from roofline_policies.slo.objectives import Objectives
from sglang_patches.requests.promises import Promises
from sglang_patches.requests.waiting import Waiting
from tests.sglang_patches.requests.test_waiting import OBJECTIVES, SERVER, Request, Times, names, scheduler_of

WIDE = Asking(ttft_s=[0.001, None])


@pytest.fixture
def queue():
    return []


def waiting_on(queue, objectives):
    waiting = Waiting(scheduler_of(queue), Promises(objectives), Times())
    waiting.order(True)
    return waiting


def come(waiting, queue, now_s, *requests):
    waiting.clock_s = now_s
    for request in requests:
        queue.append(request)
        waiting.came(request, retracted=False)


@pytest.mark.parametrize(
    ("priority", "asked", "due_s", "class_due_s"),
    [
        (None, {"ttft_s": 4.0}, 4.0, 10.0),
        (None, {"ttft_s": 1e9}, 10.0, None),
        (None, {"ttft_s": None}, 10.0, None),
        (None, {"ttft_s": None, "e2e_s": 30.0}, 10.0, None),
        (10, {"ttft_s": 10.0}, 1.0, None),
        (0, {"e2e_s": None}, 30.0, None),
        (0, {"e2e_s": None, "ttft_s": 40.0}, 30.0, None),
        (-1, {"ttft_s": 0.5}, 0.5, NO_TARGET_S),
        (-1, {"ttft_s": 1e9}, NO_TARGET_S, None),
        (-1, {"itl_s": 0.1}, NO_TARGET_S, None),
    ],
)
def test_whoever_asks_to_be_due_later_is_due_as_its_class(queue, priority, asked, due_s, class_due_s):
    """A later time would keep it from being passed over where others of its class are."""
    waiting, request = waiting_on(queue, OBJECTIVES), Request("asks", priority=priority, slo=asked)
    come(waiting, queue, 0.0, request)
    ticket = waiting.ticket(request)
    assert (ticket.due_s, ticket.class_due_s) == (due_s, class_due_s)


def test_a_client_that_asks_for_a_long_time_takes_no_place_from_one_that_asks_for_nothing(queue):
    """40 prompts of 1 s each, due after 10 s: whoever asks for a later time is passed over as often as the others."""
    waiting = waiting_on(queue, Objectives(SERVER, requests=WIDE))
    come(waiting, queue, 0.0, *(Request(f"{n}", slo={"ttft_s": 1e3} if n % 2 else None) for n in range(40)))
    waiting.move(waiting.judged(0.0, 0.0, 1.0, 30))
    kept = [request for request in queue if waiting.ticket(request).rank is Rank.IN_TIME]
    assert len(kept) == 10
    assert sum(request.sampling_params.custom_params is not None for request in kept) == 5


def test_one_that_asked_for_an_earlier_time_passes_nobody_that_would_be_late_for_it(queue):
    """8 s and 1.5 s of prefill due at 10 s: behind the second that is due at 5 s the last would be late."""
    waiting = waiting_on(queue, Objectives(SERVER, requests=WIDE))
    come(waiting, queue, 0.0, Request("long", tokens=800), Request("short", tokens=150))
    come(waiting, queue, 0.1, Request("asks", tokens=100, slo={"ttft_s": 5.0}))
    assert names(queue) == ["asks", "long", "short"]
    waiting.move(waiting.judged(0.1, 0.0, 1.0, 30))
    assert names(queue) == ["long", "short", "asks"]
    assert {request.rid: waiting.ticket(request).rank for request in queue} == dict.fromkeys(names(queue), Rank.IN_TIME)
