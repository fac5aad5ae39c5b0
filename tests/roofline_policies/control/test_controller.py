import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roofline_policies.contract.decision import Bounds, Knob, Knobs, Range
from roofline_policies.contract.view import ForwardMode, QueueState
from roofline_policies.control.controller import Controller, ControllerSettings, State
from roofline_policies.errors import FieldError
from roofline_policies.model.batch import BatchShape
from roofline_policies.policies import (
    BatchSize,
    PrefillDeferral,
    Proposal,
    RidgeBatchSize,
    RidgePrefillDeferral,
    SloGuard,
    Static,
    compose,
)
from roofline_policies.slo.objectives import ItlKind, Slo
from tests.roofline_policies.records import CEILINGS, record
from tests.roofline_policies.views import BOUNDS, LAUNCH

BUSY = QueueState(running=8, waiting=4, next_prefill_tokens=4000)


class Says:
    """A policy that answers with the same value for one knob every time."""

    def __init__(self, knob, value):
        self.answer = Proposal("Says", knob, value, "because")

    def propose(self, view):
        return (self.answer,)


class Raises:
    def propose(self, view):
        raise ZeroDivisionError("no seconds")


def controller(policy, slo=None, **options):
    return Controller(
        policy, ceilings=CEILINGS, bounds=BOUNDS, launch=LAUNCH, slo=slo or Slo(),
        settings=ControllerSettings(**options), started_s=0.0,
    )  # fmt: skip


def test_static_never_moves():
    loop = controller(Static())
    for step in range(5):
        loop.observe(record(float(step)))
        assert loop.decide(float(step), BUSY).knobs == LAUNCH
    assert sum(loop.changes.totals.values()) == 0


def test_a_decision_is_adopted_logged_and_explained():
    loop = controller(Says(Knob.MAX_RUNNING_REQUESTS, 32))
    decision = loop.decide(3.0, BUSY)
    assert decision.knobs == loop.knobs == Knobs(32, 2048)
    (entry,) = loop.changes.recent()
    assert (entry.t_s, entry.change.reason, entry.change.old, entry.change.new) == (3.0, "because", 64, 32)
    assert loop.changes.totals[Knob.MAX_RUNNING_REQUESTS] == 1


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        (Raises(), "Raises raised ZeroDivisionError: no seconds"),
        (Says(Knob.PREFILL_CHUNK_TOKENS, float("nan")), "nan"),
        (Says(Knob.PREFILL_CHUNK_TOKENS, "512"), "'512'"),
    ],
)
def test_a_failing_policy_turns_to_the_launch_settings_for_good(policy, reason):
    loop = controller(Says(Knob.MAX_RUNNING_REQUESTS, 16))
    assert loop.decide(0.0, BUSY).knobs.max_running_requests == 16
    loop.policy = policy
    decision = loop.decide(1.0, BUSY)
    assert loop.state is State.FALLBACK
    assert reason in loop.fallback_reason
    assert decision.knobs == LAUNCH
    assert [change.reason for change in decision] == [f"fallback: {loop.fallback_reason}"]
    loop.policy = Says(Knob.MAX_RUNNING_REQUESTS, 16)
    assert loop.decide(9.0, BUSY).knobs == LAUNCH


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_an_impossible_time_turns_to_the_launch_settings(seconds):
    loop = controller(Says(Knob.MAX_RUNNING_REQUESTS, 16))
    loop.observe(record(1.0, seconds))
    assert loop.state is State.FALLBACK
    assert loop.decide(2.0, BUSY).knobs == LAUNCH


def test_a_policy_over_its_budget_is_given_up_only_when_it_keeps_happening():
    loop = controller(Static(), budget_s=1e-9, overruns=3)
    for step in range(2):
        loop.decide(float(step), BUSY)
        assert loop.state is State.ACTIVE
    loop.decide(2.0, BUSY)
    assert loop.state is State.FALLBACK
    assert "over its budget" in loop.fallback_reason


