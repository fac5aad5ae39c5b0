"""Knobs applied to a scheduler. Stand-ins take the place of SGLang's Scheduler and its batches."""

import pytest
from sglang.srt.disaggregation.utils import DisaggregationMode

from roofline_policies.contract.decision import Knob, Knobs
from roofline_policies.control.transitions import COSTLY_KNOBS
from sglang_patches.loop.actuator import Actuator
from sglang_patches.loop.layout import launch_knobs
from tests.sglang_patches.stand_ins import StandInRunningBatch, arguments, stand_in_scheduler


@pytest.mark.parametrize("mixed", [False, True])
def test_mixing_starts_as_the_server_was_launched_and_is_free_to_move(mixed):
    scheduler = stand_in_scheduler(is_mixed_chunk=mixed)
    assert launch_knobs(scheduler) == Knobs(64, 2048, mixed_chunk=mixed)
    actuator = Actuator(scheduler)
    actuator.apply_chunk(scheduler.running_batch)
    assert (scheduler.is_mixed_chunk, scheduler.chunked_prefill_size) == (mixed, 2048)
    actuator.apply(Knobs(64, 512, mixed_chunk=not mixed))
    assert (scheduler.is_mixed_chunk, scheduler.chunked_prefill_size) == (not mixed, 512)
    assert Knob.MIXED_CHUNK not in COSTLY_KNOBS


def test_mixing_waits_while_no_chunk_holds_the_decode_rows_and_a_page():
    scheduler = stand_in_scheduler(running=40, chunked_prefill_size=64)
    actuator = Actuator(scheduler)
    actuator.apply(Knobs(64, 64, mixed_chunk=True))
    assert (scheduler.is_mixed_chunk, scheduler.chunked_prefill_size) == (True, 64)
    actuator.apply(Knobs(64, 32, mixed_chunk=True))
    assert (scheduler.is_mixed_chunk, scheduler.chunked_prefill_size) == (True, 40 + 16 + 1)
    actuator.apply_chunk(StandInRunningBatch(48))
    assert (scheduler.is_mixed_chunk, scheduler.chunked_prefill_size) == (False, 32)
    actuator.apply_chunk(StandInRunningBatch(47))
    assert (scheduler.is_mixed_chunk, scheduler.chunked_prefill_size) == (True, 64)


def test_a_server_launched_with_mixing_keeps_to_it_however_many_run():
    scheduler = stand_in_scheduler(running=80, chunked_prefill_size=64, is_mixed_chunk=True)
    actuator = Actuator(scheduler)
    actuator.apply_chunk(scheduler.running_batch)
    assert (scheduler.is_mixed_chunk, scheduler.chunked_prefill_size) == (True, 64)


def test_under_deterministic_inference_mixing_leaves_a_whole_grain_for_the_prompt():
    scheduler = stand_in_scheduler(running=40, truncation_align_size=256)
    Actuator(scheduler).apply(Knobs(64, 256, mixed_chunk=True))
    assert scheduler.chunked_prefill_size == 40 + 256 + 1


def test_the_chunk_is_set_and_lifted():
    scheduler = stand_in_scheduler()
    actuator = Actuator(scheduler)
    actuator.apply(Knobs(64, 512))
    assert scheduler.chunked_prefill_size == 512
    actuator.apply(Knobs(64, 2048))
    assert scheduler.chunked_prefill_size == 2048


def test_under_mixed_chunk_a_page_is_left_for_the_prompt():
    scheduler = stand_in_scheduler(running=40, is_mixed_chunk=True)
    actuator = Actuator(scheduler)
    actuator.apply(Knobs(64, 32, mixed_chunk=True))
    assert scheduler.chunked_prefill_size == 40 + 16 + 1
    actuator.apply_chunk(StandInRunningBatch(2))  # the batch of this pass, whatever the scheduler still holds
    assert scheduler.chunked_prefill_size == 32


def test_without_chunked_prefill_nothing_is_assigned():
    scheduler = stand_in_scheduler(chunked_prefill_size=None)
    Actuator(scheduler).apply(Knobs(32, None))
    assert scheduler.chunked_prefill_size is None


def test_the_cap_only_ever_narrows():
    actuator = Actuator(stand_in_scheduler())
    assert actuator.allocatable(10, running=4) == 10
    actuator.apply(Knobs(6, 2048))
    assert actuator.allocatable(10, running=4) == 2
    assert actuator.allocatable(1, running=4) == 1
    assert actuator.allocatable(10, running=9) == -3  # drains: no one enters until four have left


def test_raising_the_cap_reopens_a_full_batch_and_lowering_does_not():
    scheduler = stand_in_scheduler()
    actuator = Actuator(scheduler)
    actuator.apply(Knobs(8, 2048))
    assert scheduler.running_batch.batch_is_full
    actuator.apply(Knobs(16, 2048))
    assert not scheduler.running_batch.batch_is_full


def test_nothing_is_deferred_while_nothing_decodes():
    actuator = Actuator(stand_in_scheduler())
    assert not actuator.defers(StandInRunningBatch(4))
    actuator.apply(Knobs(64, 2048, defer_prefill=True))
    assert actuator.defers(StandInRunningBatch(4))
    assert not actuator.defers(StandInRunningBatch(0))
    only_prefill = StandInRunningBatch(4)
    only_prefill.is_prefill_only = True
    assert not actuator.defers(only_prefill)


def test_each_batch_of_a_pipeline_has_its_share_of_the_cap_and_all_reopen_when_it_rises():
    scheduler = stand_in_scheduler(server_args=arguments(pp_size=2))
    scheduler.running_mbs = [scheduler.running_batch, StandInRunningBatch(3)]
    actuator = Actuator(scheduler)
    actuator.apply(Knobs(6, 2048))
    assert actuator.allocatable(10, running=2) == 1
    assert all(batch.batch_is_full for batch in scheduler.running_mbs)
    actuator.apply(Knobs(1, 2048))
    assert actuator.allocatable(10, running=0) == 1  # a share of none would let nobody in
    actuator.apply(Knobs(8, 2048))
    assert not any(batch.batch_is_full for batch in scheduler.running_mbs)


@pytest.mark.parametrize(
    ("mode", "read"), [(DisaggregationMode.DECODE, 16), (DisaggregationMode.PREFILL, 64), (DisaggregationMode.NULL, 64)]
)
def test_a_server_that_only_decodes_reads_its_cap_elsewhere(mode, read):
    scheduler = stand_in_scheduler(disaggregation_mode=mode)
    Actuator(scheduler).apply(Knobs(16, 2048))
    assert scheduler.max_running_requests == read


def test_the_room_for_running_answers_is_what_sglang_expects_or_less():
    """SGLang's own estimate falls while nobody is retracted, and rises when somebody is."""
    scheduler = stand_in_scheduler()
    ratio, actuator = scheduler.new_token_ratio_tracker, Actuator(scheduler)
    actuator.apply(Knobs(64, 2048))
    assert ratio.current == 0.7
    actuator.apply(Knobs(64, 2048, new_token_permille=100))
    assert ratio.current == 0.1
    for own, used in [(0.05, 0.05), (0.9, 0.1)]:
        ratio.current = own
        actuator.apply_chunk(scheduler.running_batch)
        assert ratio.current == used
