"""Traffic that is drawn: sessions and mixtures, their lengths, rates and prefixes, and the kinds that are shipped."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.composition import read_config
from bench.live.prompts import PromptBuilder
from bench.traffic import Request, load_traffic
from bench.traffic.drawn.lengths import LogNormal
from bench.traffic.drawn.mixture import Shape, draw_mixture
from bench.traffic.drawn.sessions import BLOCK_TOKENS, MOST_BLOCKS, Sessions, draw_sessions
from roofline_policies.errors import InputError

SHORT = Shape("short", 20.0, LogNormal(100, 0.8, 1, 900), LogNormal(30, 0.5, 5, 60))
GIANT = Shape("giant", 0.5, LogNormal(50_000, 0.6, 30_000, 100_000), LogNormal(200))
AGENTS = Sessions(
    "agents", open=5, starts_per_s=0.0, calls=1e9, gap_s=LogNormal(2.0, 0.5), shared_tokens=1000,
    first=LogNormal(2000, 0.5, 500, 4000), turn=LogNormal(150, 0.5, 1, 400), tail=LogNormal(300, 0.8, 0, 900),
    output=LogNormal(40, 0.5, 1, 100), most_prompt_tokens=100_000,
)  # fmt: skip
CHAT = replace(AGENTS, name="chat", open=0, starts_per_s=3.0, calls=4.0, shared_tokens=200, tail=LogNormal(0.0))

KINDS = ("agents", "chat", "sessions", "giants", "bimodal", "reasoning", "mixture")


def within(lengths: Sequence[int], wanted: LogNormal) -> bool:
    return min(lengths) >= wanted.least and (wanted.most is None or max(lengths) <= wanted.most)


def by_session(requests: Sequence[Request]) -> dict[int, list[Request]]:
    """By the session's own blocks, which every history here is long enough to have."""
    found: dict[int, list[Request]] = {}
    for request in requests:
        found.setdefault(request.prefix_blocks[-1] // MOST_BLOCKS, []).append(request)
    return found


def test_log_normal_lengths_keep_their_median_their_spread_and_their_bounds() -> None:
    drawn = [LogNormal(1000, 0.5).tokens(np.random.default_rng((1, n))) for n in range(4000)]
    assert float(np.median(drawn)) == pytest.approx(1000, rel=0.04)
    assert float(np.std(np.log(drawn))) == pytest.approx(0.5, abs=0.02)
    cut = [LogNormal(1000, 0.5, 700, 1500).tokens(np.random.default_rng((1, n))) for n in range(4000)]
    assert cut == [min(1500, max(700, length)) for length in drawn]
    assert LogNormal(17).tokens(np.random.default_rng(0)) == 17


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_equal_seeds_give_equal_traffic_in_order_of_arrival(seed: int) -> None:
    for draw in (
        lambda s: list(draw_mixture([SHORT, GIANT], 4.0, s)),
        lambda s: list(draw_sessions([AGENTS, CHAT], 8.0, s)),
    ):
        requests = draw(seed)
        assert requests == draw(seed)
        assert requests != draw(seed + 1)
        assert [r.arrival_s for r in requests] == sorted(r.arrival_s for r in requests)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), duration_s=st.floats(1.0, 20.0))
def test_a_longer_duration_and_other_kinds_leave_requests_as_they_are(seed: int, duration_s: float) -> None:
    shorts = list(draw_mixture([SHORT], duration_s, seed))
    longer = draw_mixture([SHORT, GIANT], 2 * duration_s, seed)
    assert shorts == [r for r in longer if r.phase == "short" and r.arrival_s < duration_s]
    agents = list(draw_sessions([AGENTS], duration_s, seed))
    both = draw_sessions([AGENTS, CHAT], 2 * duration_s, seed)
    assert agents == [r for r in both if r.phase == "agents" and r.arrival_s < duration_s]


