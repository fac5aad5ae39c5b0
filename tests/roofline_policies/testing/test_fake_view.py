"""Made-up views: any part by name, the rest following from it as on a server."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roofline_policies.contract.decision import Knob, Knobs
from roofline_policies.contract.view import QueueState
from roofline_policies.errors import FieldError
from roofline_policies.policies import BatchSize, PrefillDeferral, SloGuard, compose
from roofline_policies.slo.objectives import ItlKind, Slo
from roofline_policies.testing import LinearSteps, fake_bounds, fake_knobs, fake_point, fake_view


def test_names_reach_the_part_they_belong_to():
    view = fake_view(
        running=8, kv_use=0.95, max_running_requests=32, defer_prefill=True, itl_s=0.08, target_itl_s=0.05,
        target_ttft_s=1.0, since_prefill_s=0.5,
    )  # fmt: skip
    assert (view.queue.running, view.queue.kv_use, view.since_prefill_s) == (8, 0.95, 0.5)
    assert (view.knobs.max_running_requests, view.knobs.defer_prefill) == (32, True)
    assert (view.itl_s, view.slo.itl_s, view.slo.ttft_s) == (0.08, 0.05, 1.0)


def test_what_is_left_out_follows():
    view = fake_view(running=4, waiting=3, target_itl_s=0.05)
    assert (view.queue.next_prefill_tokens, view.queue.next_prompts) == (3000, ((1000, 0),) * 3)
    assert (view.queue.decode_context_tokens, view.queue.gap_s, view.queue.mean_s) == (4000, 0.05, None)
    mean = fake_view(target_itl_s=0.05, target_itl_kind=ItlKind.MEAN_TPOT)
    assert (mean.queue.gap_s, mean.queue.mean_s, mean.queue.due_s) == (None, 0.05, 0.05)
    assert fake_view(running=0, target_itl_s=0.05).queue.gap_s is None
    assert fake_view(waiting=100).queue.next_prefill_tokens == 8192


def test_whole_parts_are_taken_and_narrowed():
    view = fake_view(queue=QueueState(running=3, waiting=1), waiting=2, slo=Slo(ttft_s=1.0), target_itl_s=0.1)
    assert view.queue == QueueState(running=3, waiting=2)
    assert view.slo == Slo(ttft_s=1.0, itl_s=0.1)
    assert fake_view(knobs=Knobs(8, 512), mixed_chunk=True).knobs == Knobs(8, 512, mixed_chunk=True)


def test_the_predictor_can_be_another_or_none():
    steps = LinearSteps(base_s=1.0)
    assert fake_view(predictor=steps).steps.times == steps
    assert fake_view(predictor=None).steps is None
    assert fake_view().predictor == LinearSteps()


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(FieldError, match=r"runing = 3; allowed: one of now_s, .*running.*target_ttft_s"):
        fake_view(runing=3)


def test_bounds_without_chunks_move_neither_chunk_nor_mixing():
    bounds = fake_bounds(prefill_chunk_tokens=None, immovable={Knob.DEADLINE_ORDER: "it orders itself"})
    assert not any(map(bounds.movable, (Knob.PREFILL_CHUNK_TOKENS, Knob.MIXED_CHUNK, Knob.DEADLINE_ORDER)))
    assert bounds.contains(fake_knobs(prefill_chunk_tokens=None))
    assert fake_view(prefill_chunk_tokens=None).bounds.immovable[Knob.MIXED_CHUNK].startswith("chunked prefill is off")


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    running=st.integers(0, 64), waiting=st.integers(0, 20), kv_use=st.floats(0, 1),
    target_itl_s=st.none() | st.floats(0.001, 1.0), token_age_s=st.floats(0, 1), chunk_in_flight=st.booleans(),
)  # fmt: skip
def test_the_shipped_policies_answer_every_view(**overrides):
    view = fake_view(prefill=fake_point(), **overrides)
    for proposal in compose(BatchSize(), PrefillDeferral(), SloGuard()).propose(view):
        assert proposal.reason
