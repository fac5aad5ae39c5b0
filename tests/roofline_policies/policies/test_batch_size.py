"""The cap on the batch against the closed form of its decode step."""

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roofline_policies.contract.decision import Bounds, Knob, Knobs, Range
from roofline_policies.contract.view import QueueState
from roofline_policies.errors import FieldError
from roofline_policies.model.batch import BatchShape
from roofline_policies.policies import BatchSize, Kind, Strength
from roofline_policies.policies.batch_size import LOWEST_FILL, MIDDLE_FILL, REACH, ROOM_FILL
from roofline_policies.slo.objectives import Slo
from roofline_policies.steps.acceptance import Acceptance
from roofline_policies.steps.correction import CorrectedSteps, Line
from tests.roofline_policies.steps.closed_form_steps import Affine, exact
from tests.roofline_policies.views import view

MIXED = Knob.MIXED_CHUNK
RUNNING, WINDOW = Knob.MAX_RUNNING_REQUESTS, Knob.SPECULATION_WINDOW
WIDE = Bounds({RUNNING: Range(1, 512)}, {})
HUGE = Bounds({RUNNING: Range(1, 4096)}, {})
BUSY = QueueState(running=32, waiting=500, decode_context_tokens=32_000, gap_s=0.05)


def seen(steps, queue=BUSY, bounds=WIDE, **fields):
    return view(Knobs(64, 512), queue=queue, steps=steps, **fields)._replace(bounds=bounds)


def only(proposals):
    (proposal,) = proposals
    assert (proposal.knob, proposal.kind, proposal.policy) == (RUNNING, Kind.TARGET, "BatchSize")
    assert proposal.strength is Strength.OPTIMISER
    return proposal


def crowded(cap=512, **fields):
    """A cap far above what a target allows."""
    return seen(**fields)._replace(knobs=Knobs(cap, 512))


@pytest.mark.parametrize("headroom", [0.9, 0.5, 1.0])
def test_a_cap_that_is_too_high_moves_to_the_middle_of_what_keeps_the_target(headroom):
    times = Affine(0.005, 0.0, row_s=1e-4, context_s=1e-7)  # a request brings 1,000 tokens: 0.2 ms each
    proposal = only(BatchSize(headroom).propose(crowded(steps=exact(times))))
    closed_form = (MIDDLE_FILL * headroom * 0.05 - 0.005) / 2e-4
    assert proposal.value in (int(closed_form), int(closed_form - 1e-6))


def test_a_cap_that_is_too_low_moves_there_as_well():
    times = Affine(base_s=0.005, row_s=1e-4, context_s=1e-7)
    assert only(BatchSize().propose(seen(exact(times)))).value in (154, 155)


def test_where_one_request_takes_most_of_the_time_the_cap_shares_the_rest():
    """A step takes 40 ms with nobody in it and 0.2 ms more for each: 25 keep 45 ms; 80% of that would let none run."""
    times = Affine(base_s=0.04, row_s=1e-4, context_s=1e-7)
    assert only(BatchSize().propose(crowded(steps=exact(times)))).value in (19, 20, 21)
    for cap, stays in ((10, False), (18, True), (24, True), (27, False)):
        assert (BatchSize().propose(crowded(cap, steps=exact(times))) == ()) is stays


@pytest.mark.parametrize(("cap", "stays"), [(100, False), (125, True), (199, True), (201, False)])
def test_a_cap_that_is_near_enough_stays(cap, stays):
    """At the cap a step takes 5 ms + 0.2 ms each: 65% to 100% of 45 ms is 121 to 200 requests."""
    times = Affine(base_s=0.005, row_s=1e-4, context_s=1e-7)
    assert (BatchSize().propose(crowded(cap, steps=exact(times))) == ()) is stays


@pytest.mark.parametrize(
    ("running", "waiting", "stays"),
    [(41, 0, True), (70, 7, True), (32, 45, True), (78, 0, False), (32, 46, False), (8, 700, False)],
)
def test_a_cap_that_nobody_meets_stays(running, waiting, stays):
    """The target leaves 155 to a decode step: as long as fewer than half of that run or wait, any cap above does."""
    times = Affine(base_s=0.005, token_s=0.0, row_s=2e-4)
    queue = QueueState(running=running, waiting=waiting, gap_s=0.05)
    found = BatchSize().propose(crowded(4096, steps=exact(times), queue=queue, bounds=HUGE))
    assert [proposal.value for proposal in found] in ([[]] if stays else [[154], [155]])


