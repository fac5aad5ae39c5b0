"""PrefillDeferral on servers that draft: what the rows of a step leave of a gap, and how often a mean may be taken."""

import pytest

from roofline_policies.contract.view import QueueState
from roofline_policies.policies import PrefillDeferral
from roofline_policies.policies.prefill_deferral import GOOD_ENOUGH
from tests.roofline_policies.policies.test_prefill_deferral import CHUNK, EXCLUSIVE, seen, settled
from tests.roofline_policies.steps.closed_form_steps import Affine, exact


def test_a_step_of_drafts_leaves_a_chunk_what_its_rows_leave_of_the_gap():
    """A decode step takes what its rows take: 5 ms and 0.1 ms for each of 32 requests, or of their 4 rows."""

    class Verify(Affine):
        def seconds(self, prefill, decode):
            return self.base_s + self.token_s * prefill.new_tokens + self.row_s * decode.new_tokens

    queue = QueueState(
        running=32, waiting=1, next_prefill_tokens=8000, next_prompts=((8000, 0),), decode_context_tokens=32_000,
        gap_s=0.05,
    )  # fmt: skip
    for rows, left_s in ((1, 0.05 - 0.0082), (4, 0.05 - 0.0178)):
        told = seen(exact(Verify()), queue, bounds=EXCLUSIVE)._replace(rows_per_request=rows, tokens_per_request=2.0)
        chunk = settled(PrefillDeferral(), told)[CHUNK]
        most = (left_s - 0.005) / 1e-5
        assert GOOD_ENOUGH * most - 128 <= chunk <= most


def test_a_mean_is_kept_by_several_tokens_in_as_many_times_of_it():
    queue = QueueState(
        running=4, waiting=1, next_prefill_tokens=8000, next_prompts=((8000, 0),), decode_context_tokens=4_000,
        mean_s=0.02, due_s=0.0,
    )  # fmt: skip
    chunks = []
    for tokens in (1.0, 2.0):
        told = seen(exact(Affine()), queue, bounds=EXCLUSIVE)._replace(rows_per_request=3, tokens_per_request=tokens)
        chunks.append(settled(PrefillDeferral(), told)[CHUNK])
    assert chunks[1] - chunks[0] == pytest.approx(0.02 / 1e-5, abs=256)  # a token more, 20 ms more for prompts


def test_before_anything_is_known_of_acceptance_it_is_idle():
    drafts = seen(exact(Affine()))._replace(rows_per_request=4, tokens_per_request=None)
    assert PrefillDeferral().propose(drafts) == ()
    assert "acceptance" in PrefillDeferral().idle_reason(drafts)
