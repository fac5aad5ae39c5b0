"""Who asks for targets of its own: a share, drawn from the seed, of any traffic."""

from __future__ import annotations

import re
from typing import Any

import pytest

from bench.traffic import Request, load_traffic
from bench.traffic.asks import Asks, ask, asking
from roofline_policies.errors import InputError

PHASE = {"name": "a", "duration_s": 500, "rate_per_s": 4, "prompt_median": 50, "output_median": 5}
CLOSED = {"kind": "closed", "concurrency": 4, "requests": 40, "prompt_tokens": 8, "output_tokens": 2}
FAST = {"ttft_s": 0.5}


def load(seed: int = 0, **conf: Any) -> list[Request]:
    return list(load_traffic({"kind": "phased", "phases": [PHASE], **conf}, seed).requests)


def test_a_share_asks_and_nothing_else_changes() -> None:
    quiet, some = load(), load(asks={"share": 0.1, "slo": FAST})
    assert sum(one.slo is not None for one in some) / len(some) == pytest.approx(0.1, abs=0.03)  # 4 deviations
    assert {str(one.slo) for one in some} == {"None", str(FAST)}
    assert [(one.arrival_s, one.prompt_tokens, one.output_tokens, one.priority) for one in some] == [
        (one.arrival_s, one.prompt_tokens, one.output_tokens, one.priority) for one in quiet
    ]
    assert {one.slo for one in quiet} == {None}
    assert load(asks=None) == quiet
    assert load(asks={"share": 1, "slo": FAST}) == [*ask(quiet, Asks(1.0, FAST), 0)]


def test_who_asks_follows_the_seed_and_the_place_and_a_larger_share_only_adds_some() -> None:
    few, many = asking(400, 0.1, 3), asking(400, 0.4, 3)
    assert all(later for early, later in zip(few, many, strict=True) if early)
    assert sum(few) < sum(many)
    assert asking(100, 0.1, 3) == few[:100]
    assert asking(400, 0.1, 4) != few
    assert asking(50, 0.0, 3) == [False] * 50
    assert asking(50, 1.0, 3) == [True] * 50


@pytest.mark.parametrize("slo", [{"ttft_s": "soon"}, 3, [1], "fast", {}])
def test_what_is_asked_is_sent_as_it_is(slo: object) -> None:
    assert {str(one.slo) for one in load(asks={"share": 1, "slo": slo})} == {str(slo)}


@pytest.mark.parametrize(
    ("asks", "told"),
    [
        (3, "traffic.asks"),
        ({"share": 0.1}, "traffic.asks: slo: is missing"),
        ({"share": 0.1, "slo": None}, "traffic.asks: slo: is missing"),
        ({"share": 2, "slo": FAST}, "traffic.asks: share = 2"),
        ({"slo": FAST}, "traffic.asks: share"),
        ({"share": 0.1, "slo": FAST, "seed": 1}, "traffic.asks: seed = 1"),
    ],
)
def test_what_says_not_who_asks_for_what_is_refused(asks: object, told: str) -> None:
    with pytest.raises(InputError, match=re.escape(told)):
        load(asks=asks)
