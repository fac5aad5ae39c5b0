"""Prompts on one rank of data-parallel attention, and the gaps of the requests on all others."""

from roofline_policies.contract.decision import Knob
from roofline_policies.policies import PrefillDeferral
from roofline_policies.policies.shapes import prompt_shape
from roofline_policies.testing import LinearSteps, fake_view

PEERS = {"running": 0, "waiting": 30, "next_prefill_tokens": 8192}


def test_a_rank_on_which_nothing_decodes_keeps_the_target_of_those_that_wait_for_its_step():
    """Attention ranks step together: a whole chunk here would be a gap of 170 ms for the requests of all others."""
    times = LinearSteps()
    view = fake_view(**PEERS, peers_decoding=40, target_itl_s=0.05)
    chunk = {found.knob: found.value for found in PrefillDeferral().propose(view)}
    size = chunk[Knob.PREFILL_CHUNK_TOKENS]
    assert chunk[Knob.DEFER_PREFILL] is False
    assert 0.7 * 0.05 < times.step_s(prefill=prompt_shape(view, size)) <= 0.05
    assert PrefillDeferral().propose(fake_view(**PEERS, target_itl_s=0.05)) == ()
    assert PrefillDeferral().propose(fake_view(**PEERS, peers_decoding=40)) == ()


def test_where_even_the_least_chunk_is_late_for_other_ranks_it_runs_all_the_same():
    view = fake_view(**PEERS, peers_decoding=1, target_itl_s=0.001)
    chunk = {found.knob: found.value for found in PrefillDeferral().propose(view)}
    assert chunk == {Knob.PREFILL_CHUNK_TOKENS: 128, Knob.MIXED_CHUNK: False, Knob.DEFER_PREFILL: False}


def test_requests_of_a_looser_class_here_do_not_spend_the_target_of_those_elsewhere():
    view = fake_view(running=2, waiting=30, next_prefill_tokens=8192, target_itl_s=0.05, gap_s=1.0)
    alone, beside = (
        {found.knob: found.value for found in PrefillDeferral().propose(view._replace(
            queue=view.queue._replace(peers_decoding=peers)
        ))}[Knob.PREFILL_CHUNK_TOKENS]
        for peers in (0, 9)
    )  # fmt: skip
    assert alone == 8192
    assert LinearSteps().step_s(prefill=prompt_shape(view, beside)) <= 0.05