@pytest.mark.parametrize("cap", [83, 1801, 4096])
@pytest.mark.parametrize("queue", [{"gap_s": None}, {"gap_s": 0.003}], ids=["no_target", "none_is_kept"])
def test_a_cap_that_nobody_meets_is_not_raised_either(cap, queue):
    now = crowded(cap, steps=exact(Affine()), queue=QueueState(running=41, **queue), bounds=HUGE)
    assert BatchSize().propose(now) == ()


@pytest.mark.parametrize("queue", [{"gap_s": None}, {"gap_s": 0.003}], ids=["no_target", "none_is_kept"])
def test_a_cap_that_half_are_at_is_raised_where_nothing_is_gained_by_it(queue):
    now = crowded(81, steps=exact(Affine()), queue=QueueState(running=41, **queue), bounds=HUGE)
    assert only(BatchSize().propose(now)).value == 4096


def test_reason_is_one_line_with_what_was_seen():
    times = Affine(base_s=0.005, row_s=1e-4, context_s=1e-7)
    reason = only(BatchSize().propose(seen(exact(times)))).reason
    assert reason.endswith("requests decode in 90% of the tightest target of 50 ms (32 take 11 ms)")


@pytest.mark.parametrize(
    ("queue", "slo", "target_s"),
    [
        (BUSY, Slo(itl_s=9.0), 0.05),
        (BUSY._replace(gap_s=None, mean_s=0.03), Slo(itl_s=9.0), 0.03),
        (BUSY._replace(mean_s=0.03), Slo(), 0.03),
        (BUSY._replace(mean_s=0.3), Slo(), 0.05),
        (BUSY._replace(gap_s=None), Slo(itl_s=0.02), 0.02),
    ],
)
def test_the_running_requests_tell_the_target_and_else_the_server(queue, slo, target_s):
    times = Affine(base_s=0.0, token_s=0.0, row_s=1.01e-4)
    value = only(BatchSize(1.0).propose(crowded(steps=exact(times), queue=queue, slo=slo))).value
    assert value == int(MIDDLE_FILL * target_s / 1.01e-4)


@pytest.mark.parametrize("prefix", [0, 50_000])
@pytest.mark.parametrize("bounds", [WIDE, Bounds({RUNNING: Range(1, 512)}, {MIXED: "no"})], ids=["mixed", "exclusive"])
def test_a_gap_leaves_room_for_the_least_chunk_of_the_next_prompt(prefix, bounds):
    """128 tokens behind a long prefix in the cache take far more than the tenth of the target that headroom leaves."""
    times = Affine(base_s=0.002, token_s=1e-5, row_s=1e-4, context_s=0.0, pair_s=2e-9)
    queue = BUSY._replace(next_prompts=((900, prefix),), next_prefill_tokens=900)
    value = only(BatchSize().propose(crowded(steps=exact(times), queue=queue, bounds=bounds))).value
    chunk_s = times.seconds(BatchShape.of(prefill=[(128, prefix)]), BatchShape())
    room_s = 0.05 - chunk_s + (0.002 if bounds is WIDE else 0.0)  # beside decode rows the base is paid once
    takes_s = ROOM_FILL * room_s if room_s < MIDDLE_FILL * 0.9 * 0.05 else MIDDLE_FILL * 0.9 * 0.05
    rows = (takes_s - 0.002) / 1e-4
    assert value == pytest.approx(rows, rel=0.1 if bounds is WIDE else 0.01)
    # Under a mean a long gap can be made up for.
    mean = queue._replace(gap_s=None, mean_s=0.05)
    value = only(BatchSize().propose(crowded(steps=exact(times), queue=mean, bounds=bounds))).value
    assert value == pytest.approx((MIDDLE_FILL * 0.9 * 0.05 - 0.002) / 1e-4, abs=1)


def test_what_is_left_of_a_prompt_in_flight_does_not_move_the_cap():
    """A chunk of 128 tokens has no room beside any batch, the last 20 of a prompt in flight would: the cap must not
    follow each prompt to its end. Whole prompts of 20 tokens do have room, beside fewer requests."""
    times = Affine(base_s=0.002, token_s=1.2e-3, row_s=1e-4)
    whole = BUSY._replace(next_prompts=((900, 0),), next_prefill_tokens=900, chunk_in_flight=True)
    rest = whole._replace(next_prompts=((20, 880),), next_prefill_tokens=20)
    at_rest, at_end, short = (
        only(BatchSize().propose(crowded(steps=exact(times), queue=queue))).value
        for queue in (whole, rest, rest._replace(chunk_in_flight=False, next_prompts=((20, 0),)))
    )
    assert at_rest == at_end == pytest.approx((MIDDLE_FILL * 0.9 * 0.05 - 0.002) / 1e-4, abs=1)
    assert short == pytest.approx((ROOM_FILL * (0.05 - 0.024) - 0.002) / 1e-4, rel=0.1)


