"""SGLang's real scheduler on a virtual clock: closed forms of its times, and what no setting may change."""

import random
from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest

from roofline_policies.steps.host_time import HostTime
from tests.sglang_patches.virtual.runs import (
    UNIT_S,
    Ask,
    Case,
    Pace,
    admits_nothing,
    clocks_left,
    in_children,
    leaks,
    serve,
)

U = UNIT_S
CHUNKED = ("--chunked-prefill-size", "256")
NO_OVERLAP = ("--disable-overlap-schedule",)
PRESSED = (*CHUNKED, "--schedule-conservativeness", "0.1")

# A second for each, so that all but the pair are alone on an idle server.
ALONE = Case(
    (
        *(Ask(0.0, 100, 8), Ask(1.0, 100, 8), Ask(2.0, 100, 8)),  # their ends are hidden
        *(Ask(3.0, 100, 8, None), Ask(4.0, 100, 8, None)),  # told how many tokens to make
        *(Ask(5.0, 100, 1), Ask(6.0, 100, 1, None), Ask(7.0, 600, 2)),
        *(Ask(8.0, 40, 4), Ask(8.0, 90, 4)),
    ),
    (*CHUNKED, "--disable-radix-cache"),
    script=(
        *(Pace(0, U, 5 * U), Pace(1, 5 * U, U), Pace(2, 4 * U, 4 * U), Pace(3, U, 5 * U), Pace(4, 5 * U, U)),
        *(Pace(5, U, 5 * U), Pace(8, U, 16 * U, request_s=2 * U)),
    ),
)  # fmt: skip


def steps(outcome, index, ask):
    """When a request's tokens came, in units after its arrival."""
    return [(moment - ask.arrival_s) / U for moment in outcome.requests[index].token_s]


@pytest.fixture(scope="module")
def alone():
    """The same requests with the overlap schedule, without it, and with it on a device that the host waits for."""
    cases = [ALONE, replace(ALONE, server_args=(*ALONE.server_args, *NO_OVERLAP)), replace(ALONE, synchronous=True)]
    return in_children(serve, *cases)


def every(gap, first, count=8):
    return [first + gap * n for n in range(count)]


# The overlap schedule launches the next step before it takes the result of one: a host that is longer than the device
# delays results, and a device that the host waits for delays each by a whole step. Where the scheduler knows that a
# step is a request's last, there is no next one.
CLOSED_FORMS = [
    ("overlap", [every(5, 6), every(5, 10), every(4, 8), every(5, 6), [*every(5, 10, 7), 41], [6], [6], [16, 21]]),
    ("no overlap", [*[every(6, 6)] * 2, every(8, 8), *[every(6, 6)] * 2, [6], [6], [18, 24]]),
    ("synchronous", [*[every(6, 12)] * 2, every(8, 16), *[[*every(6, 12, 7), 48]] * 2, [12], [6], [24, 30]]),
]


@pytest.mark.parametrize(("place", "expected"), list(enumerate(CLOSED_FORMS)), ids=[name for name, _ in CLOSED_FORMS])
def test_times_of_a_request_on_an_idle_server_are_those_of_host_and_device(alone, place, expected):
    outcome = alone[place]
    assert outcome.raised is None
    assert [steps(outcome, index, ask) for index, ask in enumerate(ALONE.asks[:8])] == expected[1]
    assert [request.started_s for request in outcome.requests] == [ask.arrival_s for ask in ALONE.asks]


@pytest.mark.parametrize(("place", "expected"), [(0, every(16, 21, 4)), (1, every(21, 21, 4)), (2, every(21, 42, 4))])
def test_requests_of_one_instant_share_their_steps_and_their_host_time(alone, place, expected):
    outcome = alone[place]
    assert steps(outcome, 8, ALONE.asks[8]) == steps(outcome, 9, ALONE.asks[9]) == expected
    (first,) = [one for one in outcome.launches if one.at_s == 8.0]
    assert first.rows == (("8", 40, 0), ("9", 90, 0))


