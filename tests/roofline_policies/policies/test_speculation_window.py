from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roofline_policies.contract.decision import Bounds, Knob, Range
from roofline_policies.contract.view import QueueState
from roofline_policies.device.roofline import Bound
from roofline_policies.errors import FieldError
from roofline_policies.model.batch import BatchShape
from roofline_policies.policies import Kind, RidgeSpeculationWindow, SpeculationWindow, Strength
from roofline_policies.policies.speculation_window import windows
from roofline_policies.steps.correction import CorrectedSteps, Line
from tests.roofline_policies.views import BOUNDS, LAUNCH, point, view

KNOB = Knob.SPECULATION_WINDOW
QUEUE = QueueState(running=8)
EXACT = Line(spread=0.0)
"""Of steps that never take longer than expected: what may be exceeded is what is expected."""


@dataclass(frozen=True)
class Rows:
    """10 ms, ``row_s`` per row above the first of each request, ``draft_s`` per draft. Keeps what it was asked."""

    row_s: float = 0.0
    draft_s: float = 0.0015
    asked: list = field(default_factory=list)

    def step_s(self, *, prefill, decode, graph):
        assert not prefill.requests
        assert graph
        self.asked.append(decode)
        drafts = decode.new_tokens // decode.requests - 1
        return 0.01 + self.row_s * drafts * decode.requests + self.draft_s * drafts


def seen(window=2, acceptance=(0.8,), *, row_s=0.0, limits=Range(0, 4), gap_s=None, times=None, **fields):  # noqa: B008
    bounds = Bounds({**BOUNDS.ranges, KNOB: limits} if limits else BOUNDS.ranges, {})
    fields.setdefault("steps", CorrectedSteps(times or Rows(row_s), decode=EXACT))
    fields.setdefault("since_drafts_s", 0.0)
    fields.setdefault("rows_per_request", (window or 0) + 1)
    queue = fields.pop("queue", QUEUE)
    queue = queue._replace(gap_s=gap_s, decode_context_tokens=100 * queue.running + queue.running * ((window or 0) + 1))
    knobs = replace(LAUNCH, speculation_window=window)
    return view(knobs, queue=queue, acceptance=acceptance, **fields)._replace(bounds=bounds)


def only(proposals):
    (proposal,) = proposals
    assert proposal.knob is KNOB
    assert proposal.kind is Kind.TARGET
    return proposal


def per_second(window, chain, row_s, draft_s, running=8):
    """The formula, written out."""
    tokens, all_before = 1.0, 1.0
    for position in range(window):
        all_before *= chain[min(position, len(chain) - 1)]
        tokens += all_before
    seconds = 0.01 + row_s * running * window + window * draft_s
    return tokens / seconds, seconds


def test_takes_the_window_with_most_tokens_per_second():
    # 2 drafts: 2.44 tokens in 13 ms; 4: 3.3616 in 16 ms.
    proposal = only(SpeculationWindow().propose(seen()))
    assert proposal.value == 4
    assert proposal.strength is Strength.OPTIMISER
    assert proposal.reason == (
        "at 80% acceptance of the first draft 4 drafts yield 3.36 tokens in 16.0 ms, as predicted: "
        "12% more per second than 2 drafts"
    )


def test_drafts_that_are_hardly_accepted_are_turned_off():
    proposal = only(SpeculationWindow().propose(seen(acceptance=(0.05,))))
    assert proposal.value == 0
    assert "0 drafts yield 1.00 tokens in 10.0 ms" in proposal.reason


def test_rows_that_cost_keep_the_window_short():
    # A draft costs 1.5 ms, verifying it 5.6 ms: 1.80 tokens in 17.1 ms for one, 2.44 in 24.2 ms for two, 1 in 10 ms.
    assert only(SpeculationWindow().propose(seen(window=4, row_s=0.0007))).value == 1


def test_positions_beyond_the_known_are_taken_for_the_last():
    # Only the first draft is any good; the second position is what the third and fourth are judged by.
    assert only(SpeculationWindow().propose(seen(window=4, acceptance=(0.9, 0.05)))).value == 1


def test_a_gain_below_worth_moves_nothing():
    assert SpeculationWindow(worth=0.2).propose(seen()) == ()
    assert only(SpeculationWindow(worth=0.11).propose(seen())).value == 4
    assert SpeculationWindow().propose(seen(window=4)) == ()


def test_the_tightest_gap_rules_windows_out():
    # 3 drafts take 14.5 ms, 4 take 16 ms.
    assert only(SpeculationWindow().propose(seen(gap_s=0.015))).value == 3
    proposal = only(SpeculationWindow().propose(seen(window=4, gap_s=0.0125)))
    assert proposal.value == 1
    assert proposal.strength is Strength.GUARD
    assert proposal.reason == (
        "a step of 4 drafts takes up to 16.0 ms, too long for the tightest target per gap of 12.5 ms: "
        "1 drafts yield 1.80 tokens in 11.5 ms"
    )


