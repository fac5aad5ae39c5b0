"""Chunks and kinds of step against closed forms. Shapes are priced by the test itself, not by what the policy says."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roofline_policies.contract.decision import Bounds, Knob, Knobs, Range
from roofline_policies.contract.view import QueueState
from roofline_policies.errors import FieldError
from roofline_policies.model.batch import BatchShape
from roofline_policies.policies import PrefillDeferral
from roofline_policies.policies.looks import looks
from tests.roofline_policies.steps.closed_form_steps import Affine, exact
from tests.roofline_policies.views import view

CHUNK, MIXED, DEFER = Knob.PREFILL_CHUNK_TOKENS, Knob.MIXED_CHUNK, Knob.DEFER_PREFILL
RUNNING = 8
LONG = QueueState(running=RUNNING, waiting=9, next_prefill_tokens=8192, next_prompts=((8192, 0),), gap_s=0.1)
EXCLUSIVE = Bounds({CHUNK: Range(64, 8192, 64)}, {MIXED: "no"})
BOTH = Bounds({CHUNK: Range(64, 8192, 64)}, {})


def seen(steps, queue=LONG, bounds=EXCLUSIVE, knobs=None, **fields):
    return view(knobs or Knobs(64, 8192), queue=queue, steps=steps, **fields)._replace(bounds=bounds)


def settled(policy, now):
    """What it comes to after a few decisions about the same moment, each of which starts at the one before."""
    for number in range(20):
        found = proposed(policy, now._replace(decisions=number))
        knobs = Knobs(64, found[CHUNK], mixed_chunk=found.get(MIXED, now.knobs.mixed_chunk))
        now = now._replace(knobs=knobs)
    return found


def almost(most):
    """Within five percent and a tile of the most that fits."""
    return range(max(1, int(0.95 * most) - 128), int(most) + 1)


def proposed(policy, now):
    found = {proposal.knob: proposal for proposal in policy.propose(now)}
    assert {proposal.policy for proposal in found.values()} <= {"PrefillDeferral"}
    return {knob: proposal.value for knob, proposal in found.items()}


def prompt(tokens, prefix=0):
    return BatchShape.of(prefill=[(tokens, prefix)])


def rows(running, context=None):
    context = running if context is None else context
    return BatchShape(running, running, context, context, context, running)


TIGHT = LONG._replace(gap_s=0.05)
MOST = (0.05 - (0.005 + RUNNING * 1e-4) - 0.005) / 1e-5
"""3,920 tokens fit into TIGHT beside a decode step with the default times."""


@pytest.mark.parametrize("set_already", [64, 128, 1024, 3840, 8192])
def test_a_chunk_and_a_decode_step_fill_the_tightest_gap_wherever_the_chunk_stood(set_already):
    knobs = Knobs(64, set_already)
    assert proposed(PrefillDeferral(), seen(exact(Affine()), knobs=knobs))[CHUNK] == 8192  # 8,920 would fit
    chunk = proposed(PrefillDeferral(), seen(exact(Affine()), TIGHT, knobs=knobs))[CHUNK]
    assert chunk in almost(MOST)
    assert chunk % 128 == 0


def test_the_margin_is_taken_of_both_steps():
    chunk = proposed(PrefillDeferral(), seen(exact(Affine(), spread=0.1), TIGHT))[CHUNK]
    assert chunk in almost(((0.05 - 1.25 * 0.0058) / 1.25 - 0.005) / 1e-5)


def test_what_tokens_have_aged_is_not_there_any_more():
    chunk = proposed(PrefillDeferral(), seen(exact(Affine()), TIGHT, token_age_s=0.02))[CHUNK]
    assert chunk in almost(MOST - 2000)


def test_without_a_target_the_longest_stall_is_one():
    times = Affine(base_s=0.0, token_s=1e-3, row_s=0.0)
    chunk = proposed(PrefillDeferral(longest_stall_s=1.5), seen(exact(times), LONG._replace(gap_s=None)))[CHUNK]
    assert chunk in almost(1500)


@pytest.mark.parametrize(("due_s", "mean_s", "expected"), [(0.7, 0.05, 0.7), (0.2, 0.05, 0.2), (-5.0, 0.3, 0.3)])
def test_what_requests_are_ahead_of_a_mean_can_be_spent_at_once(due_s, mean_s, expected):
    """A mean asks for no gap: those ahead of it may wait until the token is due, those behind it for a gap of it."""
    times = Affine(base_s=0.0, token_s=1e-3, row_s=1e-3)
    queue = LONG._replace(gap_s=None, due_s=due_s, mean_s=mean_s)
    chunk = proposed(PrefillDeferral(), seen(exact(times), queue))[CHUNK]
    assert chunk in almost((expected - 0.008) / 1e-3)


@pytest.mark.parametrize(
    ("prompt_due_s", "free_in_s", "expected"),
    [(None, 0.0, 0.7), (10.0, 0.0, 0.7), (30.0, 0.0, 0.3), (30.0, 6.0, 0.7), (-1.0, 0.0, 0.7)],
)
def test_what_requests_are_ahead_of_a_mean_is_kept_where_prompts_are_in_time_anyway(prompt_due_s, free_in_s, expected):
    """8,192 tokens take 8.2 s, so they are calm for 24.6 s: an answer may end before it has made up for a gap."""
    times = Affine(base_s=0.0, token_s=1e-3, row_s=1e-3)
    queue = LONG._replace(gap_s=None, due_s=0.7 + free_in_s, mean_s=0.3, prompt_due_s=prompt_due_s)
    chunk = proposed(PrefillDeferral(), seen(exact(times), queue, free_in_s=free_in_s))[CHUNK]
    assert chunk in almost((expected - 0.008) / 1e-3)


def test_a_prompt_that_may_come_in_this_pass_is_no_reason_to_spend_what_requests_are_ahead():
    times = Affine(base_s=0.0, token_s=1e-3, row_s=1e-3)
    queue = LONG._replace(gap_s=None, due_s=0.7, mean_s=0.3, next_prefill_tokens=0, next_prompts=(), waiting=0)
    chunk = proposed(PrefillDeferral(), seen(exact(times), queue))[CHUNK]
    assert chunk in almost((0.3 - 0.008) / 1e-3)


def test_an_end_alone_is_no_pace_to_keep():
    """Under a target for the whole, nothing is gained by short gaps, however much time prompts have."""
    times = Affine(base_s=0.0, token_s=1e-3, row_s=1e-3)
    queue = LONG._replace(gap_s=None, due_s=0.7, mean_s=None, prompt_due_s=1e6)
    assert proposed(PrefillDeferral(), seen(exact(times), queue))[CHUNK] in almost((0.7 - 0.008) / 1e-3)


@pytest.mark.parametrize(("due_s", "free_in_s", "expected"), [(0.9, 0.2, 0.7), (0.9, 0.8, 0.3), (0.2, 1.5, 0.3)])
def test_what_is_due_is_counted_from_when_the_next_step_can_start(due_s, free_in_s, expected):
    """The steps in flight take their part of it first. Those behind still get a gap of their mean, here 300 ms."""
    times = Affine(base_s=0.0, token_s=1e-3, row_s=1e-3)
    queue = LONG._replace(gap_s=None, due_s=due_s, mean_s=0.3)
    chunk = proposed(PrefillDeferral(), seen(exact(times), queue, free_in_s=free_in_s))[CHUNK]
    assert chunk in almost((expected - 0.008) / 1e-3)


def test_a_gap_is_counted_from_the_last_token_whenever_the_next_step_starts():
    """The age of the tokens is of that moment already."""
    for free_in_s in (0.0, 0.03):
        chunk = proposed(PrefillDeferral(), seen(exact(Affine()), TIGHT, token_age_s=0.02, free_in_s=free_in_s))[CHUNK]
        assert chunk in almost(MOST - 2000)


@pytest.mark.parametrize(("later", "most"), [(0, 1325), (10_000, 740), (100_000, 218)])
def test_the_prefixes_of_the_prompts_behind_the_next_one_are_priced(later, most):
    """100 tokens of the next prompt, and as many of those behind it as fit with what they attend to."""
    times = Affine(base_s=0.0, token_s=1e-5, row_s=0.0, pair_s=1e-9)
    queue = LONG._replace(gap_s=0.014, next_prompts=((100, 0), (8092, later)))
    policy = PrefillDeferral(min_chunk_tokens=8, tile_tokens=8)
    chunk = settled(policy, seen(exact(times), queue, bounds=Bounds({CHUNK: Range(8, 8192, 8)}, {MIXED: "no"})))[CHUNK]

    def takes_s(tokens):
        return times.seconds(BatchShape.of(prefill=[(100, 0), (tokens - 100, later)]), BatchShape())

    assert takes_s(chunk) <= 0.014 < takes_s(chunk + chunk // 16 + 16)
    assert chunk == pytest.approx(most, rel=0.08)


def test_where_decoding_alone_is_past_the_target_prefill_takes_as_long_as_decoding():
    times = Affine(base_s=0.0, token_s=1e-4, row_s=0.05)
    assert proposed(PrefillDeferral(), seen(exact(times), LONG._replace(gap_s=0.1)))[DEFER] is True  # one could keep it
    chunk = proposed(PrefillDeferral(), seen(exact(times), LONG._replace(gap_s=0.06)))[CHUNK]
    assert chunk in almost(0.05 * RUNNING / 1e-4)


@pytest.mark.parametrize("tokens", [1, 63, 64, 100, 150, 1000, 4321])
def test_a_prompt_that_fits_whole_is_taken_whole(tokens):
    queue = LONG._replace(waiting=1, next_prefill_tokens=tokens, next_prompts=((tokens, 0),))
    for bounds in (EXCLUSIVE, BOTH):
        found = proposed(PrefillDeferral(), seen(exact(Affine(token_s=1e-6)), queue, bounds))
        assert found[CHUNK] >= tokens + RUNNING * found.get(MIXED, False)


def test_a_chunk_is_ready_before_the_prompt_arrives():
    """It may come in the very pass that is decided."""
    queue = TIGHT._replace(waiting=0, next_prefill_tokens=0, next_prompts=())
    assert proposed(PrefillDeferral(), seen(exact(Affine()), queue))[CHUNK] in almost(MOST)


@pytest.mark.parametrize(
    ("mixed_s", "mixed"), [(0.0, True), (0.004, True), (0.006, False), (0.05, False)]
)  # a mixed step saves the base of the decode step, 5 ms
def test_the_kind_of_step_with_the_fewer_seconds_per_prompt_token_is_taken(mixed_s, mixed):
    times = Affine(base_s=0.005, token_s=1e-5, row_s=1e-4, mixed_s=mixed_s)
    queue = LONG._replace(next_prefill_tokens=1024, next_prompts=((1024, 0),))
    for set_already in (False, True):
        now = seen(exact(times), queue, BOTH, Knobs(64, 8192, mixed_chunk=set_already))
        assert settled(PrefillDeferral(switch=0.0), now)[MIXED] is mixed


@pytest.mark.parametrize("set_already", [False, True])
def test_next_to_no_difference_changes_nothing(set_already):
    times = Affine(base_s=0.005, token_s=1e-5, row_s=1e-4, mixed_s=0.005)
    queue = LONG._replace(next_prefill_tokens=1024, next_prompts=((1024, 0),))
    now = seen(exact(times), queue, BOTH, Knobs(64, 8192, mixed_chunk=set_already))
    assert settled(PrefillDeferral(switch=0.02), now)[MIXED] is set_already


def test_mixing_makes_room_for_the_rows_in_the_chunk():
    found = settled(PrefillDeferral(), seen(exact(Affine()), TIGHT, BOTH))
    assert found[MIXED] is True
    assert found[CHUNK] % 128 == 0
    assert found[CHUNK] - RUNNING in almost((0.05 - 0.005 - RUNNING * 1e-4) / 1e-5)


def test_the_dearer_kind_is_taken_now_and_then_where_it_fits():
    """A mixed step saves 5 ms here."""

    def taken(policy, mixed):
        now = seen(exact(Affine()), bounds=BOTH, knobs=Knobs(64, 8192, mixed_chunk=mixed))
        return [proposed(policy, now._replace(decisions=number))[MIXED] for number in range(1, 17)]

    explores = [not looks(number, 4) for number in range(1, 17)]
    assert taken(PrefillDeferral(explore_every=4), True) == explores
    assert taken(PrefillDeferral(), True) == [True] * 16
    assert True in taken(PrefillDeferral(), False)


def test_what_is_left_of_a_turn_is_not_used_for_dear_tokens():
    """200 tokens would fit at 45 us each; in a whole turn one costs 20 us."""
    times = Affine(base_s=0.02, token_s=1e-5, row_s=0.0)
    left = {"queue": LONG._replace(gap_s=0.2), "token_age_s": 0.2 - 0.02 - 0.0225}
    assert proposed(PrefillDeferral(), seen(exact(times), **left))[DEFER] is True
    # But where all that waits fits, waiting longer would not make it cheaper.
    left["queue"] = left["queue"]._replace(next_prefill_tokens=200, next_prompts=((200, 0),))
    assert proposed(PrefillDeferral(), seen(exact(times), **left))[DEFER] is False


def test_what_fits_is_not_deferred():
    found = proposed(PrefillDeferral(), seen(exact(Affine()), since_prefill_s=100.0))
    assert found[DEFER] is False


@pytest.mark.parametrize(
    "now",
    [
        seen(exact(Affine()), LONG._replace(running=0)),
        seen(None),
        seen(exact(Affine()), bounds=Bounds({}, {CHUNK: "chunked prefill is off"})),
    ],
    ids=["nobody_runs", "not_predicted", "immovable"],
)
def test_says_nothing_where_nothing_is_to_be_decided(now):
    assert PrefillDeferral().propose(now) == ()


def test_says_nothing_of_knobs_that_cannot_be_moved():
    only_chunks = Bounds({CHUNK: Range(64, 8192, 64)}, {MIXED: "no", DEFER: "no"})
    assert set(proposed(PrefillDeferral(), seen(exact(Affine()), bounds=only_chunks))) == {CHUNK}
    assert set(proposed(PrefillDeferral(), seen(exact(Affine()), bounds=BOTH))) == {CHUNK, MIXED, DEFER}


def test_a_server_that_always_mixes_is_priced_as_one():
    times = Affine()
    found = proposed(PrefillDeferral(), seen(exact(times), TIGHT, knobs=Knobs(64, 8192, mixed_chunk=True)))
    assert MIXED not in found
    assert all(decode.requests == RUNNING for prefill, decode, _ in times.asked)
    assert found[CHUNK] - RUNNING in almost((0.05 - 0.005 - RUNNING * 1e-4) / 1e-5)


@settings(deadline=None)
@given(
    base_s=st.floats(1e-4, 0.05), token_s=st.floats(1e-6, 1e-3), row_s=st.floats(1e-6, 1e-3),
    share=st.floats(0.0, 0.5), prefix=st.integers(0, 100_000), running=st.integers(1, 256),
    gap_s=st.floats(0.005, 2.0), spread=st.floats(0.0, 0.3), waiting=st.integers(1, 8192),
    set_already=st.integers(1, 128).map(lambda tiles: 64 * tiles),
)  # fmt: skip
def test_the_chunk_is_the_largest_that_fits_but_for_a_few_percent_and_a_tile(
    base_s, token_s, row_s, share, prefix, running, gap_s, spread, waiting, set_already
):
    """share: what attention adds to a chunk of 8,192 tokens at the start of a prompt, of what the rest takes."""
    times = Affine(base_s, token_s, row_s, pair_s=share * token_s / 4096)
    queue = QueueState(
        running=running, waiting=1, next_prefill_tokens=waiting, next_prompts=((waiting, prefix),),
        next_prefix_tokens=prefix, gap_s=gap_s,
    )  # fmt: skip
    margin = 1.0 + 2.5 * spread
    decode_s = times.seconds(BatchShape(), rows(running)) * margin

    def takes_s(tokens):
        return times.seconds(prompt(tokens, prefix), BatchShape()) * margin

    # Where the least chunk fits beside one request the gap is kept, and prompts wait until so few are left. Where it
    # takes longer than decoding the gap is late with any chunk.
    least_s = takes_s(min(128, waiting))
    kept = least_s + times.seconds(BatchShape(), rows(1)) * margin <= gap_s
    allowed_s = gap_s if kept else max(gap_s, 2 * decode_s) if least_s <= decode_s else 2.0
    left_s = min(2.0, allowed_s) - decode_s

    largest = max((n for n in (*range(8, waiting, 8), waiting) if takes_s(n) <= left_s), default=0)
    found = settled(PrefillDeferral(), seen(exact(times, spread), queue, knobs=Knobs(64, set_already)))
    if found[DEFER]:
        assert largest <= min(waiting, 128)
        return
    chunk = min(found[CHUNK], waiting)
    assert takes_s(chunk) <= left_s * (1 + 1e-9)
    assert chunk + 128 >= largest or takes_s(chunk + 128) >= 0.95 * left_s


@settings(deadline=None)
@given(
    base_s=st.floats(1e-6, 10), token_s=st.floats(0, 1), row_s=st.floats(0, 1), pair_s=st.floats(0, 1e-3),
    mixed_s=st.floats(0, 1), spread=st.floats(0, 10),
    running=st.integers(0, 300), tokens=st.integers(0, 20_000), first=st.integers(0, 20_000),
    prefix=st.integers(0, 10**6), gap_s=st.one_of(st.none(), st.floats(1e-9, 100)),
    due_s=st.one_of(st.none(), st.floats(-100, 100)), age_s=st.floats(0, 1e3), since_s=st.floats(0, 1e3),
    free_in_s=st.floats(0, 1e3), later=st.integers(0, 10**6),
    explore=st.one_of(st.none(), st.integers(2, 5)), decisions=st.integers(0, 10),
    low=st.integers(1, 64), high=st.integers(64, 8192), step=st.integers(1, 64), mixed=st.booleans(),
)  # fmt: skip
def test_proposals_are_within_bounds_whatever_is_seen(
    base_s, token_s, row_s, pair_s, mixed_s, spread, running, tokens, first, prefix, gap_s, due_s, age_s, since_s,
    free_in_s, later, explore, decisions, low, high, step, mixed,
):  # fmt: skip
    bounds = Bounds({CHUNK: Range(low, high, step)}, {})
    queue = QueueState(
        running=running, waiting=1, next_prefill_tokens=tokens,
        next_prompts=((min(first, tokens), prefix), (max(0, tokens - first), later)),
        next_prefix_tokens=prefix, gap_s=gap_s, due_s=due_s,
        mean_s=None if due_s is None else 0.1,
    )  # fmt: skip
    times = Affine(base_s, token_s, row_s, 0.0, pair_s, mixed_s)
    now = seen(
        exact(times, spread), queue, bounds, Knobs(64, high, mixed_chunk=mixed),
        token_age_s=age_s, free_in_s=free_in_s, since_prefill_s=since_s, decisions=decisions,
    )  # fmt: skip
    proposals = PrefillDeferral(explore_every=explore).propose(now)
    assert PrefillDeferral(explore_every=explore).propose(now) == proposals
    assert bool(proposals) == (running > 0)
    values = {proposal.knob: proposal.value for proposal in proposals}
    assert len(values) == len(proposals)
    assert values.get(CHUNK, high) == bounds.clamp(CHUNK, values.get(CHUNK, high))
    if running:
        assert isinstance(values[MIXED], bool)
        assert not (values[DEFER] and since_s > 1.0)  # never put off for longer than that
        assert all("\n" not in proposal.reason for proposal in proposals)


def test_asks_few_questions():
    """About 20 us each, in every scheduler pass."""
    times = Affine(pair_s=1e-9)
    PrefillDeferral().propose(seen(exact(times), TIGHT, BOTH, token_age_s=0.001))
    assert len(times.asked) <= 12
    chunk = settled(PrefillDeferral(), seen(exact(times), TIGHT))[CHUNK]
    times.asked.clear()
    PrefillDeferral().propose(seen(exact(times), TIGHT, BOTH, Knobs(64, chunk), decisions=1))
    assert len(times.asked) == 2  # the decode step, and the chunk that was the answer before


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("min_chunk_tokens", 0), ("tile_tokens", 0), ("longest_defer_s", 0.0), ("longest_defer_s", float("inf")),
        ("longest_stall_s", -1.0), ("longest_stall_s", float("nan")), ("switch", -0.1), ("switch", 1.0),
        ("explore_every", 1),
    ],
)  # fmt: skip
def test_refuses_parameters_out_of_range(field, value):
    with pytest.raises(FieldError) as raised:
        PrefillDeferral(**{field: value})
    assert raised.value.key == field


def test_says_why_it_is_idle():
    assert PrefillDeferral().idle_reason(seen(exact(Affine()))) is None
    assert "not predicted" in PrefillDeferral().idle_reason(seen(None))
    off = Bounds({}, {CHUNK: "chunked prefill is off"})
    assert PrefillDeferral().idle_reason(seen(exact(Affine()), bounds=off)) == "chunked prefill is off"