@pytest.mark.parametrize("place", range(3))
def test_every_step_is_launched_priced_and_counted_once(alone, place):
    outcome = alone[place]
    assert len(outcome.launches) == len(outcome.priced_s) == outcome.iterations
    assert outcome.busy_s == sum(outcome.priced_s)
    chunks = [one.rows for one in outcome.launches if one.mode == "EXTEND" and one.rows[0][0] == "7"]
    assert chunks == [(("7", 256, 0),), (("7", 256, 256),), (("7", 88, 512),)]
    for index, ask in enumerate(ALONE.asks):
        rows = [(one.mode, row) for one in outcome.launches for row in one.rows if row[0] == str(index)]
        assert sum(row[1] for mode, row in rows if mode == "EXTEND") == ask.prompt_tokens
        # Under the overlap schedule the scheduler sees that a sequence has ended when its next step has begun.
        extra = place != 1 and ask.cap_tokens is not None
        decoded = [row[2] for mode, row in rows if mode == "DECODE"]
        assert decoded == [ask.prompt_tokens + n for n in range(ask.output_tokens - 1 + extra)]
    assert outcome.idle_checks == len({ask.arrival_s for ask in ALONE.asks})
    assert (outcome.stalls, outcome.retractions, outcome.kv_left) == (0, 0, ALONE.kv_tokens)
    assert outcome.left_behind == []


def mixture(count, seed, *, arrivals, prompt, output, caps, shared=0):
    """Requests of all sizes; every third has an output of one or two tokens."""
    draw, at_s, asks = random.Random(seed), 0.0, []
    for index in range(count):
        at_s += draw.choice(arrivals) * U
        tokens = draw.randint(*output) if index % 3 else draw.choice([1, 2])
        asks.append(Ask(at_s, shared + draw.randint(*prompt), tokens, draw.choice(caps), shared))
    return tuple(asks)


ANY = {"arrivals": (0, 0, 3, 10, 40), "prompt": (1, 600), "output": (1, 120), "caps": (None, 128, 1024)}
SHORT = {"arrivals": (0, 3, 10), "prompt": (1, 60), "output": (60, 160), "caps": (200, 400)}
PRESSURE = Case(mixture(60, 1, **SHORT), PRESSED, kv_tokens=2000)
SERVERS = {
    "plain": Case(mixture(40, 0, **ANY), CHUNKED),
    "mixed": Case(mixture(40, 0, **ANY), (*CHUNKED, "--enable-mixed-chunk")),
    "pressure": PRESSURE,
    "pressure, no overlap": replace(PRESSURE, server_args=(*PRESSED, *NO_OVERLAP)),
    "pressure, mixed, pages": replace(PRESSURE, server_args=(*PRESSED, "--enable-mixed-chunk", "--page-size", "16")),
    "pressure, shared, pages": replace(
        PRESSURE, asks=mixture(60, 1, **SHORT, shared=96), server_args=(*PRESSED, "--page-size", "16")
    ),
}


@pytest.fixture(scope="module")
def served():
    return dict(zip(SERVERS, in_children(serve, *SERVERS.values()), strict=True))


@pytest.mark.parametrize("name", SERVERS)
def test_every_request_gets_exactly_its_tokens_in_order(served, name):
    case, outcome = SERVERS[name], served[name]
    assert outcome.raised is None  # SGLang's checks for leaks raise
    assert outcome.idle_checks > 0
    assert outcome.tokens == [ask.output_tokens for ask in case.asks]
    for ask, request in zip(case.asks, outcome.requests, strict=True):
        assert (request.done, request.error) == (True, None)
        assert ask.arrival_s <= request.started_s < request.token_s[0]
        assert request.token_s == sorted(request.token_s)
    assert outcome.kv_left == case.kv_tokens
    assert outcome.busy_s == sum(outcome.priced_s)


@pytest.mark.parametrize("name", [name for name in SERVERS if "pressure" in name])
def test_memory_pressure_retracts_and_costs_no_token(served, name):
    outcome = served[name]
    assert outcome.retractions == sum(request.retractions for request in outcome.requests) > 0
    if "shared" not in name:
        in_use = [sum(new + before for _, new, before in one.rows) for one in outcome.launches]
        assert 0.8 * PRESSURE.kv_tokens < max(in_use) <= PRESSURE.kv_tokens
    assert max(sample["waiting"] for sample in outcome.samples) > 0
    assert outcome.samples[-1]["retractions"] > 0
    assert outcome.deferrals > 0


def test_decode_rows_ride_in_prefill_steps_where_the_server_mixes(served):
    assert {one.mode for one in served["plain"].launches} == {"EXTEND", "DECODE"}
    mixed = [one for one in served["mixed"].launches if one.mode == "MIXED"]
    assert mixed
    for one in mixed:
        assert sum(new for _, new, _ in one.rows) <= 256
        assert one.rows[-1][1] == 1


