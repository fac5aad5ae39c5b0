from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.traffic.request import Request
from bench.traffic.transform import clip_lengths, rate_scale, scale_lengths, window

REQUESTS = st.lists(
    st.builds(Request, st.floats(0, 1000), st.integers(1, 20000), st.integers(1, 2000)), max_size=30
).map(lambda requests: sorted(requests, key=lambda request: request.arrival_s))
SECONDS = st.floats(0, 1000)
FACTORS = st.floats(0.01, 100)


@given(REQUESTS, SECONDS, st.floats(0.1, 1000))
def test_a_window_holds_what_arrives_in_it_from_zero_on(requests: list[Request], start: float, length: float) -> None:
    cut = list(window(requests, start, length))
    inside = [r for r in requests if start <= r.arrival_s < start + length]
    assert [(r.prompt_tokens, r.output_tokens) for r in cut] == [(r.prompt_tokens, r.output_tokens) for r in inside]
    assert all(0 <= r.arrival_s <= length for r in cut)
    assert cut == sorted(cut, key=lambda r: r.arrival_s)


@given(REQUESTS)
def test_windows_side_by_side_hold_everything_once(requests: list[Request]) -> None:
    assert sum(len(list(window(requests, 100.0 * place, 100.0))) for place in range(11)) == len(requests)
    assert list(window(requests, 0.0, None)) == requests


def test_a_window_stops_reading_at_its_end() -> None:
    def endless() -> list[Request]:
        raise AssertionError("read past the window")

    def source():  # type: ignore[no-untyped-def]
        yield Request(0.0, 1, 1)
        yield Request(5.0, 1, 1)
        endless()

    assert len(list(window(source(), 0.0, 5.0))) == 1


@given(REQUESTS, FACTORS)
def test_a_rate_keeps_count_order_and_proportions(requests: list[Request], factor: float) -> None:
    faster = rate_scale(requests, factor)
    assert len(faster) == len(requests)
    assert faster == sorted(faster, key=lambda r: r.arrival_s)
    for before, after in zip(requests, faster, strict=True):
        assert after.arrival_s * factor == pytest.approx(before.arrival_s)
        assert after.prompt_tokens == before.prompt_tokens


@given(REQUESTS, FACTORS, FACTORS)
def test_scaled_lengths_stay_at_least_one(requests: list[Request], prompt: float, output: float) -> None:
    scaled = scale_lengths(requests, prompt, output)
    assert [r.arrival_s for r in scaled] == [r.arrival_s for r in requests]
    assert all(r.prompt_tokens >= 1 and r.output_tokens >= 1 and r.block_tokens >= 1 for r in scaled)
    assert scale_lengths(requests, 1.0, 1.0) == requests


def test_prefix_blocks_shrink_with_the_prompt() -> None:
    (scaled,) = scale_lengths([Request(0.0, 1024, 8, (1, 2))], 0.25, 0.5)
    assert (scaled.prompt_tokens, scaled.output_tokens, scaled.block_tokens) == (256, 4, 128)


@given(REQUESTS, st.integers(2, 5000))
def test_clipped_requests_fit_and_those_that_fitted_are_left_alone(requests: list[Request], most: int) -> None:
    clipped, count = clip_lengths(requests, None, None, most)
    assert all(r.prompt_tokens >= 1 and r.output_tokens >= 1 for r in clipped)
    assert all(r.prompt_tokens + r.output_tokens <= most for r in clipped)
    fitted = [r for r in requests if r.prompt_tokens + r.output_tokens <= most]
    assert [after for before, after in zip(requests, clipped, strict=True) if before in fitted] == fitted
    assert count == len(requests) - len(fitted)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ((None, None, None), (1000, 300)),
        ((100, None, None), (100, 300)),
        ((None, 30, None), (1000, 30)),
        ((None, None, 1200), (900, 300)),
        ((None, None, 400), (200, 200)),
        ((50, 20, 400), (50, 20)),
    ],
)
def test_what_is_cut_first(limits: tuple[int | None, int | None, int | None], expected: tuple[int, int]) -> None:
    (clipped,), _ = clip_lengths([Request(0.0, 1000, 300)], *limits)
    assert (clipped.prompt_tokens, clipped.output_tokens) == expected