def test_the_rates_of_shapes_add_up() -> None:
    requests = list(draw_mixture([SHORT, GIANT, replace(SHORT, name="more")], 500.0, 3))
    counts = [sum(r.phase == name for r in requests) for name in ("short", "giant", "more")]
    assert sum(counts) == len(requests)
    for count, expected in zip(counts, (10_000, 250, 10_000), strict=True):
        assert abs(count - expected) < 5 * math.sqrt(expected)  # five standard deviations of a Poisson count
    assert abs(len(requests) - 20_250) < 5 * math.sqrt(20_250)


def test_lengths_of_a_mixture_keep_the_bounds_of_their_shape() -> None:
    requests = list(draw_mixture([SHORT, GIANT], 200.0, 0))
    for shape in (SHORT, GIANT):
        mine = [r for r in requests if r.phase == shape.name]
        assert within([r.prompt_tokens for r in mine], shape.prompt)
        assert within([r.output_tokens for r in mine], shape.output)
        assert not any(r.prefix_blocks for r in mine)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_the_prompts_of_a_session_extend_each_other(seed: int) -> None:
    """By at least the answer and the least turn, at most the longest of both; what is left of the prompt is the tail,
    and less than a block that is not whole."""
    for calls in by_session(list(draw_sessions([AGENTS], 30.0, seed))).values():
        assert len(calls) > 3
        for call, later in pairwise(calls):
            assert later.prefix_blocks[: len(call.prefix_blocks)] == call.prefix_blocks
            assert later.arrival_s > call.arrival_s
        for call in calls:
            assert 0 <= call.prompt_tokens - len(call.prefix_blocks) * BLOCK_TOKENS < 900 + BLOCK_TOKENS
        first, last = calls[0], calls[-1]
        assert within([first.prompt_tokens - 1000], LogNormal(0, least=500, most=4000 + 900))
        grown = (len(last.prefix_blocks) - len(first.prefix_blocks)) * BLOCK_TOKENS
        answers = sum(call.output_tokens for call in calls[:-1])
        turns = len(calls) - 1
        assert answers + turns - BLOCK_TOKENS < grown < answers + 400 * turns + BLOCK_TOKENS


def test_a_session_without_a_tail_is_its_history_to_the_token() -> None:
    """Lengths that are all alike: 300 + 200 at first, then 40 of the answer and 150 of the turn."""
    fixed = replace(
        CHAT, first=LogNormal(300), turn=LogNormal(150), output=LogNormal(40), open=1, starts_per_s=0.0, calls=1e9,
        most_prompt_tokens=1500,
    )  # fmt: skip
    calls = list(draw_sessions([fixed], 1000.0, 0))
    assert [call.prompt_tokens for call in calls] == [500, 690, 880, 1070, 1260, 1450]  # 1640 would be longer than most
    assert [len(call.prefix_blocks) for call in calls] == [3, 5, 6, 8, 9, 11]


def test_sessions_share_what_their_kind_shares_and_no_more() -> None:
    """1,000 tokens are seven whole blocks of 128; the eighth holds tokens of the session's own."""
    sessions = by_session(list(draw_sessions([AGENTS, replace(AGENTS, name="others")], 10.0, 0)))
    assert len(sessions) == 10
    firsts = [calls[0] for calls in sessions.values()]
    for one in firsts:
        for other in firsts:
            common = set(one.prefix_blocks) & set(other.prefix_blocks)
            assert len(common) == (len(one.prefix_blocks) if one is other else 7 if one.phase == other.phase else 0)