@pytest.mark.parametrize(("page", "expected"), [(1, [0, 96, 50, 63, 63]), (16, [0, 96, 48, 48, 48])])
def test_shared_prefixes_are_found_in_the_cache_but_for_a_prompts_last_token(page, expected):
    shared = [Ask(0.0, 100, 3, 64, 96), Ask(1.0, 120, 3, 64, 96), Ask(2.0, 60, 3, 64, 50), Ask(3.0, 64, 3, 64, 64)]
    case = Case((*shared, Ask(4.0, 64, 1, 64, 64)), ("--page-size", str(page)))
    (outcome,) = in_children(serve, case)
    assert [request.cached_tokens for request in outcome.requests] == expected
    prompts = [one.rows[0][1:] for one in outcome.launches if one.mode == "EXTEND"]
    assert prompts == [(ask.prompt_tokens - found, found) for ask, found in zip(case.asks, expected, strict=True)]


def test_an_answer_ends_at_its_cap_and_a_prompt_that_fits_nowhere_is_refused():
    asks = (Ask(0.0, 50, 20, 5), Ask(0.0, 50, 5, 5), Ask(0.0, 9000, 5), Ask(0.0, 50, 5))
    (outcome,) = in_children(serve, Case(asks, script=(Pace(0, U, 4 * U),)))
    assert outcome.tokens == [5, 5, 0, 5]
    assert [request.done for request in outcome.requests] == [True] * 4
    whole, refused = [outcome.requests[index].error for index in (0, 1, 3)], outcome.requests[2]
    assert whole == [None] * 3
    assert "9000 tokens" in refused.error
    assert outcome.requests[0].token_s == [5 * U, 9 * U, 13 * U, 17 * U, 21 * U]


def with_output(asks, index, tokens, cap):
    return tuple(replace(ask, output_tokens=tokens if at == index else ask.output_tokens, cap_tokens=cap)
                 for at, ask in enumerate(asks))  # fmt: skip


def test_the_scheduler_cannot_see_how_long_an_answer_will_be():
    """Until the shorter one has ended. A scheduler that is told does not act alike for so long."""
    cases = [(tokens, cap) for cap in (400, None) for tokens in (70, 180)]
    answers = [replace(PRESSURE, asks=with_output(PRESSURE.asks, 5, *case)) for case in cases]
    short, long, told_short, told_long = in_children(serve, *answers)

    def alike(one, other):
        return next(n for n, pair in enumerate(zip(one.launches, other.launches, strict=False)) if pair[0] != pair[1])

    ended_s = short.requests[5].token_s[-1]
    before = sum(launch.at_s < ended_s for launch in short.launches)
    assert alike(short, long) == before > 50
    for one, other in zip(short.requests, long.requests, strict=True):
        mine, others = ([at for at in request.token_s if at < ended_s] for request in (one, other))
        assert (mine == others) is True
    assert alike(told_short, told_long) < before / 2


ADAPTIVE = replace(PRESSURE, policy="adaptive", overrides=("slo.itl_s=0.006", "controller.dwell_s=0.05"))


@pytest.fixture(scope="module")
def adaptive():
    """The same run in a process at full speed and in one that is slowed down."""
    return in_children(serve, ADAPTIVE, replace(ADAPTIVE, sleep_s=0.002))


def test_nothing_depends_on_real_time(adaptive):
    quick, slowed = adaptive
    assert quick.unlike(slowed) == []  # tokens, launches, decisions, samples and records


def test_chance_is_the_same_in_every_run():
    case = replace(PRESSURE, server_args=(*PRESSED, "--schedule-policy", "random", "--max-running-requests", "4"))
    first, second = in_children(serve, case, case)
    assert first.unlike(second) == []


def test_sglangs_own_delay_is_measured_on_the_virtual_clock():
    """It holds a prompt back until as many wait as came last, for so many milliseconds at most."""
    delayer = ("--enable-prefill-delayer", "--prefill-delayer-queue-min-ratio", "1.0")
    delayer += ("--prefill-delayer-max-delay-ms", "250", "--prefill-delayer-max-delay-passes", "100000")
    delayer += ("--prefill-max-requests", "4")
    asks = (*[Ask(0.0, 50, 400)] * 4, Ask(0.25, 50, 2), Ask(0.5, 50, 2))  # SGLang skips the first delay
    (outcome,) = in_children(serve, Case(asks, delayer, script=(Pace(0, U, 4 * U),)))
    skipped, delayed = outcome.requests[4:]
    assert skipped.started_s - 0.25 < 8 * U
    assert 0.25 <= delayed.started_s - 0.5 < 0.25 + 8 * U
    assert outcome.deferrals >= 0.25 / (4 * U) - 1


KEPT = {
    # The virtual clock's own, which finds the others by it.
    "sglang_patches.virtual.clock.real_time is time",
}


