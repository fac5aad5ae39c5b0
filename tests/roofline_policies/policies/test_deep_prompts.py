"""Chunks that hardly fit into a gap, or not at all, as behind a long prefix. Shapes are priced by the test itself."""

import pytest

from roofline_policies.contract.decision import Knobs
from roofline_policies.contract.view import QueueState
from roofline_policies.model.batch import BatchShape
from roofline_policies.policies import PrefillDeferral
from tests.roofline_policies.policies.test_prefill_deferral import (
    BOTH,
    CHUNK,
    DEFER,
    LONG,
    MIXED,
    RUNNING,
    TIGHT,
    prompt,
    proposed,
    rows,
    seen,
    settled,
)  # fmt: skip
from tests.roofline_policies.steps.closed_form_steps import Affine, exact

DEEP = TIGHT._replace(next_prefill_tokens=8192, next_prompts=((8192, 100_000),), chunk_in_flight=True)


@pytest.mark.parametrize(("more", "most_s"), [({}, 2.0), ({"mean_s": 0.05, "due_s": 0.7}, 0.7)], ids=["gap", "mean"])
def test_a_chunk_that_fits_into_no_gap_goes_in_at_once_and_makes_one_gap_late_for_many_tokens(more, most_s):
    """Behind 100,000 tokens a chunk of 128 takes 57 ms, 51 of them for its scores. Other targets hold."""
    times = Affine(pair_s=4e-9)
    found = proposed(PrefillDeferral(), seen(exact(times), DEEP._replace(**more)))
    assert found[DEFER] is False
    takes_s = times.seconds(prompt(found[CHUNK], 100_000), BatchShape()) + times.seconds(BatchShape(), rows(RUNNING))
    assert 0.9 * most_s < takes_s <= most_s


@pytest.mark.parametrize(
    ("now", "waits"),
    [
        ({"chunk_in_flight": True, "prompt_due_s": 60.0}, False),
        ({"prompt_due_s": 1.0}, False),
        ({"prompt_due_s": 60.0}, True),
        ({"prompt_due_s": 60.0, "since_prefill_s": 1.1}, False),
        ({"chunk_in_flight": True, "token_age_s": 0.001}, True),
        ({"chunk_in_flight": True, "token_age_s": 0.1}, False),
    ],
    ids=["part-way", "due", "more may come", "put off", "a gap that can be kept", "a gap that is late"],
)
def test_prompts_share_a_gap_that_is_late_where_they_have_time(now, waits):
    queue = {field: value for field, value in now.items() if field in QueueState._fields}
    moment = {field: value for field, value in now.items() if field not in queue}
    queue = DEEP._replace(**{"chunk_in_flight": False} | queue)
    assert proposed(PrefillDeferral(), seen(exact(Affine(pair_s=4e-9)), queue, **moment))[DEFER] is waits


def test_a_chunk_that_a_smaller_batch_leaves_room_for_waits():
    """The chunk takes 18 ms and decoding 37 of 50, of which all but 9 are the rows'."""
    times = Affine(row_s=4e-3, token_s=1e-4)
    assert proposed(PrefillDeferral(), seen(exact(times), DEEP))[DEFER] is True


SHORT = DEEP._replace(next_prompts=((8000, 100_000), (192, 0)), due_before=1)


def test_a_chunk_has_room_for_the_short_prompt_that_is_due_first_where_the_least_chunk_does_not_fit():
    """Of 256 tokens 192 are the short prompt's and 64 of the one part-way, which take 26 ms; 128 of its own take 51."""
    times = Affine(pair_s=4e-9)
    found = proposed(PrefillDeferral(), seen(exact(times), SHORT))
    assert found == {CHUNK: 256, DEFER: False}


def test_a_chunk_has_room_for_it_where_a_smaller_one_would_fit_without_it():
    """In a gap of 80 ms 128 tokens fit, and no more of the one part-way."""
    wide = SHORT._replace(gap_s=0.08)
    assert proposed(PrefillDeferral(), seen(exact(Affine(pair_s=4e-9)), wide._replace(due_before=0)))[CHUNK] == 128
    assert proposed(PrefillDeferral(), seen(exact(Affine(pair_s=4e-9)), wide))[CHUNK] >= 256


@pytest.mark.parametrize("queue", [TIGHT, LONG._replace(mean_s=0.05, due_s=0.0)], ids=["gap", "mean that is due"])
@pytest.mark.parametrize("base_s", [0.005, 0.029])
def test_a_target_is_kept_where_the_least_chunk_has_room_and_given_up_on_where_it_has_not(queue, base_s):
    """Decoding takes 30 of 50 ms; a tile beside it takes 13 ms more, or 22. What cannot be kept does not hold
    prompts up: they take as long as decoding. A gap that a smaller batch could keep does: of those 30 ms 25 are the
    rows' where the base is 5."""
    rows_s = (0.03 - base_s) / RUNNING
    tight = {"queue": queue, "bounds": BOTH, "knobs": Knobs(64, 128, mixed_chunk=True)}
    for token_s, least_s, most_s in [(1.1e-4, 0.043, 0.05), (1.8e-4, 0.05, 0.06)]:
        times = Affine(base_s=base_s, token_s=token_s, row_s=rows_s)
        if queue is TIGHT and base_s == 0.005 and token_s == 1.8e-4:
            assert proposed(PrefillDeferral(), seen(exact(times), **tight))[DEFER] is True
            continue
        found = settled(PrefillDeferral(), seen(exact(times), **tight))
        assert (found[MIXED], found[DEFER]) == (True, False)
        tokens = found[CHUNK] - RUNNING
        assert least_s < times.step_s(prefill=prompt(tokens), decode=rows(RUNNING), graph=False) <= most_s


def test_where_nothing_fits_requests_decode_first_and_prompts_do_not_wait_for_ever():
    times = Affine(token_s=2.5e-4, row_s=1.9e-3)  # fits beside one request, not beside all
    late = {"queue": TIGHT, "token_age_s": 0.04}
    assert proposed(PrefillDeferral(), seen(exact(times), since_prefill_s=0.9, **late))[DEFER] is True
    found = proposed(PrefillDeferral(), seen(exact(times), since_prefill_s=1.1, **late))
    assert found == {CHUNK: 128, DEFER: False}
    found = proposed(PrefillDeferral(longest_defer_s=5.0), seen(exact(times), since_prefill_s=1.1, **late))
    assert found[DEFER] is True
