"""What policies ask a predictor of, against the batch that the server would run."""

import pytest

from roofline_policies.model.batch import BatchShape
from roofline_policies.policies.shapes import prompt_shape, running_shape
from roofline_policies.testing import fake_view


def test_running_requests_have_a_row_each():
    lengths = [100, 30, 7]  # the row itself among them
    view = fake_view(running=3, decode_context_tokens=sum(lengths))
    assert running_shape(view) == BatchShape.of(decode_contexts=lengths)
    assert running_shape(fake_view(running=0)) == BatchShape()


@pytest.mark.parametrize("rows", [2, 4])
def test_with_drafts_they_have_as_many_as_are_verified(rows):
    before = [99, 29, 6]
    view = fake_view(running=3, decode_context_tokens=sum(before) + 3, rows_per_request=rows)
    expected = BatchShape.of(prefill=[(rows, length) for length in before], all_logits=True)
    assert running_shape(view) == expected


WAITING = ((300, 0), (50, 7000), (2000, 128))


@pytest.mark.parametrize(
    ("tokens", "chunk"),
    [
        (1, [(1, 0)]),
        (300, [(300, 0)]),
        (340, [(300, 0), (40, 7000)]),
        (1000, [(300, 0), (50, 7000), (650, 128)]),
        # Beyond all that wait, one more that has as much cached as the first.
        (2400, [(300, 0), (50, 7000), (2000, 128), (50, 0)]),
    ],
)
def test_a_chunk_is_of_the_prompts_in_their_order(tokens, chunk):
    assert prompt_shape(fake_view(next_prompts=WAITING), tokens) == BatchShape.of(prefill=chunk)


@pytest.mark.parametrize(
    ("tokens", "chunk"),
    [
        (100, [(40, 30_000), (60, 500)]),  # 88 are left to others, the second of them does not fit
        (60, [(60, 30_000)]),  # not even the first does
        (1000, [(830, 30_000), (60, 500), (110, 7000)]),
        (1, [(1, 30_000)]),
    ],
)
def test_one_part_way_leaves_room_for_those_that_are_due_before_it(tokens, chunk):
    """1 / 8 of a chunk stays with it; who is due after it gets nothing while it can take all of the rest."""
    waiting = ((9000, 30_000), (60, 500), (110, 7000), (5000, 0))
    view = fake_view(next_prompts=waiting, due_before=2, chunk_in_flight=True)
    assert prompt_shape(view, tokens) == BatchShape.of(prefill=chunk)


def test_where_nobody_waits_a_chunk_is_of_one_prompt():
    view = fake_view(next_prompts=(), next_prefix_tokens=900)
    assert prompt_shape(view, 200) == BatchShape.of(prefill=[(200, 900)])
