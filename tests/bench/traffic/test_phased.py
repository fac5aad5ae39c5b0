from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bench.traffic.drawn.phased import Phase, draw_phased

CHAT = Phase("chat", 2000.0, 2.0, 1000.0, 1.0, 100.0, 0.5)
BURST = Phase("burst", 500.0, 4.0, 4000.0, 0.0, 10.0, 0.0)


def test_equal_seeds_give_equal_traffic_and_others_do_not() -> None:
    assert list(draw_phased([CHAT, BURST], 3)) == list(draw_phased([CHAT, BURST], 3))
    assert list(draw_phased([CHAT], 3)) != list(draw_phased([CHAT], 4))


def test_phases_follow_one_another_in_order_of_arrival() -> None:
    requests = list(draw_phased([CHAT, BURST, replace(CHAT, name="again")], 0))
    arrivals = [request.arrival_s for request in requests]
    assert arrivals == sorted(arrivals)
    for name, begin, end in (("chat", 0, 2000), ("burst", 2000, 2500), ("again", 2500, 4500)):
        assert all(begin <= r.arrival_s < end for r in requests if r.phase == name)


def test_changing_one_phase_leaves_the_others_alone() -> None:
    one = [(r.prompt_tokens, r.output_tokens) for r in draw_phased([CHAT, BURST], 0) if r.phase == "burst"]
    other = [
        (r.prompt_tokens, r.output_tokens) for r in draw_phased([replace(CHAT, rate_per_s=9.0), BURST], 0)
        if r.phase == "burst"
    ]  # fmt: skip
    assert one == other


def test_rates_and_lengths_are_those_asked_for() -> None:
    requests = list(draw_phased([CHAT], 0))
    assert len(requests) == pytest.approx(4000, rel=0.05)  # Poisson: 4000 +- 63
    logs = np.log([request.prompt_tokens for request in requests])
    assert float(np.median(logs)) == pytest.approx(np.log(1000), abs=0.08)
    assert float(np.std(logs)) == pytest.approx(1.0, abs=0.05)
    assert {r.prompt_tokens for r in draw_phased([BURST], 0)} == {4000}
