"""One prompt at most is part-way through its chunks: SGLang's real scheduler on the virtual clock, where it was two."""

from itertools import pairwise

import pytest

from tests.sglang_patches.virtual.runs import Ask, Case, Pace, in_children, serve

CHUNK = 256
SLOW = (Pace(0.0, 0.0, 0.1),)
"""0.1 s a step: a prompt of 7,900 tokens is part-way for three seconds."""


def own(case, outcome):
    """Requests whose prompt was computed in more than one step, each with the steps it had."""
    steps = {}
    for launch in outcome.launches:
        for rid, new, before in launch.rows:
            if before < case.asks[int(rid)].prompt_tokens:
                steps.setdefault(rid, []).append((launch.at_s, new, before))
    return {rid: taken for rid, taken in steps.items() if len(taken) > 1}


def late_hits(page):
    """A late prompt in flight. Twelve short ones have room beside it; once the first of them are in the cache, the
    others need a token each, and most of the room is left to the long one behind them."""
    asks = (Ask(0.0, 7900, 4, None), *[Ask(2.0, 61, 4, None, 60)] * 12, Ask(2.0, 1000, 4, None))
    return Case(
        asks, ("--chunked-prefill-size", str(CHUNK), "--page-size", str(page)), script=SLOW,
        policy="tests.sglang_patches.own_policies:OrdersByDeadline", overrides=("slo.ttft_s=1",),
    )  # fmt: skip


def hits_on_the_one_in_flight():
    """The short ones begin like the prompt in flight, so that they are in the cache as soon as its first chunk is. They
    came with it, when nothing was; once it is late they have room beside it, far more than they need."""
    asks = (Ask(0.0, 7900, 4, None, 160), *[Ask(0.0, 161, 4, None, 160)] * 10, Ask(0.0, 1000, 4, None))
    return Case(
        asks, ("--chunked-prefill-size", str(CHUNK), "--disable-overlap-schedule"), script=SLOW,
        policy="tests.sglang_patches.own_policies:OrdersByDeadline", overrides=("slo.ttft_s=1",),
    )  # fmt: skip


def two_in_one_pass():
    """A running request takes a token of the chunk, so that a page less one is left beside the first long prompt. The
    second is of a fixed length, which SGLang admits without a prefix cache by a method that cuts to the token."""
    asks = (Ask(0.0, 30, 60, None), Ask(0.5, 1000, 4, 1024), Ask(0.5, 500, 4, None))
    arguments = ("--chunked-prefill-size", "128", "--page-size", "64", "--disable-radix-cache", "--enable-mixed-chunk")
    return Case(asks, arguments, script=SLOW, policy="static")


CASES = {
    "late hits": late_hits(1),
    "late hits, pages": late_hits(16),
    "hits on the one in flight": hits_on_the_one_in_flight(),
    "two in one pass": two_in_one_pass(),
}


@pytest.fixture(scope="module")
def outcomes():
    return dict(zip(CASES, in_children(serve, *CASES.values()), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_prompts_enter_whole_beside_one_that_is_part_way(outcomes, name):
    case, outcome = CASES[name], outcomes[name]
    assert outcome.raised is None
    assert outcome.tokens == [ask.output_tokens for ask in case.asks]
    assert outcome.status["policy"]["state"] == "active"
    spans = sorted((steps[0][0], steps[-1][0]) for steps in own(case, outcome).values())
    assert len(spans) > 1
    assert all(end <= begin for (_, end), (begin, _) in pairwise(spans))


@pytest.mark.parametrize("name", [name for name in CASES if "hits" in name])
def test_what_is_due_before_a_late_prompt_still_enters_beside_it(outcomes, name):
    """Each of the short ones in a step that the one in flight is part of; the long one waits for the end of it."""
    case, outcome = CASES[name], outcomes[name]
    in_flight = {at_s for at_s, _, _ in own(case, outcome)["0"]}
    short = range(1, len(case.asks) - 1)
    started = [outcome.requests[index].started_s for index in range(len(case.asks))]
    assert min(in_flight) < 1.0 < max(in_flight)  # late on the way
    assert {started[index] for index in short} <= in_flight
    assert started[-1] >= max(in_flight)
