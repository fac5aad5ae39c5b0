import pytest
from hypothesis import given
from hypothesis import strategies as st

from roofline_policies.contract.decision import Knob, Knobs
from roofline_policies.contract.view import QueueState
from roofline_policies.device.roofline import Bound
from roofline_policies.errors import FieldError
from roofline_policies.policies import Kind, RidgePrefillDeferral, Strength
from roofline_policies.slo.objectives import ItlKind, Slo
from tests.roofline_policies.views import point, view

RUNNING = QueueState(running=8, waiting=1, next_prefill_tokens=4096)
TIGHT = Slo(itl_s=0.1)


def by_knob(proposals):
    found = {proposal.knob: proposal for proposal in proposals}
    assert len(found) == len(proposals)
    return found


def test_a_chunk_and_a_decode_step_fill_the_share_of_the_target():
    seen = view(Knobs(64, 2048), TIGHT, queue=RUNNING, prefill_tokens_per_s=10_000.0, decode_step_s=0.02)
    chunk = by_knob(RidgePrefillDeferral(share=0.9).propose(seen))[Knob.PREFILL_CHUNK_TOKENS]
    assert chunk.value == 700  # (0.9 * 0.1 s - 0.02 s) * 10,000 tokens/s
    assert chunk.kind is Kind.CAP
    assert chunk.strength is Strength.GUARD


def test_the_chunk_is_ready_before_the_prompt_arrives():
    seen = view(queue=QueueState(running=8), slo=TIGHT, prefill_tokens_per_s=10_000.0, decode_step_s=0.01)
    assert by_knob(RidgePrefillDeferral(share=0.9).propose(seen))[Knob.PREFILL_CHUNK_TOKENS].value == 800


def test_nothing_is_deferred_while_nothing_waits():
    late = {"prefill_tokens_per_s": 1e3, "decode_step_s": 0.01, "since_decode_s": 9.0, "prefills_since_decode": 3}
    seen = view(slo=TIGHT, queue=QueueState(8), **late)
    assert Knob.DEFER_PREFILL not in by_knob(RidgePrefillDeferral().propose(seen))


def test_the_chunk_is_not_cut_below_the_floor():
    seen = view(Knobs(64, 2048), TIGHT, queue=RUNNING, prefill_tokens_per_s=1_000.0, decode_step_s=0.07)
    assert by_knob(RidgePrefillDeferral().propose(seen))[Knob.PREFILL_CHUNK_TOKENS].value == 128


def test_a_target_that_decode_alone_misses_costs_no_throughput():
    seen = view(Knobs(64, 2048), TIGHT, queue=RUNNING, prefill_tokens_per_s=1_000.0, decode_step_s=0.2)
    assert Knob.PREFILL_CHUNK_TOKENS not in by_knob(RidgePrefillDeferral().propose(seen))


def test_a_chunk_that_fits_whole_is_not_capped():
    seen = view(Knobs(64, 2048), TIGHT, queue=RUNNING, prefill_tokens_per_s=1e6, decode_step_s=0.01)
    assert RidgePrefillDeferral().propose(seen) == ()


def test_defers_when_the_next_chunk_would_make_the_gap_late():
    seen = view(
        Knobs(64, 512), TIGHT, queue=RUNNING, prefill_tokens_per_s=10_000.0, decode_step_s=0.01,
        since_decode_s=0.05, prefills_since_decode=1,
    )  # fmt: skip
    defer = by_knob(RidgePrefillDeferral().propose(seen))[Knob.DEFER_PREFILL]
    assert defer.value is True
    assert defer.reason == (
        "running requests have waited 50 ms and the next chunk takes 51 ms, past the ITL target of 100 ms"
    )


def test_does_not_defer_while_the_next_chunk_still_fits():
    seen = view(
        Knobs(64, 512), TIGHT, queue=RUNNING, prefill_tokens_per_s=10_000.0, decode_step_s=0.01,
        since_decode_s=0.045, prefills_since_decode=1,
    )  # fmt: skip
    assert Knob.DEFER_PREFILL not in by_knob(RidgePrefillDeferral().propose(seen))


def test_without_a_target_decode_runs_between_chunks_of_a_compute_bound_prefill():
    seen = view(queue=RUNNING, prefill=point(Bound.COMPUTE, 0.8), prefills_since_decode=1)
    assert by_knob(RidgePrefillDeferral().propose(seen))[Knob.DEFER_PREFILL].value is True
    relaxed = view(queue=RUNNING, prefill=point(Bound.MEMORY), prefills_since_decode=1)
    assert RidgePrefillDeferral().propose(relaxed) == ()


def test_a_mean_target_that_is_met_asks_for_no_pacing():
    slo = Slo(itl_s=0.1, itl_kind=ItlKind.MEAN_TPOT)
    late = {"prefill_tokens_per_s": 1e3, "decode_step_s": 0.01, "since_decode_s": 1.0, "prefills_since_decode": 3}
    assert RidgePrefillDeferral().propose(view(slo=slo, queue=RUNNING, itl_s=0.09, **late)) == ()
    assert RidgePrefillDeferral().propose(view(slo=slo, queue=RUNNING, itl_s=0.11, **late)) != ()


@given(
    running=st.integers(0, 64),
    tokens=st.integers(0, 10_000),
    rate=st.floats(1, 1e6),
    step=st.floats(1e-4, 10),
    waited=st.floats(0, 100),
    prefills=st.integers(0, 5),
)
def test_prefill_is_never_starved(running, tokens, rate, step, waited, prefills):
    queue = QueueState(running=running, waiting=1, next_prefill_tokens=tokens)
    seen = view(
        slo=TIGHT, queue=queue, prefill_tokens_per_s=rate, decode_step_s=step, since_decode_s=waited,
        prefills_since_decode=prefills, prefill=point(Bound.COMPUTE),
    )  # fmt: skip
    deferred = Knob.DEFER_PREFILL in by_knob(RidgePrefillDeferral().propose(seen))
    # Deferral needs somebody to protect, and a prefill step since the last decode step: at worst the two alternate.
    assert not deferred or (running > 0 and prefills > 0)


@pytest.mark.parametrize(("field", "value"), [("share", 0.0), ("share", 1.5), ("min_chunk_tokens", 0)])
def test_refuses_parameters_out_of_range(field, value):
    with pytest.raises(FieldError) as raised:
        RidgePrefillDeferral(**{field: value})
    assert raised.value.key == field
