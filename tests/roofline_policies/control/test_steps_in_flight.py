"""Steps in flight against a device that runs them one after the other."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roofline_policies.contract.view import ForwardMode
from roofline_policies.control.steps_in_flight import MOST_IN_FLIGHT, StepsInFlight
from roofline_policies.model.batch import BatchShape
from roofline_policies.steps.correction import Line
from roofline_policies.steps.speculation import verify_shape

PREFILL, DECODE, MIXED = ForwardMode.PREFILL, ForwardMode.DECODE, ForwardMode.MIXED
EMPTY = BatchShape()


class Told:
    """1 s per prompt token and 0.125 s per decode row."""

    def step_s(self, *, prefill, decode, graph):
        assert graph == (prefill == EMPTY)
        return 1.0 * prefill.new_tokens + 0.125 * decode.requests


def prompt(tokens):
    return BatchShape.of(prefill=[(tokens, 0)]) if tokens else EMPTY


def rows(count):
    return BatchShape.of(decode_contexts=[5] * count)


def launch(flying, mode, now_s, tokens=0, decode=0):
    flying.launched(mode, now_s, prompt(tokens), rows(decode))


def test_without_a_predictor_nothing_is_known():
    flying = StepsInFlight(None)
    flying.launched(DECODE, 0.0, EMPTY, rows(1))
    flying.finished(DECODE, 0.1, 0.1)
    assert (flying.steps, flying.lines, flying.token_age_s(9.0)) == (None, {}, 0.0)


def test_tokens_age_from_the_end_of_the_step_that_gave_them():
    flying = StepsInFlight(Told())
    assert flying.token_age_s(7.0) == 0.0
    launch(flying, PREFILL, 10.0, tokens=2)  # gives its prompts their first tokens at 12
    assert flying.token_age_s(10.5) == 0.0  # nothing can start before
    assert flying.token_age_s(12.5) == 0.5
    launch(flying, DECODE, 11.0, decode=4)  # waits for the device: 12 to 12.5
    assert flying.token_age_s(11.0) == 0.0
    launch(flying, PREFILL, 11.5, tokens=3)  # 12.5 to 15.5, and the rows get nothing
    assert flying.token_age_s(11.5) == 3.0
    assert flying.token_age_s(16.0) == 3.5
    launch(flying, MIXED, 11.75, tokens=1, decode=4)  # to 17, with a token for every row
    assert flying.token_age_s(12.0) == 0.0


def test_the_device_is_free_when_the_last_step_in_flight_has_ended():
    flying = StepsInFlight(Told())
    assert flying.free_s(7.0) == 7.0
    launch(flying, PREFILL, 10.0, tokens=2)
    assert (flying.free_s(10.0), flying.free_s(11.5), flying.free_s(12.5)) == (12.0, 12.0, 12.5)
    launch(flying, DECODE, 11.0, decode=4)  # waits for the device: 12 to 12.5
    launch(flying, MIXED, 11.5, tokens=1, decode=4)  # to 14
    assert flying.free_s(11.5) == 14.0
    launch(flying, DECODE, 20.0, decode=8)  # finds it free
    assert flying.free_s(20.0) == 21.0
    flying.finished(PREFILL, 2.5, 12.5)  # half a second later than predicted; nothing behind it is free for that long
    assert flying.free_s(20.0) == 21.0


def test_when_the_device_is_free_follows_what_was_measured():
    flying = StepsInFlight(Told())
    launch(flying, PREFILL, 10.0, tokens=2)
    launch(flying, DECODE, 10.0, decode=8)
    assert flying.free_s(10.0) == 13.0
    flying.finished(PREFILL, 2.0, 12.75)  # it began later than it could
    assert flying.free_s(12.75) == 13.75
    flying.finished(DECODE, 1.0, 13.75)
    assert (flying.free_s(13.0), flying.free_s(15.0)) == (13.75, 15.0)
    for number in range(300):
        launch(flying, PREFILL, 100.0 + 10.0 * number, tokens=2)
        flying.finished(PREFILL, 3.0, 103.0 + 10.0 * number)
    launch(flying, PREFILL, 4000.0, tokens=2)
    launch(flying, PREFILL, 4000.0, tokens=2)
    assert flying.free_s(4000.0) == pytest.approx(4006.0, rel=1e-5)


def test_what_is_not_known_to_be_in_flight_keeps_nobody_waiting():
    unknown = StepsInFlight(None)
    unknown.launched(DECODE, 0.0, EMPTY, rows(1))
    assert unknown.free_s(9.0) == 9.0
    flying = StepsInFlight(Told())
    launch(flying, PREFILL, 10.0, tokens=50)
    flying.nobody_waits()
    assert flying.free_s(10.0) == 60.0  # the device is not free for that
    flying.forget()
    assert flying.free_s(10.0) == 10.0


def test_what_was_measured_takes_the_place_of_what_was_predicted():
    flying = StepsInFlight(Told())
    launch(flying, DECODE, 10.0, decode=8)
    launch(flying, PREFILL, 10.0, tokens=2)
    flying.finished(DECODE, 1.0, 11.25)  # a quarter of a second later than expected
    assert flying.token_age_s(11.0) == 2.0
    flying.finished(PREFILL, 2.0, 13.25)
    assert flying.token_age_s(11.0) == 2.0
    assert flying.token_age_s(14.0) == 2.75


def test_what_is_learned_prices_the_steps_in_flight():
    flying = StepsInFlight(Told())
    for number in range(300):
        launch(flying, PREFILL, 10.0 * number, tokens=2)
        flying.finished(PREFILL, 3.0, 10.0 * number + 3.0)
    assert flying.steps.step_s(prefill=prompt(2)) == pytest.approx(3.0, rel=0.02)
    launch(flying, PREFILL, 4000.0, tokens=2)
    assert flying.token_age_s(4000.0) == pytest.approx(4003.0 - 3.0, abs=0.1)  # since the first prompt's token
    assert set(flying.lines) == {PREFILL}


def test_a_kind_of_step_that_has_not_run_errs_like_its_nearest_relative():
    flying = StepsInFlight(Told())
    unseen = flying.steps.decode
    assert unseen[:2] == Line()[:2]
    assert flying.steps.prefill == flying.steps.mixed == unseen
    launch(flying, MIXED, 0.0, tokens=1, decode=1)
    flying.finished(MIXED, 2.25, 2.25)
    assert flying.steps.mixed == flying.lines[MIXED]
    assert flying.steps.prefill[:2] == flying.steps.mixed[:2] == pytest.approx((2.0, 0.0))
    assert flying.steps.prefill.spread == flying.kinds[PREFILL].line.spread  # its own: it has not run
    launch(flying, PREFILL, 3.0, tokens=1)
    flying.finished(PREFILL, 1.5, 4.5)
    assert flying.steps.prefill.scale == pytest.approx(1.5)
    assert flying.steps.mixed.scale == pytest.approx(2.0)
    assert flying.steps.decode[:2] == unseen[:2]
    only = StepsInFlight(Told())
    launch(only, PREFILL, 3.0, tokens=1)
    only.finished(PREFILL, 1.5, 4.5)
    assert only.steps.mixed[:2] == only.steps.prefill[:2]


def test_a_lost_result_costs_what_is_in_flight_and_nothing_that_was_learned():
    flying = StepsInFlight(Told())
    launch(flying, DECODE, 0.0, decode=8)
    flying.finished(DECODE, 1.0, 1.0)
    for mode in (DECODE, PREFILL, DECODE):
        launch(flying, mode, 1.0, tokens=3 * (mode is PREFILL), decode=8 * (mode is DECODE))
    flying.finished(PREFILL, 50.0, 60.0)  # the decode step's result never came
    assert set(flying.lines) == {DECODE}
    assert flying.lines[DECODE].scale == pytest.approx(1.0)
    assert flying.token_age_s(70.0) == pytest.approx(69.0)  # of the last token that is known of
    launch(flying, DECODE, 70.0, decode=8)
    flying.finished(DECODE, 1.0, 71.0)
    assert flying.token_age_s(71.5) == 0.5


def test_results_that_nobody_waits_for_say_nothing():
    flying = StepsInFlight(Told())
    flying.finished(DECODE, 1.0, 1.0)
    assert (flying.lines, flying.token_age_s(9.0)) == ({}, 0.0)


def test_in_a_pause_nobodys_token_ages():
    flying = StepsInFlight(Told())
    launch(flying, DECODE, 0.0, decode=1)
    flying.finished(DECODE, 0.125, 0.125)
    flying.nobody_waits()
    assert flying.token_age_s(500.0) == 0.0
    launch(flying, PREFILL, 500.0, tokens=2)
    assert flying.token_age_s(500.0) == 0.0
    flying.finished(PREFILL, 2.0, 502.0)
    assert flying.token_age_s(502.5) == 0.5


def test_results_may_stay_away_for_ever():
    flying = StepsInFlight(Told())
    for number in range(3 * MOST_IN_FLIGHT):
        launch(flying, DECODE, float(number), decode=1)
    assert flying.token_age_s(3 * MOST_IN_FLIGHT + 0.5) == pytest.approx(1.375)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([PREFILL, DECODE, MIXED]), st.integers(1, 4), st.integers(1, 8), st.integers(0, 16)),
        min_size=1, max_size=40,
    ),
    st.lists(st.integers(0, 5), min_size=1), st.booleans(),
)  # fmt: skip
def test_the_age_does_not_depend_on_when_results_are_told(steps, told_at_once, ask_often):
    """Against a device whose steps take what was predicted. Times are sums of powers of two, so they are exact."""
    flying, now_s, free_s, token_s, untold, waited = StepsInFlight(Told()), 0.0, 0.0, None, [], False
    for number, (mode, tokens, decode, wait) in enumerate(steps):
        now_s += wait * 0.125
        tokens, decode = tokens * (mode is not DECODE), decode * (mode is not PREFILL)
        launch(flying, mode, now_s, tokens, decode)
        begins_s = max(free_s, now_s)
        free_s = begins_s + tokens + 0.125 * decode
        if mode is not PREFILL or not waited:
            token_s = free_s
        waited = True
        untold.append((mode, free_s - begins_s, free_s))
        for _ in range(min(told_at_once[number % len(told_at_once)], len(untold))):
            flying.finished(*untold.pop(0))
        for later_s in (0.0, 0.5, 100.0) if ask_often else (0.25,):
            expected = max(free_s, now_s + later_s) - token_s
            assert flying.token_age_s(now_s + later_s) == pytest.approx(expected, abs=1e-9)
            assert flying.free_s(now_s + later_s) == pytest.approx(max(free_s, now_s + later_s), abs=1e-9)


def drafted(flying, count):
    """Verify steps of many sizes on a device that drafts as well: 2 s, and 0.05 s a request and 0.1 s a row of it."""
    now_s = 0.0
    for number in range(count):
        requests, window = 1 + 7 * number % 40, number % 4
        decode = verify_shape(requests, 50 * requests, window)
        took_s = Told().step_s(prefill=EMPTY, decode=decode, graph=True) + drafting_s(decode)
        flying.launched(DECODE, now_s, EMPTY, decode)
        now_s += took_s
        flying.finished(DECODE, took_s, now_s)
    return flying


def drafting_s(decode):
    return 2.0 + 0.05 * decode.requests + 0.1 * decode.new_tokens


def test_what_drafting_takes_is_learned_from_the_rows_of_its_steps():
    flying, without = drafted(StepsInFlight(Told(), drafts=True), 2000), drafted(StepsInFlight(Told()), 2000)
    errors = {flying: [], without: []}
    for requests, window in [(3, 3), (30, 1), (64, 3), (16, 0)]:
        decode = verify_shape(requests, 50 * requests, window)
        took_s = Told().step_s(prefill=EMPTY, decode=decode, graph=True) + drafting_s(decode)
        for one, found in errors.items():
            found.append(abs(one.steps.step_s(decode=decode, graph=True) / took_s - 1))
    assert max(errors[flying]) < 0.03
    assert max(errors[without]) > 0.1


def test_evidence_of_all_kinds_fades_with_the_steps_of_one():
    flying = StepsInFlight(Told())
    for number in range(40):
        launch(flying, MIXED, 10.0 * number, tokens=1, decode=1)
        flying.finished(MIXED, 1.125 * (1 + number % 2), 10.0 * number + 2)
    first = flying.steps.margin(prefill=True, decode=True)
    for number in range(3000):
        launch(flying, DECODE, 1000.0 + number, decode=8)
        flying.finished(DECODE, 1.0, 1001.0 + number)
    assert first > 1.48
    assert flying.steps.margin(prefill=True, decode=True) < 1.1


def test_a_step_is_told_what_was_expected_of_it_when_it_was_launched():
    flying = StepsInFlight(Told())
    told = flying.launched(DECODE, 0.0, EMPTY, rows(8))
    assert told == (1.0, flying.steps.margin(prefill=False, decode=True, rows=8))
    flying.finished(DECODE, 2.0, 2.0)
    again = flying.launched(DECODE, 2.0, EMPTY, rows(8))
    assert again.predicted_s == pytest.approx(2.0)
    assert told.predicted_s == 1.0


class Remembers(Told):
    """Tells how it was asked."""

    def __init__(self):
        self.asked = []

    def step_s(self, *, prefill, decode, graph):
        self.asked.append((prefill, decode))
        return super().step_s(prefill=prefill, decode=decode, graph=graph)


def test_a_step_is_predicted_as_it_could_have_been_planned():
    """What its kernels do in vain, and what its requests share, is known once it runs, and to no plan."""
    times = Remembers()
    flying = StepsInFlight(times)
    known = {"padded_rows": 3, "padded_logit_rows": 3, "shared_tokens": 4, "masked_flops": 10**9, "window_tokens": 7}
    flying.launched(MIXED, 0.0, prompt(5)._replace(**known), rows(8)._replace(**known))
    flying.launched(DECODE, 0.0, EMPTY, rows(8)._replace(**known))
    flying.launched(PREFILL, 0.0, prompt(5)._replace(**known), EMPTY)
    assert times.asked == [(prompt(5), rows(8)), (EMPTY, rows(8)), (prompt(5), EMPTY)]


def test_what_a_relatives_fit_says_of_single_sums_is_not_taken_over():
    """Prompts take their tokens' time and nothing else, so their fit may put all of it on tokens and pairs and leave
    the prediction next to nothing. Of a mixed step it would then say next to nothing either."""
    flying = StepsInFlight(Told())
    for number in range(200):
        tokens = 1 + number % 9
        launch(flying, PREFILL, 100.0 * number, tokens=tokens)
        took_s = 2.0 * tokens + 0.5 * tokens * (number % 2)
        flying.finished(PREFILL, took_s, 100.0 * number + took_s)
    learned, start = flying.kinds[PREFILL], flying.kinds[PREFILL].start.line
    assert flying.steps.mixed[:2] == start[:2]
    assert flying.steps.mixed.each_s == ()
    mixed_s = flying.steps.step_s(prefill=prompt(4), decode=rows(80))
    assert mixed_s == pytest.approx(start.scale * (4.0 + 10.0) + start.add_s)
    assert learned.steps == 200