def test_without_a_target_nothing_is_gained_by_fewer():
    proposal = only(BatchSize().propose(seen(exact(Affine(row_s=1.0)), BUSY._replace(gap_s=None))))
    assert proposal.value == 512
    assert proposal.reason == "no running request has a target between its tokens"


def test_a_step_that_does_not_depend_on_the_batch_asks_for_no_fewer():
    assert only(BatchSize().propose(seen(exact(Affine(base_s=9.0, row_s=0.0))))).value == 512


def test_where_no_batch_keeps_the_target_nothing_is_gained_by_fewer():
    proposal = only(BatchSize().propose(seen(exact(Affine(base_s=9.0, row_s=1.0)))))
    assert proposal.value == 512
    assert proposal.reason == "fewer requests would not bring a decode step under 50 ms"


def test_one_request_may_always_run():
    assert only(BatchSize().propose(seen(exact(Affine(base_s=0.0, row_s=0.044))))).value == 1


@pytest.mark.parametrize(
    "now",
    [
        seen(exact(Affine()), BUSY._replace(running=0)),
        seen(None),
        seen(exact(Affine()), bounds=Bounds({}, {RUNNING: "no"})),
    ],
    ids=["nobody_runs", "not_predicted", "immovable"],
)
def test_says_nothing_where_nothing_is_to_be_decided(now):
    assert BatchSize().propose(now) == ()


def test_says_why_it_is_idle():
    assert BatchSize().idle_reason(seen(exact(Affine()))) is None
    assert "not predicted" in BatchSize().idle_reason(seen(None))
    assert BatchSize().idle_reason(seen(exact(Affine()), bounds=Bounds({}, {RUNNING: "no"}))) == "no"


@dataclass(frozen=True)
class Rows:
    """5 ms, so much per row and per token of a request's context."""

    row_s: float = 0.0
    context_s: float = 0.0

    def step_s(self, *, prefill, decode, graph):
        return 0.005 + self.row_s * decode.new_tokens + self.context_s * (decode.context_tokens - decode.new_tokens)


def drafting(times, window, acceptance, limits=None, **queue):
    """32 requests with 1,000 tokens each; a step verifies so many drafts."""
    rows = window + 1
    queue = BUSY._replace(**{"decode_context_tokens": 32_000 + 32 * rows, **queue})
    bounds = Bounds({RUNNING: Range(1, 512), **({WINDOW: limits} if limits else {})}, {MIXED: "drafts"})
    tokens = 1.0 + Acceptance(acceptance).mean_accepted(window)
    knobs = Knobs(512, 512, speculation_window=window if limits else None)
    line = Line(spread=0.0)
    return seen(
        CorrectedSteps(times, line, line, line), queue, bounds, acceptance=acceptance, rows_per_request=rows,
        tokens_per_request=tokens,
    )._replace(knobs=knobs)  # fmt: skip


def test_a_step_of_drafts_may_take_the_target_of_a_gap_and_that_of_a_mean_as_often_as_it_has_tokens():
    """3 drafts, all accepted: 4 rows and 4 tokens per request. A request costs 4 x 0.05 ms, and a step 5 ms."""
    times, always = Rows(row_s=5e-5), (1.0,)
    gap = only(BatchSize().propose(drafting(times, 3, always, gap_s=0.05)))
    assert gap.value in (154, 155)  # (0.8 x 0.9 x 50 ms - 5 ms) / 0.2 ms
    mean = only(BatchSize().propose(drafting(times, 3, always, gap_s=None, mean_s=0.0125)))
    assert mean.value == gap.value
    both = only(BatchSize().propose(drafting(times, 3, always, gap_s=0.03, mean_s=0.0125)))
    assert both.value in (82, 83)