def test_a_gap_that_no_window_meets_rules_nothing_out():
    assert only(SpeculationWindow().propose(seen(gap_s=0.001))).value == 4


def test_what_was_learned_of_decode_steps_counts():
    # 100 ms of host time per step: every draft is worth its time.
    slow = CorrectedSteps(Rows(0.0007, 0.0), decode=Line(1.0, 0.1))
    assert only(SpeculationWindow().propose(seen(steps=slow))).value == 4


def test_the_predictor_is_asked_for_verify_steps_of_what_runs():
    times = Rows()
    SpeculationWindow().propose(seen(times=times, limits=Range(1, 2)))
    assert times.asked == [
        BatchShape.of([(2, 100)] * 8, all_logits=True),
        BatchShape.of([(3, 100)] * 8, all_logits=True),
    ]


def test_a_window_outside_a_narrowed_range_is_brought_in():
    proposal = only(SpeculationWindow().propose(seen(window=6, limits=Range(1, 3))))
    assert proposal.value == 3
    assert proposal.reason == "3 drafts yield 2.95 tokens in 14.5 ms, as predicted, most per second"


chains = st.lists(st.floats(0, 1), min_size=1, max_size=6).map(tuple)
draft_times = st.floats(0, 0.01)


@given(
    chain=chains, row_s=st.floats(0, 0.01), draft_s=draft_times, worth=st.floats(0, 1),
    gap=st.none() | st.floats(0.001, 0.5), low=st.integers(0, 7), span=st.integers(0, 7), data=st.data(),
)  # fmt: skip
def test_no_fitting_window_is_better_by_more_than_worth(chain, row_s, draft_s, worth, gap, low, span, data):
    limits = Range(low, low + span)
    current = data.draw(st.integers(limits.low, limits.high))
    times = Rows(row_s, draft_s)
    found = SpeculationWindow(worth).propose(seen(current, chain, times=times, limits=limits, gap_s=gap))
    chosen = only(found).value if found else current
    priced = {k: per_second(k, chain, row_s, draft_s) for k in range(limits.low, limits.high + 1)}
    fitting = {k: speed for k, (speed, seconds) in priced.items() if gap is None or seconds <= gap * (1 + 1e-9)}
    assert chosen in (fitting or priced)
    fitting = {k: s for k, s in fitting.items() if gap is None or priced[k][1] <= gap * (1 - 1e-9)}  # rounding aside
    if gap is not None and not fitting:
        return
    speed = priced[chosen][0]
    assert max(fitting.values()) <= speed * (1 + 1e-9) * (1 + (worth if chosen == current else 0))


@given(low=st.integers(0, 40), span=st.integers(0, 200), step=st.integers(1, 9), data=st.data())
def test_few_windows_are_compared_and_the_current_and_its_neighbours_are_among_them(low, span, step, data):
    limits = Range(low, low + span, step)
    allowed = sorted({limits.clamp(value) for value in range(limits.low, limits.high + 1)})
    index = data.draw(st.integers(0, len(allowed) - 1))
    compared = windows(Bounds({KNOB: limits}, {}), allowed[index])
    assert len(compared) <= 8
    assert compared == sorted({*compared})
    assert {limits.low, limits.high, *allowed[max(0, index - 1) : index + 2]} <= {*compared} <= {*allowed}


@given(window=st.integers(0, 64), acceptance=chains)
def test_questions_are_bounded(window, acceptance):
    times = Rows()
    SpeculationWindow().propose(seen(window, acceptance, limits=Range(1, 64), times=times))
    assert len(times.asked) <= 8


@pytest.mark.parametrize(("bound", "window"), [(Bound.MEMORY, 3), (Bound.COMPUTE, 1)])
def test_ridge_moves_by_one(bound, window):
    proposal = only(RidgeSpeculationWindow().propose(seen(decode=point(bound, 0.6))))
    assert proposal.value == window
    assert proposal.reason.startswith(f"decode is {bound.value}-bound at 60% of compute: ")


def test_ridge_moves_by_one_step_of_the_range():
    for now, bound, then in ((4, Bound.MEMORY, 6), (4, Bound.COMPUTE, 2), (7, Bound.COMPUTE, 6), (6, Bound.MEMORY, 7)):
        told = seen(now, limits=Range(1, 7, 2), decode=point(bound))
        assert only(RidgeSpeculationWindow().propose(told)).value == then


@pytest.mark.parametrize(
    "told",
    [
        seen(),  # no decode iteration yet
        seen(decode=point(Bound.OVERHEAD)),
        seen(4, decode=point(Bound.MEMORY)),
        seen(0, decode=point(Bound.COMPUTE)),
        seen(decode=point(Bound.MEMORY), queue=QueueState()),
    ],
)
def test_ridge_says_nothing_where_nothing_follows(told):
    assert RidgeSpeculationWindow().idle_reason(told) is None
    assert RidgeSpeculationWindow().propose(told) == ()


def test_nothing_runs_nothing_is_asked():
    times = Rows()
    assert SpeculationWindow().propose(seen(times=times, queue=QueueState())) == ()
    assert times.asked == []