def test_prefill_and_decode_are_placed_apart_and_mixed_steps_in_neither():
    loop = controller(Static())
    loop.observe(record(1.0, mode=ForwardMode.PREFILL, flops=90, read=1))
    loop.observe(record(2.0, mode=ForwardMode.DECODE, flops=10, read=9))
    loop.observe(record(3.0, mode=ForwardMode.MIXED, flops=50, read=5))
    view = loop.view(3.0, BUSY)
    assert (view.prefill.flops_per_s, view.decode.flops_per_s) == (90.0, 10.0)
    assert loop.mixed.point().flops_per_s == 50.0


def test_the_next_chunk_of_a_prompt_is_expected_to_take_after_the_last():
    loop = controller(Static())
    loop.observe(record(1.0, 1.0, mode=ForwardMode.PREFILL, tokens=900))
    loop.observe(record(1.0, 1.0, mode=ForwardMode.PREFILL, tokens=100))
    assert loop.view(1.0, BUSY).prefill_tokens_per_s == 500.0
    assert loop.view(1.0, BUSY._replace(chunk_in_flight=True)).prefill_tokens_per_s == 100.0
    loop.observe(record(1.0, 1.0, mode=ForwardMode.PREFILL, tokens=2000))
    assert loop.view(1.0, BUSY._replace(chunk_in_flight=True)).prefill_tokens_per_s == 1000.0


def test_gaps_run_from_token_to_token_across_prefills_and_not_across_a_pause():
    loop = controller(Static(), Slo(itl_s=1.0, itl_kind=ItlKind.MEAN_TPOT))
    loop.observe(record(1.0))
    loop.observe(record(1.5, mode=ForwardMode.PREFILL))
    loop.observe(record(1.6))
    assert loop.view(1.6, BUSY).itl_s == pytest.approx(0.6)
    loop.decide(2.0, QueueState(running=0))
    loop.observe(record(50.0))
    assert loop.view(50.0, BUSY).itl_s == pytest.approx(0.6)


def test_what_decode_has_waited_for_counts_from_its_launch():
    loop = controller(Static())
    loop.launched(ForwardMode.DECODE, 1.0)
    loop.launched(ForwardMode.PREFILL, 1.1)
    loop.launched(ForwardMode.PREFILL, 1.4)
    view = loop.view(2.0, BUSY)
    assert (view.since_decode_s, view.prefills_since_decode) == (1.0, 2)
    loop.launched(ForwardMode.DECODE, 2.0)
    assert loop.view(2.5, BUSY).prefills_since_decode == 0


@given(
    st.lists(
        st.tuples(
            st.sampled_from(ForwardMode), st.floats(1e-3, 2.0), st.integers(0, 10**6), st.integers(1, 10**6),
            st.integers(0, 64), st.integers(0, 100),
        ),
        max_size=40,
    ),
    st.one_of(st.none(), st.floats(1e-3, 2.0)),
    st.sampled_from(ItlKind),
)  # fmt: skip
def test_any_traffic_keeps_the_knobs_in_bounds_and_the_same_traffic_gives_the_same_decisions(steps, itl_s, kind):
    def play():
        loop, now_s, decisions = (
            controller(compose(RidgeBatchSize(), RidgePrefillDeferral()), Slo(itl_s=itl_s, itl_kind=kind)),
            0.0,
            [],
        )
        for mode, step_s, flops, read, running, waiting in steps:
            loop.launched(mode, now_s)
            now_s += step_s
            loop.observe(record(now_s, step_s, mode=mode, flops=flops, read=read))
            decision = loop.decide(
                now_s, QueueState(running=running, waiting=waiting, next_prefill_tokens=waiting * 100)
            )
            assert BOUNDS.contains(decision.knobs)
            decisions.append(decision)
        assert loop.state is State.ACTIVE
        return decisions

    assert play() == play()


class Told:
    def step_s(self, *, prefill, decode, graph):
        return 0.5


