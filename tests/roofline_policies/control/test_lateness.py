"""Gaps that come later than planned: what counts as one, and how far and how fast targets are tightened for it."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roofline_policies.contract.view import ForwardMode, PlannedGap, QueueState
from roofline_policies.control.lateness import ALARM, BLOCK, MOST_TIGHTENING, PROMISED, STEP, Kept, Lateness, Tightening
from tests.roofline_policies.records import record

TARGET_S = 0.1


def told(gaps, most=MOST_TIGHTENING):
    tightening = Tightening(most)
    for late in gaps:
        tightening.count(late)
    return tightening.factor


@settings(max_examples=200, deadline=None)
@given(st.lists(st.booleans(), max_size=400), st.data())
def test_more_late_gaps_never_tighten_less(gaps, data):
    more = [late or data.draw(st.booleans()) for late in gaps]
    assert told(more) >= told(gaps)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.booleans(), max_size=400), st.sampled_from([1.0, 1.3, 2.0]))
def test_the_factor_is_bounded_and_moves_slowly(gaps, most):
    tightening = Tightening(most)
    for late in gaps:
        before = tightening.factor
        tightening.count(late)
        assert 1.0 <= tightening.factor <= most
        assert before - 0.01 <= tightening.factor <= before + STEP + 1e-9
        assert (tightening.factor >= before) if late else (tightening.factor <= before)


def test_from_always_late_to_always_in_time_it_comes_back_to_one():
    late = [True] * 100
    assert told(late[:8]) == 1.0 < told(late[:9])
    assert told(late[:57]) < told(late[:58]) == MOST_TIGHTENING == told(late)
    assert told([*late, *[False] * 500]) > 1.8  # slowly at first
    assert told([*late, *[False] * 2200]) == 1.0


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("share", "most"), [(0.25, 1.0), (0.5, 1.1)])
def test_where_gaps_are_late_less_often_than_promised_chance_tightens_hardly_ever(share, most, seed):
    random, tightening = Random(seed), Tightening(MOST_TIGHTENING)
    for _ in range(50_000):
        tightening.count(random.random() < share * PROMISED)
        assert tightening.factor <= most


@pytest.mark.parametrize("delay", [0, 5])
@pytest.mark.parametrize("needed", [1.1, 1.5])
def test_it_settles_where_gaps_are_in_time_and_does_not_swing(needed, delay):
    """Gaps are late while the factor of ``delay`` gaps before was below ``needed``."""
    tightening, factors, late = Tightening(MOST_TIGHTENING), [1.0] * (delay + 1), []
    for _ in range(20_000):
        late.append(factors[-1 - delay] < needed)
        tightening.count(late[-1])
        factors.append(tightening.factor)
    settled = factors[2000:]
    assert needed - STEP * (delay + 2) <= min(settled)
    assert max(settled) <= needed + STEP * (delay + 2)
    # What is late until a change is felt comes on top: of so few late gaps, up to half as many again.
    assert sum(late[2000:]) / len(late[2000:]) <= (1.5 if delay else 1.0) * PROMISED


@pytest.mark.parametrize("seed", range(3))
def test_gaps_that_are_late_at_random_are_brought_to_the_promised_share(seed):
    """One gap in twenty is late, and fewer the tighter the target is, none of them at 1.4."""
    random, tightening, late = Random(seed), Tightening(MOST_TIGHTENING), []
    for _ in range(60_000):
        late.append(random.random() < 0.05 * max(0.0, 1.0 - (tightening.factor - 1.0) / 0.4))
        tightening.count(late[-1])
    assert sum(late[10_000:]) / 50_000 <= 1.1 * PROMISED
    assert 1.1 < tightening.factor < 1.5


def kept(*gaps, times=100):
    """What is kept of gaps (seconds, planned at most) that come again and again."""
    one = Kept("between two tokens", MOST_TIGHTENING)
    for number in range(times):
        for took_s, slow_s in gaps:
            one.add(took_s, slow_s, TARGET_S, float(number))
    return one


def test_a_gap_that_was_planned_late_promises_nothing():
    shown = kept((0.15, 0.11)).shown(100.0)
    assert (shown.late, shown.tightened, shown.since_s, shown.planned_late) == (None, 1.0, None, pytest.approx(1.0))


def test_a_gap_that_no_plan_within_reach_keeps_is_no_reason_to_tighten():
    shown = kept((0.15, 0.07)).shown(100.0)
    assert (shown.late, shown.tightened, shown.beyond) == (None, 1.0, pytest.approx(1.0))
    assert kept((0.13, 0.07)).shown(100.0).tightened > 1.0


def test_what_people_are_shown_of_gaps_that_are_late():
    shown = kept((0.12, 0.095), (0.09, 0.095)).shown(109.0)
    assert shown.judged == 200
    assert shown.late == pytest.approx(0.5, abs=0.01)
    assert shown.late_by == pytest.approx(0.2)
    assert shown.promised == pytest.approx(1 / 160)
    assert shown.tightened == pytest.approx(MOST_TIGHTENING, abs=1e-3)
    assert shown.since_s == pytest.approx(109.0 - ALARM, abs=1.0)
    assert shown.says.startswith("gaps between two tokens have come later than planned for 101 s: ")
    assert shown.says.endswith("by 20% in the mean, 0.6% were promised; targets are taken 2.00 times as tight")


def test_words_for_a_target_that_is_still_tightened():
    one = kept((0.12, 0.095))
    for number in range(700):
        one.add(0.09, 0.085, TARGET_S, 100.0 + number)
    for number in range(4000):
        one.add(0.02, 0.015, TARGET_S, 800.0 + number)
    says = one.shown(4800.0).says
    assert says.startswith(
        "gaps between two tokens came later than planned, first 4793 s ago: of the recent ones that "
    )
    assert says.endswith(f"targets are still taken {one.tightening.factor:.2f} times as tight")


def test_prediction_and_measurement_agree_again_once_the_debt_is_paid():
    one = kept((0.12, 0.095))
    assert one.since_s == ALARM - 1.0
    for number in range(2500):
        one.add(0.09, 0.085, TARGET_S, 100.0 + number)
    assert (one.tightening.factor, one.since_s, one.shown(9e9).says) == (1.0, None, "as promised")


def test_gaps_that_could_not_be_late_say_little():
    """One gap in a hundred is filled with prompts and late; the others are decode steps far below the target."""
    assert kept((0.12, 0.095), *[(0.02, 0.021)] * 99, times=20).shown(0.0).tightened > 1.0
    assert kept((0.12, 0.095), *[(0.09, 0.095)] * 399, times=20).shown(0.0).tightened == 1.0


def served(steps, queue=QueueState(running=4, gap_s=TARGET_S), lateness=None):
    """Steps (mode, planned at most, took) one after the other, each told of at its end."""
    lateness, now_s = lateness or Lateness(MOST_TIGHTENING), 0.0
    for mode, slow_s, took_s in steps:
        gap = lateness.launched(mode, slow_s, queue)
        now_s += took_s
        lateness.ended(record(now_s, took_s, mode=mode)._replace(gap=gap))
    return lateness


PREFILL, DECODE, MIXED = ForwardMode.PREFILL, ForwardMode.DECODE, ForwardMode.MIXED


def test_a_gap_is_planned_and_measured_over_all_its_steps():
    turn = [(DECODE, 0.02, 0.02), (PREFILL, 0.04, 0.05), (PREFILL, 0.03, 0.05)]
    lateness = served(turn * 30)
    assert lateness.gaps.judged == 29  # the first decode step ends no gap
    assert lateness.gaps.shown(0.0).late == 1.0
    assert lateness.gaps.shown(0.0).late_by == pytest.approx(0.2)
    # The same with 0.031 s: planned to take 0.101 s, it was never promised.
    never = served([(mode, slow_s + 0.011 * (slow_s == 0.02), took_s) for mode, slow_s, took_s in turn] * 30)
    assert (never.gaps.judged, never.gaps.shown(0.0).late) == (29, None)
    assert served([(MIXED, 0.09, 0.12)] * 30).gaps.shown(0.0).late == 1.0


@pytest.mark.parametrize("unknown", [None, QueueState(running=4)])
def test_nothing_is_judged_without_a_prediction_or_a_target(unknown):
    queue = unknown or QueueState(running=4, gap_s=TARGET_S)
    assert served([(DECODE, 0.09 if unknown else None, 0.2)] * 100, queue).gaps.judged == 0


def test_a_pause_is_no_gap():
    lateness = served([(DECODE, 0.09, 0.09)] * 3)
    lateness.pause()
    served([(PREFILL, 0.03, 5.0), (DECODE, 0.03, 0.03), (DECODE, 0.03, 0.03)], lateness=lateness)
    shown = lateness.gaps.shown(0.0)
    assert (lateness.gaps.judged, shown.late, shown.beyond) == (3, 0.0, 0.0)


def test_a_lost_record_is_no_late_gap():
    lateness, now_s = Lateness(MOST_TIGHTENING), 0.0
    for number in range(100):
        gap, now_s = lateness.launched(DECODE, 0.095, QueueState(gap_s=TARGET_S)), now_s + 0.09
        if number % 3:
            lateness.ended(record(now_s)._replace(gap=gap))
    assert lateness.gaps.judged == 33
    assert lateness.gaps.shown(0.0).late == 0.0


def test_a_step_that_waited_for_another_ranks_prompts_is_not_judged():
    lateness = Lateness(MOST_TIGHTENING)
    for number in range(10):
        gap = lateness.launched(DECODE, 0.05, QueueState(gap_s=TARGET_S))
        lateness.ended(record(0.2 * number)._replace(gap=gap, alone=number % 2 == 0))
    assert lateness.gaps.judged == 4


def test_a_gap_lasts_from_result_to_result_wherever_the_device_was_done():
    lateness = Lateness(MOST_TIGHTENING)
    for number in range(20):
        gap = lateness.launched(DECODE, 0.095, QueueState(gap_s=TARGET_S))
        lateness.ended(record(0.09 * number)._replace(gap=gap, told_s=0.12 * number))
    assert lateness.gaps.shown(0.0).late == 1.0


def test_a_mean_is_judged_over_blocks():
    queue = QueueState(running=4, mean_s=TARGET_S)
    uneven = [(DECODE, 0.06, 0.05), (MIXED, 0.13, 0.14)]  # 0.095 in the mean
    lateness = served(uneven * 500, queue)
    assert (lateness.gaps.judged, lateness.means.judged) == (0, 999 // BLOCK * BLOCK)
    assert lateness.means.shown(0.0).late == 0.0
    lateness = served([(DECODE, 0.06, 0.07), (MIXED, 0.13, 0.14)] * 500, queue)
    assert lateness.means.shown(0.0).late == 1.0
    assert lateness.tightened(queue).mean_s < TARGET_S


def test_policies_are_shown_tightened_targets_only_while_gaps_are_late():
    queue = QueueState(running=4, gap_s=TARGET_S, mean_s=0.2, due_s=0.05)
    assert Lateness(MOST_TIGHTENING).tightened(queue) is queue
    lateness = served([(DECODE, 0.09, 0.12)] * 200)
    assert lateness.tightened(queue) == queue._replace(gap_s=TARGET_S / 2)
    assert lateness.tightened(QueueState()) == QueueState()
    lateness.adopt(1.0)
    assert lateness.tightened(queue) is queue
    lateness.adopt(2.0)
    assert lateness.tightened(queue) is queue  # it starts from where the bound has left it


def test_with_a_bound_of_one_the_disagreement_is_told_and_nothing_changes():
    lateness = served([(DECODE, 0.09, 0.12)] * 200, lateness=Lateness(1.0))
    shown = lateness.shown(30.0)["per_gap"]
    assert shown.since_s is not None
    assert shown.says.endswith("; targets stay as they are")
    assert lateness.disagreeing == {"per_gap"}


def test_planned_gaps_are_of_the_targets_that_requests_have():
    lateness = served([(DECODE, 0.09, 0.12)] * 200)
    assert lateness.launched(DECODE, 0.04, QueueState(gap_s=TARGET_S)) == PlannedGap(201, 0.04, TARGET_S, None)