@pytest.mark.parametrize("policy", [SpeculationWindow(), RidgeSpeculationWindow()])
def test_idle_where_the_window_cannot_be_moved_or_nothing_is_known(policy):
    memory = {"decode": point(Bound.MEMORY)}
    assert policy.idle_reason(seen(**memory)) is None
    assert policy.propose(seen(**memory)) != ()
    fixed = Bounds(BOUNDS.ranges, {KNOB: "drafts come from n-grams"})
    for told, reason in (
        (seen(None, limits=None, **memory)._replace(bounds=fixed), "drafts come from n-grams"),
        (seen(2, **memory)._replace(bounds=fixed), "drafts come from n-grams"),
        (seen(None, **memory), "the server drafts nothing, or always as many"),
        (seen(limits=None, **memory), "the server drafts nothing, or always as many"),
        (seen(acceptance=None, **memory), "nothing is known of acceptance yet"),
        (seen(acceptance=(), **memory), "nothing is known of acceptance yet"),
    ):
        assert policy.idle_reason(told) == reason
        assert policy.propose(told) == ()


def test_only_the_predictive_one_needs_step_times():
    told = seen(steps=None, decode=point(Bound.MEMORY))
    assert SpeculationWindow().idle_reason(told) == "step times are not predicted"
    assert SpeculationWindow().propose(told) == ()
    assert RidgeSpeculationWindow().idle_reason(told) is None
    assert only(RidgeSpeculationWindow().propose(told)).value == 3


@pytest.mark.parametrize(
    ("name", "value"),
    [("probe_share", -0.1), ("probe_share", 1.0), ("probe_share", float("nan")), ("worth", -0.1),
     ("worth", float("inf")), ("worth", float("nan"))],
)  # fmt: skip
def test_refuses_parameters_out_of_range(name, value):
    with pytest.raises(FieldError) as raised:
        SpeculationWindow(**{name: value})
    assert raised.value.key == name


def test_at_no_drafts_a_probe_comes_by_what_it_is_expected_to_cost():
    """1 draft takes 20 ms where none takes 10, and yields 1.2: it loses 40%. For half a per cent a probe of 0.1 s may
    come every 8 s; one that loses little comes every 20 times as long as it lasts."""
    times = Rows(draft_s=0.01)
    told = seen(0, (0.2, 0.1), times=times, limits=Range(0, 1), since_drafts_s=7.9)
    assert SpeculationWindow().propose(told) == ()
    proposal = only(SpeculationWindow().propose(told._replace(since_drafts_s=8.1)))
    assert proposal.value == 1
    assert proposal.reason == "nothing was drafted for 8.1 s: 1 drafts are tried to see what is accepted now"
    assert SpeculationWindow(probe_share=0.0).propose(told._replace(since_drafts_s=900.0)) == ()
    near = seen(0, (0.149,), times=Rows(), limits=Range(0, 1), since_drafts_s=1.9)  # 1.149 tokens in 11.5 ms
    assert SpeculationWindow().propose(near) == ()
    assert only(SpeculationWindow().propose(near._replace(since_drafts_s=2.1))).value == 1


def test_where_nothing_was_ever_drafted_it_looks():
    assert only(SpeculationWindow().propose(seen(0, None, since_drafts_s=None))).value == 1
    assert SpeculationWindow().propose(seen(2, None, since_drafts_s=None)) == ()


def test_a_window_that_never_ran_is_tried_where_the_first_guess_has_it_best():
    """Learned: steps take 1.5 times the guess. 4 drafts would yield 3.36 in 1.5 x 16 ms, less a second than 2."""
    guessed, learned = Rows(), CorrectedSteps(Rows(), decode=Line(1.5, spread=0.0))
    told = seen(2, (0.8, 0.8, 0.4), steps=learned)._replace(predictor=guessed, windows_run=(2,))
    proposal = only(SpeculationWindow().propose(told))
    # Shorter ones may have missed nothing: 0 drafts at 10 ms are 100 a second, 2 at 19.5 ms 125, 1 at 11.5 ms 157.
    assert proposal.value == 1
    assert proposal.reason.startswith("what 1 drafts take is not known yet: ")
    assert SpeculationWindow().propose(told._replace(windows_run=(0, 1, 2, 3, 4))) == ()


def test_where_prompts_wait_the_least_chunk_has_room_in_the_gap():
    class Both(Rows):
        def step_s(self, *, prefill, decode, graph):
            return 0.004 if prefill.requests else Rows.step_s(self, prefill=prefill, decode=decode, graph=graph)

    queue = QUEUE._replace(waiting=1, next_prefill_tokens=500, next_prompts=((500, 0),))
    exact = CorrectedSteps(Both(), prefill=EXACT, decode=EXACT)
    assert only(SpeculationWindow().propose(seen(0, steps=exact, gap_s=0.0165))).value == 4
    # 4 drafts take 16 ms; 1 takes 11.5, and a chunk 4.
    assert only(SpeculationWindow().propose(seen(0, steps=exact, gap_s=0.0165, queue=queue))).value == 1
