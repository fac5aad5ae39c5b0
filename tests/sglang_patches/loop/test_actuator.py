"""Knobs applied to a scheduler. Stand-ins take the place of SGLang's Scheduler and its batches."""

import pytest
from sglang.srt.disaggregation.utils import DisaggregationMode

from roofline_policies.contract.decision import Knob, Knobs, Range
from roofline_policies.control.transitions import COSTLY_KNOBS
from sglang_patches.loop.actuator import Actuator
from sglang_patches.loop.layout import launch_knobs, launch_ranges
from tests.sglang_patches.stand_ins import StandInRunningBatch, StandInSpeculation, arguments, stand_in_scheduler


def test_the_launch_setting_is_the_upper_end_and_a_page_the_lower():
    scheduler = stand_in_scheduler()
    assert launch_knobs(scheduler) == Knobs(64, 2048)
    ranges, immovable = launch_ranges(scheduler)
    assert ranges == {
        Knob.MAX_RUNNING_REQUESTS: Range(1, 64), Knob.PREFILL_CHUNK_TOKENS: Range(64, 2048, 64),
        Knob.RELEGATE_FOR_S: Range(0, 3600),
    }  # fmt: skip
    assert set(immovable) == NOT_YET


NOT_YET = {Knob.SPECULATION_WINDOW, Knob.QUANT_TIER}
"""Knobs that no server of this version can move."""


@pytest.mark.parametrize(
    ("fields", "knob", "reason"),
    [
        ({"chunked_prefill_size": None}, Knob.PREFILL_CHUNK_TOKENS, "chunked prefill is off"),
        ({"disaggregation_mode": DisaggregationMode.DECODE}, Knob.DEFER_PREFILL, "separate servers"),
        ({"chunked_prefill_size": None}, Knob.MIXED_CHUNK, "chunked prefill is off"),
        ({"disaggregation_mode": DisaggregationMode.PREFILL}, Knob.MIXED_CHUNK, "separate servers"),
        ({"spec_algorithm": StandInSpeculation("ngram")}, Knob.MIXED_CHUNK, "--speculative-algorithm"),
        ({"server_args": arguments(enable_two_batch_overlap=True)}, Knob.MIXED_CHUNK, "--enable-two-batch-overlap"),
        ({"server_args": arguments(enable_hisparse=True)}, Knob.MIXED_CHUNK, "--enable-hisparse"),
        ({"server_args": arguments(attn_cp_size=2)}, Knob.MIXED_CHUNK, "--attn-cp-size"),
        ({"server_args": arguments(schedule_policy="lpm")}, Knob.DEADLINE_ORDER, "--schedule-policy"),
        ({"server_args": arguments(schedule_policy="lpm")}, Knob.RELEGATE_FOR_S, "--schedule-policy"),
        ({"enable_priority_scheduling": True}, Knob.DEADLINE_ORDER, "--enable-priority-scheduling"),
        ({"enable_priority_scheduling": True}, Knob.RELEGATE_FOR_S, "--enable-priority-scheduling"),
        ({"disaggregation_mode": DisaggregationMode.PREFILL}, Knob.DEADLINE_ORDER, "separate servers"),
        ({"disaggregation_mode": DisaggregationMode.DECODE}, Knob.RELEGATE_FOR_S, "separate servers"),
        ({}, Knob.SPECULATION_WINDOW, "nothing drafts (--speculative-algorithm)"),
        ({"spec_algorithm": StandInSpeculation("eagle")}, Knob.SPECULATION_WINDOW, "--speculative-num-steps"),
        ({}, Knob.QUANT_TIER, "one precision"),
    ],
)
def test_a_knob_that_cannot_move_is_named_with_the_reason(fields, knob, reason):
    ranges, immovable = launch_ranges(stand_in_scheduler(**fields))
    assert knob not in ranges
    assert reason in immovable[knob]


def test_drafts_that_take_part_in_mixed_steps_do_not_forbid_them():
    _, immovable = launch_ranges(stand_in_scheduler(spec_algorithm=StandInSpeculation("eagle", mixes=True)))
    assert set(immovable) == NOT_YET


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