def test_nobody_keeps_a_real_clock():
    (left,) = in_children(clocks_left, replace(ADAPTIVE, asks=PRESSURE.asks[:10]))
    assert set(left) == KEPT


def test_the_loops_records_say_what_the_clock_charged(adaptive):
    outcome = adaptive[0]
    charged = zip(outcome.records, outcome.priced_s, strict=True)
    assert [record for record, priced_s in charged if record["seconds"] != priced_s] == []
    assert {record["seconds_source"] for record in outcome.records} == {"virtual clock"}
    assert [record["iteration"] for record in outcome.records] == list(range(1, outcome.iterations + 1))
    assert all(before["done_s"] < after["done_s"] for before, after in pairwise(outcome.records))


def test_the_policy_stays_in_charge_of_a_device_that_the_host_waits_for():
    """Two results are looked at in the same moment there when the last request ends; no step took no time."""
    (outcome,) = in_children(serve, replace(ADAPTIVE, synchronous=True))
    assert outcome.status["policy"]["state"] == "active"
    assert all(before["done_s"] < after["done_s"] for before, after in pairwise(outcome.records))
    assert all(record["step_s"] >= record["seconds"] * (1 - 1e-9) for record in outcome.records)


def test_decisions_are_in_the_status_and_act(adaptive):
    status = adaptive[0].status
    assert (status["policy"]["name"], status["policy"]["state"]) == ("adaptive", "active")
    assert status["device"] == "NVIDIA H200"
    assert status["predictor"] == "FittedSteps"
    assert status["changes_total"]["prefill_chunk_tokens"] > 0
    assert status["changes_total"]["deadline_order"] > 0
    assert set(status["correction"]) >= {"prefill", "decode"}
    assert "PrefillDeferral" in {change["policy"] for change in status["changes"]}
    assert all(change["reason"] for change in status["changes"])
    assert adaptive[0].tokens == [ask.output_tokens for ask in ADAPTIVE.asks]


def test_a_loop_that_moves_nothing_changes_nothing_and_one_that_fails_is_given_up(served):
    broken = replace(PRESSURE, policy="tests.sglang_patches.own_policies:BreaksAfterAWhile")
    static, fallen = in_children(serve, replace(PRESSURE, policy="static"), broken)
    assert set(static.unlike(served["pressure"])) == {"records", "samples", "status"}  # which only a loop has
    assert static.status["policy"]["state"] == "active"
    assert sum(static.status["changes_total"].values()) == 0

    assert fallen.tokens == [ask.output_tokens for ask in PRESSURE.asks]
    policy = fallen.status["policy"]
    assert (policy["state"], policy["fallback_reason"]) == (
        "fallback",
        "BreaksAfterAWhile raised RuntimeError: broken on purpose",
    )
    assert fallen.status["changes_total"]["max_running_requests"] == 2  # down, and back to the launch setting
    assert fallen.status["knobs"] == static.status["knobs"]
    running = [len(one.rows) for one in fallen.launches]
    assert max(running[10:40]) <= 3 < max(running[60:])


def test_a_traffic_that_is_not_served_ends_with_the_reason():
    two = replace(SERVERS["plain"], asks=(Ask(0.0, 100, 5), Ask(0.0, 100, 5)), host=HostTime(0.0))
    late, stuck, leaking = in_children(
        serve, replace(PRESSURE, most_s=0.5), replace(two, prepare=admits_nothing), replace(two, prepare=leaks)
    )
    unserved = sum(not request.done for request in late.requests)
    assert late.raised == f"TimeIsUp: {unserved} of 60 requests were open after 0.5 s"
    assert 0 < unserved < 60
    assert 0.5 < late.end_s < 0.6
    assert stuck.raised == "Stuck: 2 requests are open and none of them ran for 0.05 s"
    assert (stuck.stalls, stuck.iterations) == (51, 0)
    assert "leak" in leaking.raised  # SGLang's own check, at idle
    assert leaking.tokens == [5, 5]


def test_waiting_in_vain_is_counted_and_ends_when_something_runs():
    asks = (Ask(0.0, 100, 5), Ask(0.0, 100, 5))
    waits = partial(admits_nothing, between=((0.0, 40 * U), (42 * U, 85 * U)))
    case = Case(asks, ("--max-running-requests", "1"), script=(Pace(0, U, U),), prepare=waits)
    (outcome,) = in_children(serve, case)
    assert outcome.raised is None  # 50 in a row would be too many
    assert 60 < outcome.stalls < 90
    assert outcome.tokens == [5, 5]
