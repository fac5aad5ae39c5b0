"""Closed-loop traffic: its lengths, its order, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from bench.traffic import Request, load_traffic
from roofline_policies.errors import InputError

CLOSED = {"kind": "closed", "concurrency": 3, "prompt_tokens": 50, "output_tokens": 20, "prompts_per_slot": 40}


def test_fixed_lengths_are_what_was_asked_for_and_nothing_has_a_time() -> None:
    traffic = load_traffic({**CLOSED, "prompts_per_slot": 2, "warmup_per_slot": 1}, seed=1)
    assert traffic.requests == (Request(0.0, 50, 20),) * 6
    assert traffic.closed is not None
    assert traffic.closed.concurrency == 3
    assert traffic.closed.warmup == (Request(0.0, 50, 20),) * 3


def test_lengths_are_uniform_over_the_range_and_all_of_it() -> None:
    drawn = load_traffic({**CLOSED, "range_ratio": 0.9, "concurrency": 300}, seed=1).requests
    assert len(drawn) == 12_000
    counts = [sum(one.prompt_tokens == length for one in drawn) for length in range(45, 51)]
    assert sum(counts) == len(drawn)
    assert all(abs(count - 2000) < 5 * (2000 * 5 / 6) ** 0.5 for count in counts)  # five standard deviations
    assert {one.output_tokens for one in drawn} == {18, 19, 20}


def test_the_shortest_is_cut_as_sglangs_benchmark_cuts_it_and_is_never_nothing() -> None:
    short = {**CLOSED, "prompt_tokens": 1, "output_tokens": 13, "range_ratio": 0.8}
    drawn = load_traffic(short, seed=0).requests
    assert {one.prompt_tokens for one in drawn} == {1}
    assert {one.output_tokens for one in drawn} == {10, 11, 12, 13}  # int(10.4)


def test_equal_seeds_give_equal_lengths_and_more_prompts_leave_those_before_them() -> None:
    some = {**CLOSED, "range_ratio": 0.5, "warmup_per_slot": 2}
    first, again, other = (load_traffic(some, seed) for seed in (4, 4, 5))
    assert first == again
    assert first.requests != other.requests
    more = load_traffic({**some, "prompts_per_slot": 60}, 4)
    assert more.requests[: len(first.requests)] == first.requests
    assert more.closed == first.closed


def test_what_does_not_fit_is_cut_in_the_warm_up_too_and_said() -> None:
    traffic = load_traffic({**CLOSED, "warmup_per_slot": 1}, 0, max_total_tokens=60)
    assert {(one.prompt_tokens, one.output_tokens) for one in traffic.requests} == {(40, 20)}
    assert traffic.closed is not None
    assert {(one.prompt_tokens, one.output_tokens) for one in traffic.closed.warmup} == {(40, 20)}
    assert traffic.clipped == 120
    assert [note.what for note in traffic.notes] == ["cut_to_fit"]


def test_classes_are_drawn_for_requests_that_count() -> None:
    traffic = load_traffic({**CLOSED, "classes": [{"priority": 3, "share": 1}]}, 0)
    assert {one.priority for one in traffic.requests} == {3}


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"concurrency": 0}, "concurrency"),
        ({"concurrency": None}, "concurrency"),
        ({"range_ratio": 0.0}, "range_ratio"),
        ({"range_ratio": 1.2}, "range_ratio"),
        ({"output_tokens": 1.5}, "output_tokens"),
        ({"prompts_per_slot": 0}, "prompts_per_slot"),
        ({"warmup_per_slot": -1}, "warmup_per_slot"),
        ({"rate_scale": 2.0}, "rate_scale"),
        ({"window_s": 3.0}, "window_s"),
    ],
)
def test_values_that_cannot_be_are_named(change: dict[str, Any], key: str) -> None:
    with pytest.raises(InputError) as refused:
        load_traffic({**CLOSED, **change}, 0)
    assert refused.value.key == key
