"""How fast prompts are served, by hand. Stand-ins take the place of SGLang's batches and requests."""

from types import SimpleNamespace

import pytest

from roofline_policies.slo.admission import Ticket
from roofline_policies.slo.prefill_rate import FIRST_PACE, KEEP, STEPS_TO_A_TOKEN
from sglang_patches.requests.prefill_rate import PrefillWatch


class Prompt:
    """Predicted to take 1 ms per token that was not ``cached`` when it came."""

    def __init__(self, tokens, extend_end=0, cached=0):
        self.seqlen, self.extend_end, self.inflight_middle_chunks = tokens, extend_end, 0
        self.ticket = Ticket(0.0, 0.0, (tokens - cached) * 1e-3, tokens=tokens - cached)


def step(service, now_s, *prompts, waiting=True, rows=0):
    """prompts: (prompt, new tokens, tokens before them)."""
    reqs = [prompt for prompt, *_ in prompts] + [object()] * rows
    batch = SimpleNamespace(
        reqs=reqs, decoding_reqs=reqs[len(prompts):] or None,
        extend_lens=[new for _, new, _ in prompts] + [1] * rows,
        prefix_lens=[before for *_, before in prompts] + [99] * rows,
    )  # fmt: skip
    service.launched(batch, now_s, waiting)


@pytest.fixture
def service():
    return PrefillWatch(lambda request: request.ticket)


def test_before_anything_was_served_decode_steps_are_allowed_for(service):
    assert service.pace == pytest.approx(FIRST_PACE)
    assert service.ahead_s(None) == 0.0
    assert service.ahead_s(Prompt(1000, extend_end=400)) == pytest.approx(0.6 * FIRST_PACE)


def test_the_pace_is_the_time_from_step_to_step_over_what_the_first_of_them_served(service):
    for number in range(400):
        step(service, 0.5 * number, (Prompt(250), 250, 0))
    assert service.pace == pytest.approx(2.0)
    step(service, 200.0, (Prompt(250), 250, 0), rows=5)  # decode rows ride along
    step(service, 201.0, (Prompt(250), 250, 0))
    assert service.pace == pytest.approx((10 * 0.5 * KEEP + 1.0) / (10 * 0.25 * KEEP + 0.25))


def test_one_step_by_hand(service):
    step(service, 10.0, (Prompt(100), 100, 0), (Prompt(300), 300, 0))
    step(service, 11.0, (Prompt(5), 5, 0))
    assert service.pace == pytest.approx((FIRST_PACE * 0.1 * KEEP + 1.0) / (0.1 * KEEP + 0.4))


def test_time_in_which_nobody_waited_says_nothing(service):
    step(service, 0.0, (Prompt(250), 250, 0), waiting=False)
    step(service, 500.0, (Prompt(250), 250, 0))
    assert service.pace == pytest.approx(FIRST_PACE)
    step(service, 500.25, (Prompt(250), 250, 0))
    assert service.pace < FIRST_PACE


def test_what_was_cached_when_a_prompt_came_is_not_served(service):
    """A prompt of 1,000 tokens of which 600 are cached: 400 ms, in two chunks of 200."""
    prompt = Prompt(1000, cached=600)
    service._rate._passed_s = service._rate._served_s = 0.0
    prompt.inflight_middle_chunks = 1
    step(service, 0.0, (prompt, 200, 600))
    prompt.inflight_middle_chunks = 2
    step(service, 1.0, (prompt, 200, 800))
    assert service.pace == pytest.approx(1.0 / 0.2)
    step(service, 2.0, (Prompt(1), 1, 0))
    assert service.pace == pytest.approx((1.0 * KEEP + 1.0) / (0.2 * KEEP + 0.2))


def test_what_was_cached_while_a_prompt_waited_is_served_by_its_first_step_alone(service):
    """600 of 1,000 tokens when it came and 800 when it was its turn, in two chunks of 100."""
    prompt = Prompt(1000, cached=600)
    service._rate._passed_s = service._rate._served_s = 0.0
    prompt.inflight_middle_chunks = 1
    step(service, 0.0, (prompt, 100, 800))
    prompt.inflight_middle_chunks = 2
    step(service, 1.0, (prompt, 100, 900))
    assert service.pace == pytest.approx(1.0 / 0.3)
    step(service, 2.0, (Prompt(1), 1, 0))
    assert service.pace == pytest.approx((1.0 * KEEP + 1.0) / (0.3 * KEEP + 0.1))


def test_what_is_not_cached_any_more_is_served_as_far_as_it_was_predicted(service):
    """600 of 1,000 tokens were cached when it came, and none is when it is its turn."""
    service._rate._passed_s = service._rate._served_s = 0.0
    step(service, 0.0, (Prompt(1000, cached=600), 1000, 0))
    step(service, 1.0, (Prompt(1), 1, 0))
    assert service.pace == pytest.approx(1.0 / 0.4)


def test_of_a_prompt_that_comes_with_a_prefix_the_rest_is_ahead(service):
    ahead_s = service.ahead_s
    assert ahead_s(Prompt(1000, extend_end=600, cached=600)) == pytest.approx(0.4 * FIRST_PACE)
    assert ahead_s(Prompt(1000, extend_end=800, cached=600)) == pytest.approx(0.5 * 0.4 * FIRST_PACE)
    assert ahead_s(Prompt(1000, extend_end=200, cached=600)) == pytest.approx(0.4 * FIRST_PACE)  # lost since
    assert ahead_s(Prompt(1000, extend_end=1000, cached=600)) == 0.0


def test_what_was_found_in_the_cache_is_served_by_the_first_step_alone(service):
    """A prompt of 1,000 tokens of which none was cached when it came and 600 are, in two chunks of 200."""
    prompt = Prompt(1000)
    service._rate._passed_s = service._rate._served_s = 0.0
    prompt.inflight_middle_chunks = 1
    step(service, 0.0, (prompt, 200, 600))
    prompt.inflight_middle_chunks = 2
    step(service, 1.0, (prompt, 200, 800))
    assert service.pace == pytest.approx(1.0 / 0.8)
    step(service, 2.0, (Prompt(1), 1, 0))
    assert service.pace == pytest.approx((1.0 * KEEP + 1.0) / (0.8 * KEEP + 0.2))


def test_what_is_ahead_is_the_rest_of_the_prompt_in_flight_and_a_token_of_the_next(service):
    for number in range(400):
        step(service, 0.5 * number, (Prompt(250), 250, 0))
    turn_s = STEPS_TO_A_TOKEN * 0.5
    assert service.ahead_s(None) == pytest.approx(turn_s)
    assert service.ahead_s(Prompt(1000, extend_end=250)) == pytest.approx(0.75 * 2.0 + turn_s)
    assert service.ahead_s(Prompt(1000, extend_end=1000)) == pytest.approx(turn_s)


def test_a_server_without_a_predictor_keeps_its_first_guess(service):
    for number in range(10):
        prompt = Prompt(250)
        prompt.ticket.prefill_s = 0.0
        step(service, float(number), (prompt, 250, 0))
    assert service.pace == pytest.approx(FIRST_PACE)