@pytest.mark.parametrize(
    ("times", "window", "value"),
    [
        # Rows cost: 0.9 x 50 ms hold 400 requests without drafts, or 100 with 3 that yield 2.5. 80%: 310.
        (Rows(row_s=1e-4), 0, 310),
        # Contexts cost, rows nothing: 3 drafts yield 2.5 times as much of as many requests, whatever runs now.
        (Rows(context_s=2e-7), 3, 155),
    ],
    ids=["rows", "contexts"],
)
@pytest.mark.parametrize("now", [0, 3])
def test_where_drafts_move_the_cap_is_that_of_the_number_that_yields_most(times, window, value, now):
    told = drafting(times, now, (0.75, 0.6, 0.67), Range(0, 3))
    assert only(BatchSize().propose(told)).value in (value - 1, value)
    assert BatchSize()._with_drafts(told, 512, told.steps).rows_per_request == window + 1


def test_before_anything_is_known_of_acceptance_it_is_idle():
    told = drafting(Rows(row_s=1e-4), 3, (0.5,))._replace(acceptance=None, tokens_per_request=None)
    assert BatchSize().propose(told) == ()
    assert "acceptance" in BatchSize().idle_reason(told)


def room_s(times, margin, gap_s, running, context):
    """What the least chunk leaves of a gap to the decode step, where it fits beside one request; else all of it."""
    chunk, one = BatchShape.of(prefill=[(128, 0)]), context // running
    alone_s, rows = times.seconds(chunk, BatchShape()), BatchShape(running, running, context, context, context, running)
    first = BatchShape(1, 1, one, one, one, 1)
    beside_one_s = min(alone_s + times.seconds(BatchShape(), first), times.seconds(chunk, first))
    if beside_one_s * margin > gap_s:
        return float("inf")
    mixed = gap_s * times.seconds(BatchShape(), rows) / times.seconds(chunk, rows)
    return max(gap_s / margin - alone_s, mixed / margin)


@settings(deadline=None)
@given(
    base_s=st.floats(0, 1), row_s=st.floats(0, 1), context_s=st.floats(0, 1e-3), spread=st.floats(0, 10),
    running=st.integers(1, 1000), waiting=st.integers(0, 1000), context=st.integers(0, 10**8),
    gap_s=st.one_of(st.none(), st.floats(1e-9, 1e3)), mean_s=st.one_of(st.none(), st.floats(1e-9, 1e3)),
    itl_s=st.one_of(st.none(), st.floats(1e-9, 1e3)), headroom=st.floats(0.01, 1.0),
    low=st.integers(1, 8), high=st.integers(8, 512),
)  # fmt: skip
def test_proposals_are_whole_numbers_of_requests_that_fit_where_any_do(
    base_s, row_s, context_s, spread, running, waiting, context, gap_s, mean_s, itl_s, headroom, low, high
):
    times = Affine(base_s, 0.0, row_s, context_s)
    queue = QueueState(running, waiting, decode_context_tokens=context, gap_s=gap_s, mean_s=mean_s)
    now = seen(exact(times, spread), queue, Bounds({RUNNING: Range(low, high)}, {}), slo=Slo(itl_s=itl_s))
    found = BatchSize(headroom).propose(now)
    value = only(found).value if found else now.knobs.max_running_requests
    assert isinstance(value, int)
    assert 1 <= value <= max(high, running, 64)
    targets = [target for target in (gap_s, mean_s) if target is not None] or [itl_s]
    if targets != [None] and value < high:
        each = max(running, context) / running

        def takes_s(batch):
            return base_s + (row_s + context_s * each) * batch

        most_s = headroom * min(targets)
        lowest_fill, fits = LOWEST_FILL, gap_s == min(targets)
        beside_s = room_s(times, 1.0 + 2.5 * spread, gap_s, running, max(running, context)) if fits else float("inf")
        if MIDDLE_FILL * most_s > beside_s:
            most_s, lowest_fill = beside_s, MIDDLE_FILL
        soon = REACH * (running + waiting)
        if not found and value >= soon:  # nobody meets it; whoever could come soon keeps the target, or none would
            assert min(takes_s(soon), max(0.0, most_s - takes_s(1))) <= most_s * (1 + 1e-6) + 1e-9
            return
        assert value == 1 or takes_s(value) <= most_s * (1 + 1e-6) + 1e-9
        assert takes_s(value + 2) >= lowest_fill * most_s * (1 - 1e-6) - 1e-9


@pytest.mark.parametrize("value", [0.0, 1.1, -1, float("nan")])
def test_refuses_parameters_out_of_range(value):
    with pytest.raises(FieldError) as raised:
        BatchSize(value)
    assert raised.value.key == "headroom"
