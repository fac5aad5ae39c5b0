import pytest
from hypothesis import given
from hypothesis import strategies as st

from roofline_policies.contract.decision import Bounds, Knob, Knobs, Range
from roofline_policies.control.transitions import COSTLY_KNOBS, Transitions, TransitionSettings
from roofline_policies.errors import FieldError
from roofline_policies.policies import Kind, Proposal
from tests.roofline_policies.views import BOUNDS, LAUNCH

RUNNING, CHUNK, DEFER = Knob.MAX_RUNNING_REQUESTS, Knob.PREFILL_CHUNK_TOKENS, Knob.DEFER_PREFILL
MIX = Knob.MIXED_CHUNK


def say(knob, value, kind=Kind.TARGET):
    return Proposal("P", knob, value, "because", kind)


def transitions(dwell_s=1.0, hysteresis=0.05, bounds=BOUNDS):
    return Transitions(TransitionSettings(dwell_s, hysteresis), bounds, LAUNCH)


def test_a_target_is_clamped_to_its_range_and_step():
    decision = transitions().decide(0.0, LAUNCH, [say(CHUNK, 999), say(RUNNING, 500)])
    assert decision.knobs == Knobs(64, 992)
    (change,) = decision
    assert (change.knob, change.old, change.new, change.reason, change.policy) == (CHUNK, 2048, 992, "because", "P")


def test_a_cap_limits_a_target():
    decision = transitions().decide(0.0, LAUNCH, [say(CHUNK, 1600), say(CHUNK, 800, Kind.CAP)])
    assert decision.knobs.prefill_chunk_tokens == 800


def test_free_knobs_fall_back_to_launch_when_nobody_speaks_and_costly_ones_stay():
    current = Knobs(32, 512, True)
    decision = transitions().decide(0.0, current, [])
    assert decision.knobs == Knobs(32, 2048, False)
    assert {change.knob for change in decision} == {CHUNK, DEFER}


def test_mixing_moves_with_every_decision_and_a_cap_of_false_forbids_it():
    moves, knobs = transitions(dwell_s=1.0), LAUNCH
    for wanted in (True, False, True):
        knobs = moves.decide(0.0, knobs, [say(MIX, wanted)]).knobs
        assert knobs.mixed_chunk is wanted
    assert moves.decide(0.0, knobs, [say(MIX, True), say(MIX, False, Kind.CAP)]).knobs == LAUNCH
    assert moves.decide(0.0, knobs, [say(MIX, True), say(MIX, True, Kind.CAP)]).changes == ()


def test_a_server_launched_with_mixing_goes_back_to_it():
    launch = Knobs(64, 2048, mixed_chunk=True)
    moves = Transitions(TransitionSettings(), BOUNDS, launch)
    apart = moves.decide(0.0, launch, [say(MIX, False)]).knobs
    assert apart == LAUNCH
    assert moves.decide(0.0, apart, []).knobs == launch


def test_a_costly_knob_moves_once_per_dwell():
    moves = transitions(dwell_s=1.0)
    first = moves.decide(10.0, LAUNCH, [say(RUNNING, 32)])
    assert first.knobs.max_running_requests == 32
    assert moves.decide(10.9, first.knobs, [say(RUNNING, 16)]).changes == ()
    assert moves.decide(11.0, first.knobs, [say(RUNNING, 16)]).knobs.max_running_requests == 16


def test_a_small_step_of_a_costly_knob_is_not_worth_it_except_to_a_bound():
    current = Knobs(60, 2048)
    assert transitions(hysteresis=0.1).decide(0.0, current, [say(RUNNING, 58)]).changes == ()
    assert transitions(hysteresis=0.1).decide(0.0, current, [say(RUNNING, 64)]).knobs.max_running_requests == 64


def test_an_immovable_knob_is_left_alone():
    bounds = Bounds({RUNNING: Range(1, 64)}, {CHUNK: "chunked prefill is off", DEFER: "no"})
    decision = transitions(bounds=bounds).decide(0.0, Knobs(64, None), [say(CHUNK, 100), say(DEFER, True)])
    assert decision.knobs == Knobs(64, None)
    assert decision.changes == ()


@given(
    st.lists(
        st.tuples(
            st.floats(0, 3),
            st.lists(
                st.builds(say, st.sampled_from(Knob), st.integers(-10, 10_000), st.sampled_from(Kind)),
                max_size=4,
                unique_by=lambda p: (p.knob, p.kind),
            ),
        ),
        max_size=30,
    )
)
def test_knobs_stay_in_bounds_and_costly_knobs_keep_their_dwell(steps):
    moves, knobs, now_s = transitions(dwell_s=1.0), LAUNCH, 0.0
    changed_at: dict[Knob, float] = {}
    for wait_s, proposals in steps:
        now_s += wait_s
        decision = moves.decide(now_s, knobs, proposals)
        assert BOUNDS.contains(decision.knobs)
        for change in decision:
            assert change.old == knobs.get(change.knob) != change.new == decision.knobs.get(change.knob)
            if change.knob in COSTLY_KNOBS:
                assert now_s - changed_at.get(change.knob, float("-inf")) >= 1.0
                changed_at[change.knob] = now_s
        knobs = decision.knobs


@pytest.mark.parametrize(("field", "value"), [("dwell_s", -1), ("dwell_s", float("inf")), ("hysteresis", 1.0)])
def test_refuses_settings_out_of_range(field, value):
    with pytest.raises(FieldError) as raised:
        TransitionSettings(**{field: value})
    assert raised.value.key == field


def test_a_knob_with_choices_takes_one_of_them_and_a_value_between_two_goes_down():
    window = Knob.SPECULATION_WINDOW
    bounds = Bounds({window: Range(0, 6)}, {}, {window: (0, 1, 3, 6, 9)})
    assert list(bounds.values(window)) == [0, 1, 3, 6]
    assert [bounds.clamp(window, value) for value in (-1, 0, 2, 3, 5, 6, 40)] == [0, 0, 1, 3, 3, 6, 6]
    narrow = Bounds({window: Range(1, 5)}, {}, {window: (0, 1, 3, 6)})
    assert [narrow.clamp(window, value) for value in (0, 2, 5, 6)] == [1, 1, 3, 3]
    launch = Knobs(64, 2048, speculation_window=3)
    assert not narrow.contains(launch.with_value(window, 4))
    moves = Transitions(TransitionSettings(), bounds, launch)
    assert moves.decide(0.0, launch, [say(window, 5)]).changes == ()
    assert moves.decide(0.0, launch, [say(window, 2)]).knobs.speculation_window == 1


@pytest.mark.parametrize("choices", [(3, 1), (1, 1, 2), (7, 9), ()])
def test_choices_that_cannot_be_are_refused(choices):
    with pytest.raises(FieldError):
        Bounds({Knob.SPECULATION_WINDOW: Range(0, 6)}, {}, {Knob.SPECULATION_WINDOW: choices})