def predicting(policy, told=None, bounds=BOUNDS, slo=None, **options):
    return Controller(
        policy, ceilings=CEILINGS, bounds=bounds, launch=LAUNCH, slo=slo or Slo(),
        settings=ControllerSettings(**options), started_s=0.0, predictor=told or Told(),
    )  # fmt: skip


def test_policies_are_shown_the_predictor_and_what_was_learned_of_its_errors():
    view = controller(Static()).view(0.0, BUSY)
    assert (view.predictor, view.steps, view.token_age_s) == (None, None, 0.0)
    told = Told()
    loop = predicting(Static(), told)
    assert loop.view(0.0, BUSY).predictor is told
    decode = BatchShape.of(decode_contexts=[9])
    assert loop.view(0.0, BUSY).steps.step_s(decode=decode) == 0.5
    for number in range(100):
        loop.launched(ForwardMode.DECODE, float(number), decode=decode)
        loop.observe(record(number + 0.75, 0.75))
    view = loop.view(100.0, BUSY)
    assert view.steps.step_s(decode=decode) == pytest.approx(0.75, rel=0.02)
    assert view.predictor.step_s(prefill=decode, decode=decode, graph=False) == 0.5
    assert view.token_age_s == 0.25
    loop.pause()
    assert loop.view(100.0, BUSY).token_age_s == 0.0


def test_how_long_prompts_have_waited_for_a_step_counts_while_some_wait():
    loop = controller(Static())
    assert loop.view(5.0, BUSY).since_prefill_s == 0.0
    loop.decide(5.0, QueueState(running=3))
    loop.decide(6.0, BUSY)
    assert loop.view(7.5, BUSY).since_prefill_s == 2.5  # since the last moment without one
    loop.launched(ForwardMode.DECODE, 8.0)
    assert loop.view(8.0, BUSY).since_prefill_s == 3.0
    for mode in (ForwardMode.PREFILL, ForwardMode.MIXED):
        loop.launched(mode, 9.0)
        assert loop.view(9.25, BUSY).since_prefill_s == 0.25
    loop.decide(20.0, QueueState(running=3, chunk_in_flight=True))
    assert loop.view(20.0, BUSY).since_prefill_s == 11.0


def test_a_prompts_own_long_step_is_not_a_time_without_one():
    loop = predicting(Static(), Told())  # each step takes 0.5 s
    loop.launched(ForwardMode.PREFILL, 5.0, prefill=BatchShape.of(prefill=[(8192, 0)]))
    assert loop.view(5.4, BUSY).since_prefill_s == 0.0
    assert loop.view(6.0, BUSY).since_prefill_s == pytest.approx(0.5)
    loop.launched(ForwardMode.MIXED, 5.1, prefill=BatchShape.of(prefill=[(8192, 0)]))  # behind the one that runs
    assert loop.view(6.0, BUSY).since_prefill_s == 0.0
    assert loop.view(6.25, BUSY).since_prefill_s == pytest.approx(0.25)


class Counts:
    def __init__(self):
        self.seen = []

    def propose(self, view):
        self.seen.append(view.decisions)
        return (Proposal("Counts", Knob.PREFILL_CHUNK_TOKENS, 512, "each time"),)


def test_decisions_are_counted_and_no_more_frequent_than_asked_for():
    often = controller(Counts())
    for step in range(4):
        often.decide(step / 100, BUSY)
    assert often.policy.seen == [0, 1, 2, 3]
    seldom = controller(Counts(), decide_every_s=1.0)
    decisions = [seldom.decide(now_s, BUSY) for now_s in (10.0, 10.5, 10.99, 11.0, 11.5, 50.0)]
    assert seldom.policy.seen == [0, 1, 2]
    assert {decision.knobs.prefill_chunk_tokens for decision in decisions} == {512}
    assert [len(decision.changes) for decision in decisions] == [1, 0, 0, 0, 0, 0]