def test_equal_blocks_become_equal_tokens() -> None:
    """What SGLang's radix cache will find: the whole blocks of the call before, and nothing of another session."""
    requests = list(draw_sessions([AGENTS], 20.0, 0))
    prompts, place = PromptBuilder(0, 32_000), {id(request): index for index, request in enumerate(requests)}
    first, second = list(by_session(requests).values())[:2]
    tokens = [prompts.tokens(call, place[id(call)]) for call in (first[0], first[1], second[0])]
    assert [len(one) for one in tokens] == [first[0].prompt_tokens, first[1].prompt_tokens, second[0].prompt_tokens]
    common = [next(i for i, (a, b) in enumerate(zip(tokens[0], other, strict=False)) if a != b) for other in tokens[1:]]
    assert common[0] >= len(first[0].prefix_blocks) * BLOCK_TOKENS
    assert common[0] < len(first[0].prefix_blocks) * BLOCK_TOKENS + 8
    assert 7 * BLOCK_TOKENS <= common[1] < 7 * BLOCK_TOKENS + 8


def test_sessions_begin_at_their_rate_and_have_their_mean_of_calls() -> None:
    """3 sessions per second of 4 calls each, and all of them over in time."""
    requests = list(draw_sessions([replace(CHAT, gap_s=LogNormal(0.01))], 1000.0, 0))
    sessions = by_session(requests)
    assert abs(len(sessions) - 3000) < 5 * math.sqrt(3000)
    spread = math.sqrt(4 * 3 / len(sessions))  # of the mean of so many geometric counts
    assert abs(len(requests) / len(sessions) - 4.0) < 5 * spread


def test_sessions_that_are_open_come_within_a_gap_and_their_gaps_are_as_asked_for() -> None:
    agents = replace(AGENTS, open=400, gap_s=LogNormal(2.0))
    sessions = by_session(list(draw_sessions([agents], 30.0, 0)))
    assert len(sessions) == 400
    begins = [calls[0].arrival_s for calls in sessions.values()]
    assert 0.0 <= min(begins) < max(begins) < 2.0
    assert float(np.mean(begins)) == pytest.approx(1.0, abs=0.15)
    for calls in sessions.values():
        assert np.diff([call.arrival_s for call in calls]) == pytest.approx(2.0)


def test_a_session_is_of_one_class() -> None:
    conf = read_config("virtual", ["traffic=agents"])["traffic"]
    kind = {**conf["sessions"][0], "classes": [{"priority": 10, "share": 0.5}, {"priority": 0, "share": 0.5}]}
    requests = load_traffic({**conf, "sessions": [kind]}, 0).requests
    of_sessions = [{call.priority for call in calls} for calls in by_session(requests).values()]
    assert all(len(one) == 1 for one in of_sessions)
    assert set().union(*of_sessions) == {0, 10}
    assert [r.arrival_s for r in requests] == [r.arrival_s for r in load_traffic(conf, 0).requests]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_that_is_shipped_is_drawn_within_its_own_bounds(kind: str) -> None:
    conf = read_config("virtual", [f"traffic={kind}"])["traffic"]
    traffic = load_traffic(conf, 5)
    assert traffic.clipped == 0
    assert len(traffic.requests) > 100
    assert traffic == load_traffic(conf, 5)
    for one in conf.get("shapes", conf.get("sessions")):
        mine = [r for r in traffic.requests if r.phase == one["name"]]
        assert mine
        assert max(r.output_tokens for r in mine) <= one["output"]["most"]
        most = one["prompt"]["most"] if "prompt" in one else one["most_prompt_tokens"]
        assert max(r.prompt_tokens for r in mine) <= most
        if "prompt" in one:
            assert min(r.prompt_tokens for r in mine) >= one["prompt"].get("least", 1)
        else:
            assert all(r.prefix_blocks for r in mine)


def test_drawn_traffic_is_cut_scaled_and_given_classes_like_any_other() -> None:
    conf = read_config("virtual", ["traffic=chat"])["traffic"]
    plain = load_traffic(conf, 0).requests
    faster = load_traffic({**conf, "rate_scale": 4.0, "start_s": 10.0, "classes": [{"priority": 7, "share": 1}]}, 0)
    kept = [r for r in plain if r.arrival_s >= 10.0]
    assert [r.arrival_s for r in faster.requests] == pytest.approx([(r.arrival_s - 10.0) / 4 for r in kept])
    assert [r.prefix_blocks for r in faster.requests] == [r.prefix_blocks for r in kept]
    assert {r.priority for r in faster.requests} == {7}


