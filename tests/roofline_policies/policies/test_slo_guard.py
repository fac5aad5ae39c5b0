"""What the guard asks for, and its cap on chunks against the closed form."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roofline_policies.contract.decision import Bounds, Knob, Knobs, Range
from roofline_policies.contract.view import QueueState
from roofline_policies.control.transitions import Transitions, TransitionSettings
from roofline_policies.errors import FieldError
from roofline_policies.model.batch import BatchShape
from roofline_policies.policies import Kind, SloGuard, Strength
from tests.roofline_policies.steps.closed_form_steps import Affine, exact
from tests.roofline_policies.views import view

CHUNK, ORDER, RELEGATE = Knob.PREFILL_CHUNK_TOKENS, Knob.DEADLINE_ORDER, Knob.RELEGATE_FOR_S
BOUNDS = Bounds({CHUNK: Range(64, 8192, 64), RELEGATE: Range(0, 3600)}, {})
UNORDERED = Bounds({CHUNK: Range(64, 8192, 64)}, {ORDER: "no", RELEGATE: "no"})
LONG = QueueState(running=8, waiting=9, next_prefill_tokens=8192, next_prompts=((8192, 0),))


def seen(steps=None, queue=LONG, bounds=BOUNDS, knobs=None, **fields):
    return view(knobs or Knobs(64, 8192), queue=queue, steps=steps, **fields)._replace(bounds=bounds)


def by_knob(proposals):
    found = {proposal.knob: proposal for proposal in proposals}
    assert len(found) == len(proposals)
    assert all(one.policy == "SloGuard" and one.strength is Strength.GUARD for one in proposals)
    return found


def test_asks_for_the_order_and_for_how_long_prompts_may_be_passed_over():
    found = by_knob(SloGuard().propose(seen(queue=LONG._replace(relegated=3))))
    assert {knob: one.value for knob, one in found.items()} == {ORDER: True, RELEGATE: 30}
    assert {one.kind for one in found.values()} == {Kind.TARGET}
    assert found[RELEGATE].reason == "3 of 9 waiting prompts cannot be in time"
    nobody = by_knob(SloGuard().propose(seen(queue=QueueState())))
    assert nobody[RELEGATE].reason == "no prompt waits"
    assert by_knob(SloGuard(relegate_for_s=0).propose(seen()))[RELEGATE].value == 0


def test_the_order_is_asked_for_whoever_runs():
    idle = seen(queue=QueueState(waiting=2))
    assert set(by_knob(SloGuard(itl_p99_s=0.1).propose(idle))) == {ORDER, RELEGATE}


def test_where_the_server_orders_its_queue_only_the_cap_is_left():
    assert SloGuard().propose(seen(exact(Affine()), bounds=UNORDERED)) == ()
    tight = SloGuard(itl_p99_s=0.03).propose(seen(exact(Affine()), bounds=UNORDERED))
    assert set(by_knob(tight)) == {CHUNK}


def test_what_it_asks_for_becomes_the_setting():
    launch = Knobs(64, 8192)
    moves = Transitions(TransitionSettings(), BOUNDS, launch)
    knobs = moves.decide(0.0, launch, SloGuard(relegate_for_s=5).propose(seen())).knobs
    assert (knobs.deadline_order, knobs.relegate_for_s) == (True, 5)
    assert moves.decide(0.0, knobs, ()).knobs == launch


@pytest.mark.parametrize(
    ("itl_p99_s", "mixed", "expected"),
    [
        # 5 ms a step, 10 us a token, 0.1 ms a row: 8,192 tokens take 86.9 ms, and 5.8 ms for the decode step.
        (0.1, False, None),
        (0.09, False, 4096),
        (0.04, False, 2048),
        (0.04, True, 2048),
        (0.0935, True, None),
        (0.0001, False, 64),
    ],
)
def test_the_cap_is_what_keeps_the_longest_wait_by_halving(itl_p99_s, mixed, expected):
    now = seen(exact(Affine()), knobs=Knobs(64, 8192, mixed_chunk=mixed))
    found = by_knob(SloGuard(itl_p99_s=itl_p99_s).propose(now))
    assert (CHUNK in found) is (expected is not None)
    if expected is not None:
        assert (found[CHUNK].value, found[CHUNK].kind) == (expected, Kind.CAP)


def test_the_cap_minds_the_margin_and_what_tokens_have_aged():
    def cap(spread, **fields):
        return by_knob(SloGuard(itl_p99_s=0.1).propose(seen(exact(Affine(), spread), **fields)))[CHUNK].value

    assert cap(0.1) == 4096  # 1.25 x
    assert cap(0.0, token_age_s=0.06) == 2048


@pytest.mark.parametrize(
    "now",
    [
        seen(),
        seen(exact(Affine()), LONG._replace(running=0)),
        seen(exact(Affine()), bounds=Bounds({RELEGATE: Range(0, 3600)}, {CHUNK: "chunked prefill is off"})),
    ],
    ids=["not_predicted", "nobody_runs", "immovable"],
)
def test_no_cap_where_it_is_not_known_needed_or_possible(now):
    assert CHUNK not in by_knob(SloGuard(itl_p99_s=1e-6).propose(now))


@settings(deadline=None)
@given(
    base_s=st.floats(0, 1), token_s=st.floats(0, 1), row_s=st.floats(0, 1), spread=st.floats(0, 5),
    itl_p99_s=st.floats(1e-9, 100), age_s=st.floats(0, 100), running=st.integers(1, 300), mixed=st.booleans(),
    low=st.integers(1, 64), high=st.integers(64, 8192), step=st.integers(1, 64), waiting=st.integers(0, 100),
)  # fmt: skip
def test_proposals_are_within_bounds_and_a_cap_above_the_least_keeps_the_wait(
    base_s, token_s, row_s, spread, itl_p99_s, age_s, running, mixed, low, high, step, waiting
):
    times, limits = Affine(base_s, token_s, row_s), Range(low, high, step)
    bounds = Bounds({CHUNK: limits, RELEGATE: Range(0, 3600)}, {})
    queue = LONG._replace(running=running, waiting=waiting)
    knobs = Knobs(64, high, mixed_chunk=mixed)
    proposals = by_knob(
        SloGuard(itl_p99_s=itl_p99_s).propose(seen(exact(times, spread), queue, bounds, knobs, token_age_s=age_s))
    )
    chunk = proposals[CHUNK].value if CHUNK in proposals else high
    assert limits.clamp(chunk) == chunk
    decode, margin = BatchShape.of(decode_contexts=[1] * running), 1 + 2.5 * spread
    prefill = BatchShape.of(prefill=[(chunk, 0)])
    takes_s = times.seconds(prefill, decode if mixed else BatchShape()) * margin
    takes_s += 0.0 if mixed else times.seconds(BatchShape(), decode) * margin
    assert chunk == limits.clamp(low) or age_s + takes_s <= itl_p99_s * (1 + 1e-9) + 1e-9


@pytest.mark.parametrize(
    ("field", "value"),
    [("relegate_for_s", -1), ("relegate_for_s", 3601), ("itl_p99_s", 0.0), ("itl_p99_s", float("nan"))],
)
def test_refuses_parameters_out_of_range(field, value):
    with pytest.raises(FieldError) as raised:
        SloGuard(**{field: value})
    assert raised.value.key == field