def test_a_policy_that_is_given_up_goes_back_at_once_however_seldom_it_decides():
    loop = controller(Says(Knob.MAX_RUNNING_REQUESTS, 16), decide_every_s=100.0)
    assert loop.decide(0.0, BUSY).knobs.max_running_requests == 16
    loop.fall_back("it broke")
    assert loop.decide(0.1, BUSY).knobs == LAUNCH


WIDE = Bounds({**BOUNDS.ranges, Knob.RELEGATE_FOR_S: Range(0, 3600)}, {})


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(ForwardMode), st.floats(1e-3, 2.0), st.integers(1, 64), st.integers(0, 100),
            st.integers(0, 5000), st.one_of(st.none(), st.floats(1e-3, 1.0)), st.one_of(st.none(), st.floats(-5, 5)),
        ),
        max_size=30,
    ),
    st.one_of(st.none(), st.floats(1e-3, 1.0)),
)  # fmt: skip
def test_the_shipped_policies_keep_the_knobs_in_bounds_and_decide_alike_for_any_traffic(steps, itl_p99_s):
    def play():
        policy = compose(BatchSize(), PrefillDeferral(explore_every=3), SloGuard(itl_p99_s=itl_p99_s))
        loop, now_s, decisions = predicting(policy, bounds=WIDE, budget_s=10.0), 0.0, []
        for mode, step_s, running, waiting, tokens, gap_s, due_s in steps:
            prefill = BatchShape.of(prefill=[(max(1, tokens), 0)] if mode is not ForwardMode.DECODE else [])
            decode = BatchShape.of(decode_contexts=[9] * running if mode is not ForwardMode.PREFILL else [])
            loop.launched(mode, now_s, prefill, decode)
            now_s += step_s
            loop.observe(record(now_s, step_s, mode=mode))
            queue = QueueState(
                running=running, waiting=waiting, next_prefill_tokens=tokens, gap_s=gap_s, due_s=due_s,
                mean_s=None if due_s is None else 0.1,
            )  # fmt: skip
            decisions.append(loop.decide(now_s, queue))
            assert WIDE.contains(decisions[-1].knobs)
        assert loop.state is State.ACTIVE, loop.fallback_reason
        return decisions

    assert play() == play()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("decide_every_s", -1),
        ("half_life_s", 0),
        ("gaps", 0),
        ("overhead_below", 2),
        ("budget_s", -1),
        ("overruns", 0),
        ("dwell_s", -1),
    ],
)
def test_refuses_settings_out_of_range(field, value):
    with pytest.raises(FieldError) as raised:
        ControllerSettings(**{field: value})
    assert raised.value.key == field


def test_drafts_that_were_observed_are_shown_with_what_a_step_yields():
    launch = Knobs(64, 2048, speculation_window=2)
    window = Knob.SPECULATION_WINDOW
    loop = Controller(
        Says(window, 1), ceilings=CEILINGS, bounds=Bounds({window: Range(0, 2)}, {}), launch=launch, slo=Slo(),
        settings=ControllerSettings(), started_s=0.0, rows_per_request=3,
    )  # fmt: skip
    before = loop.view(0.0, BUSY)
    assert (before.acceptance, before.tokens_per_request, before.since_drafts_s) == (None, None, None)
    assert before.rows_per_request == 3
    loop.observe_drafts(1.0, 2, [2, 0, 1, 2], [None, None, 5, 5])
    seen = loop.view(3.0, BUSY)
    first, second = seen.acceptance
    assert seen.tokens_per_request == pytest.approx(1 + first + first * second)
    assert seen.since_drafts_s == 2.0
    loop.decide(3.0, BUSY)
    after = loop.view(3.0, BUSY)
    assert after.rows_per_request == 2
    assert after.tokens_per_request == pytest.approx(1 + first)


def test_without_drafts_a_step_yields_one_token():
    seen = controller(Static()).view(0.0, BUSY)
    assert (seen.rows_per_request, seen.tokens_per_request, seen.acceptance) == (1, 1.0, None)
