"""Knobs applied to a scheduler. Stand-ins take the place of SGLang's Scheduler and its batches."""

import pytest
from sglang.srt.disaggregation.utils import DisaggregationMode
from stand_ins import StandInRunningBatch, stand_in_scheduler

from roofline_policies.decision import Knob, Knobs, Range
from sglang_patches.actuate import Actuator, launch_knobs, launch_ranges


def test_the_launch_setting_is_the_upper_end_and_a_page_the_lower():
    scheduler = stand_in_scheduler()
    assert launch_knobs(scheduler) == Knobs(64, 2048)
    ranges, immovable = launch_ranges(scheduler)
    assert ranges == {Knob.MAX_RUNNING_REQUESTS: Range(1, 64), Knob.PREFILL_CHUNK_TOKENS: Range(64, 2048, 64)}
    assert immovable == {}


@pytest.mark.parametrize(
    ("fields", "knob", "reason"),
    [
        ({"chunked_prefill_size": None}, Knob.PREFILL_CHUNK_TOKENS, "chunked prefill is off"),
        ({"disaggregation_mode": DisaggregationMode.DECODE}, Knob.DEFER_PREFILL, "separate servers"),
    ],
)
def test_a_knob_that_cannot_move_is_named_with_the_reason(fields, knob, reason):
    ranges, immovable = launch_ranges(stand_in_scheduler(**fields))
    assert knob not in ranges
    assert reason in immovable[knob]


def test_pages_and_tiles_are_both_kept():
    ranges, _ = launch_ranges(stand_in_scheduler(page_size=96))
    assert ranges[Knob.PREFILL_CHUNK_TOKENS] == Range(192, 2048, 192)
    ranges, _ = launch_ranges(stand_in_scheduler(chunked_prefill_size=32))
    assert ranges[Knob.PREFILL_CHUNK_TOKENS] == Range(16, 32, 16)


def test_deterministic_inference_sets_the_grain_of_chunks():
    ranges, _ = launch_ranges(stand_in_scheduler(truncation_align_size=256))
    assert ranges[Knob.PREFILL_CHUNK_TOKENS] == Range(256, 2048, 256)


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
    actuator.apply(Knobs(64, 32))
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
