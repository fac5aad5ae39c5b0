"""What policies ask a predictor of, against the batch that the server would run."""

import pytest

from roofline_policies.model.batch import BatchShape
from roofline_policies.policies.shapes import running_shape
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
