"""What is measured is heard, with SGLang's real scheduler on a virtual clock: gaps that no prediction told of."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from tests.sglang_patches.virtual.runs import Ask, Case, Outcome, in_children, serve

ITL_S = 0.05
ANSWERS = tuple(Ask(0.0, 40, 2000, cap_tokens=2000) for _ in range(4))
PROMPTS = tuple(Ask(0.2 + 0.1 * number, 6000, 2) for number in range(200))
"""Prompts that never cease beside answers that go on: every gap is filled up to its target."""
PAUSES = Case(
    (*ANSWERS, *PROMPTS), ("--chunked-prefill-size", "8192"), kv_tokens=400_000, pauses=(0.04, 2.2), policy="adaptive",
    overrides=(f"slo.itl_s={ITL_S}", "slo.ttft_s=null"),
)  # fmt: skip


def without(case: Case) -> Case:
    return replace(case, overrides=(*case.overrides, "controller.tighten=1"))


@pytest.fixture(scope="module")
def outcomes() -> list[Outcome]:
    """Heard and not, with pauses and without."""
    shorter = (*(replace(answer, output_tokens=500) for answer in ANSWERS), *PROMPTS[:50])
    calm = replace(PAUSES, asks=shorter, pauses=(0.0, 1.0))
    return in_children(serve, PAUSES, without(PAUSES), calm, without(calm))


def late(outcome: Outcome) -> tuple[float, float]:
    """Of the gaps of an answer while prompts are computed, the last third: the share that was late, and by how much in
    the mean."""
    assert outcome.raised is None
    end_s = max(request.token_s[-1] for request in outcome.requests[len(ANSWERS) :])
    times_s = [at_s for at_s in outcome.requests[0].token_s if at_s <= end_s]
    gaps = [later - earlier for earlier, later in pairwise(times_s[2 * len(times_s) // 3 :])]
    over = [gap / ITL_S - 1.0 for gap in gaps if gap > ITL_S]
    return len(over) / len(gaps), sum(over) / len(over) if over else 0.0


def test_gaps_that_are_late_by_two_fifths_are_late_no_longer(outcomes: list[Outcome]) -> None:
    heard, unheard, *_ = outcomes
    share, by = late(unheard)
    assert share > 0.03
    assert by > 0.4
    heard_share, heard_by = late(heard)
    assert heard_share < 0.7 * share
    assert heard_by < 0.1


def test_the_page_says_so(outcomes: list[Outcome]) -> None:
    heard, unheard, *_ = outcomes
    assert heard.status is not None
    assert unheard.status is not None
    page = heard.status["lateness"]["per_gap"]
    assert 1.2 < page["tightened"] <= 2.0
    assert page["since_s"] > 1.0
    assert "later than planned" in page["says"]
    told = unheard.status["lateness"]["per_gap"]
    assert told["since_s"] > 1.0
    assert told["tightened"] == 1.0


def test_where_nothing_pauses_every_launch_is_the_same(outcomes: list[Outcome]) -> None:
    _, _, calm, without_it = outcomes
    assert calm.launches == without_it.launches
    assert calm.status is not None
    assert calm.status["lateness"]["per_gap"]["says"] == "as promised"