SHAPE: dict[str, Any] = {"name": "a", "rate_per_s": 1, "prompt": {"median": 50}, "output": {"median": 5}}
SESSION: dict[str, Any] = {
    "name": "a", "open": 2, "calls": 3, "gap_s": {"median": 1}, "first": {"median": 50}, "turn": {"median": 5},
    "output": {"median": 5}, "most_prompt_tokens": 1000,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rate_per_s": 0}, "traffic.shapes[0]: rate_per_s = 0: is out of range; allowed: a number > 0"),
        ({"prompt": 50}, "traffic.shapes[0].prompt: 50: is not a section of keys and values"),
        ({"prompt": {"median": 0}}, "traffic.shapes[0].prompt: median = 0: is out of range; allowed: a number >= 1"),
        ({"prompt": {"sigma": 1}}, "traffic.shapes[0].prompt: median: is missing"),
        ({"output": {"median": 5, "sigma": -1}}, "traffic.shapes[0].output: sigma = -1: is out of range"),
        ({"output": {"median": 5, "least": 0}}, "traffic.shapes[0].output: least = 0: is out of range"),
        (
            {"output": {"median": 5, "least": 9, "most": 8}},
            "traffic.shapes[0].output: most = 8: is below least; allowed: whole number >= 9",
        ),
        ({"output": {"mean": 5}}, "traffic.shapes[0].output: mean = 5: unknown key; allowed: median, sigma, least, mo"),
        ({"prompt_median": 5}, "traffic.shapes[0]: prompt_median = 5: unknown key; allowed: name, rate_per_s, prompt"),
        ({"classes": [{"priority": 1}]}, "traffic.shapes[0].classes[0]: share: is missing"),
    ],
)
def test_shapes_that_cannot_be_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match="^" + re.escape(message)):
        load_traffic({"kind": "mixture", "duration_s": 10, "shapes": [{**SHAPE, **change}]}, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"open": 0}, "traffic.sessions[0]: open = 0: has no session; allowed: open or starts_per_s above 0"),
        ({"open": 1.5}, "traffic.sessions[0]: open = 1.5: is not a whole number"),
        ({"calls": 0.5}, "traffic.sessions[0]: calls = 0.5: is out of range; allowed: a number >= 1"),
        ({"gap_s": {"median": 0}}, "traffic.sessions[0].gap_s: median = 0: is out of range; allowed: a number > 0"),
        ({"tail": {"median": -1}}, "traffic.sessions[0].tail: median = -1: is out of range; allowed: a number >= 0"),
        ({"most_prompt_tokens": None}, "traffic.sessions[0]: most_prompt_tokens: is missing"),
        ({"turns": 3}, "traffic.sessions[0]: turns = 3: unknown key; allowed: name, open, starts_per_s, calls"),
        (
            {"first": {"median": 5000}},
            "traffic: traffic.window_s = None: no request arrives between 0 s and the end",
        ),
    ],
)
def test_sessions_that_cannot_be_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match="^" + re.escape(message)):
        load_traffic({"kind": "sessions", "duration_s": 10, "sessions": [{**SESSION, **change}]}, 0)


@pytest.mark.parametrize(("kind", "key"), [("mixture", "shapes"), ("sessions", "sessions")])
def test_without_a_list_or_a_duration_there_is_no_traffic(kind: str, key: str) -> None:
    one = {"mixture": SHAPE, "sessions": SESSION}[kind]
    for wrong in (None, [], {}):
        with pytest.raises(InputError, match=f"^traffic: {key} = .*is not a list of {key}; allowed: at least one"):
            load_traffic({"kind": kind, "duration_s": 10, key: wrong}, 0)
    with pytest.raises(InputError, match=r"^traffic: duration_s: is missing; allowed: a number > 0"):
        load_traffic({"kind": kind, key: [one]}, 0)
