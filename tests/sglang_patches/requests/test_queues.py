"""The queues as a policy may know them. Stand-ins take the place of SGLang's Scheduler, its batches and requests."""

from types import SimpleNamespace

import pytest
from sglang.srt.disaggregation.utils import DisaggregationMode
from sglang.srt.managers.schedule_policy import CLIP_MAX_NEW_TOKENS

from roofline_policies.slo.objectives import Slo
from roofline_policies.slo.running_targets import Need
from sglang_patches.requests.capacities import Capacities
from sglang_patches.requests.progress import Progress
from sglang_patches.requests.queues import LEAST_TARGET_S, Queues
from tests.sglang_patches.stand_ins import StandInRunningBatch, pools, stand_in_scheduler


class Told(Progress):
    """What a server's batches have told."""

    context_tokens = 5000

    def __init__(self):
        pass

    def slack_s(self, now_s):
        return 10.0 - now_s


def waits(length, hit):
    asked = SimpleNamespace(max_new_tokens=100)
    return SimpleNamespace(seqlen=length, prefix_len=hit, sampling_params=asked, output_ids=[])


def scheduler(running=3, waiting=(), **fields):
    fields = {"last_batch": None, "chunked_req": None, **fields}
    return stand_in_scheduler(
        running, waiting_queue=[waits(*prompt) for prompt in waiting],
        pool_stats_observer=pools(0.25), **fields,
    )  # fmt: skip


def state(scheduler, progress=None, **more):
    need = Need(gap_s=0.1, mean_s=0.05, due_s=0.7)
    options = {
        "need": need,
        "prompt_due_s": 0.5,
        "relegated": 2,
        "retractions": 1,
        "cache_hit_rate": 0.5,
        "chunk_tokens": 2048,
        **more,
    }
    return Queues(scheduler, Capacities(scheduler)).state(4.0, progress=progress or Told(), **options)


def test_a_quiet_server():
    queue = state(scheduler(running=0), Progress(Slo()))
    assert (queue.running, queue.waiting, queue.next_prefill_tokens, queue.next_prefix_tokens) == (0, 0, 0, 0)
    assert (queue.chunk_in_flight, queue.decode_context_tokens, queue.slack_s) == (False, 0, None)
    assert (queue.kv_use, queue.retractions, queue.cache_hit_rate) == (0.25, 1, 0.5)
    assert (queue.gap_s, queue.mean_s, queue.due_s) == (0.1, 0.05, 0.7)
    assert queue.prompt_due_s == 0.5
    assert (queue.relegated, queue.next_prompts, queue.due_before) == (2, (), 0)


def test_who_may_come_and_would_be_first_is_told_if_its_chunk_takes_longer_than_those_of_whom_it_passes():
    """A chunk of 2,048 has room for seven prompts of 300."""
    told = state(scheduler(), newcomer=(300, 9000))
    assert (told.next_prefix_tokens, told.next_prefill_tokens, told.next_prompts) == (9000, 0, ((300, 9000),) * 7)
    told = state(scheduler(waiting=[(500, 20)]), newcomer=(300, 9000))
    assert (told.next_prefix_tokens, told.next_prefill_tokens) == (9000, 480)
    assert told.next_prompts == (*[(300, 9000)] * 7, (480, 20))
    assert state(scheduler(waiting=[(500, 20)]), newcomer=(300, 20)).next_prompts == ((480, 20),)
    assert state(scheduler(waiting=[(500, 20)])).next_prompts == ((480, 20),)


def test_who_may_come_passes_a_prompt_part_way_that_is_late():
    chunked = SimpleNamespace(seqlen=3000, extend_end=2048)
    now = scheduler(waiting=[(500, 20)], chunked_req=chunked)
    for late, before in ((False, 0), (True, 3)):
        told = state(now, newcomer=(700, 9000), in_flight_is_late=late)
        assert (told.next_prefix_tokens, told.due_before) == (2048, before)
        assert told.next_prompts == ((952, 2048), *[(700, 9000)] * 3, (480, 20))


def test_those_due_before_a_prompt_part_way_are_told_however_long_it_is():
    chunked = SimpleNamespace(seqlen=90_000, extend_end=2048)
    now = scheduler(waiting=[(500, 20), (900, 20), (900, 0)], chunked_req=chunked)
    assert state(now).next_prompts == ((87_952, 2048),)
    told = state(now, due_before=2)
    assert (told.due_before, told.next_prompts) == (2, ((87_952, 2048), (480, 20), (880, 20)))


def test_the_running_requests_tell_what_they_attend_to_and_when_they_are_due():
    queue = state(scheduler(running=3))
    assert (queue.running, queue.decode_context_tokens, queue.slack_s) == (3, 5000, 6.0)


def test_what_was_told_of_those_that_have_left_is_not_passed_on():
    queue = state(scheduler(running=0))
    assert (queue.decode_context_tokens, queue.slack_s) == (0, None)


def test_the_next_chunk_is_of_the_prompt_that_is_part_way_through():
    chunked = SimpleNamespace(seqlen=3000, extend_end=2048)
    queue = state(scheduler(waiting=[(500, 0), (900, 0)], chunked_req=chunked))
    assert (queue.next_prefix_tokens, queue.next_prefill_tokens) == (2048, 952 + 500 + 900)
    assert queue.next_prompts == ((952, 2048), (500, 0), (900, 0))
    assert queue.chunk_in_flight


@pytest.mark.parametrize(
    ("waiting", "prefix", "tokens", "told"),
    [
        ([(500, 0)], 0, 500, ((500, 0),)),
        ([(500, 400), (4000, 16)], 400, 100 + 3984, ((100, 400), (3984, 16))),
        ([(9000, 16), (1, 0)], 16, 8984, ((8984, 16),)),
        ([(500, 400), (300, 100), (300, 251)], 400, 100 + 200 + 49, ((100, 400), (200, 100), (49, 251))),
        # A chunk is full: the third is not in it.
        ([(500, 0), (1948, 400), (9000, 8000)], 0, 500 + 1548, ((500, 0), (1548, 400))),
        ([(64, 64), (900, 0)], 64, 1 + 900, ((1, 64), (900, 0))),  # a token is computed of one that is cached whole
        # Beyond 16 those that follow are one, with the mean of 8 and 11.
        ([(20, 0)] * 15 + [(20, 8), (30, 11)], 0, 15 * 20 + 12 + 19, ((20, 0),) * 15 + ((31, 9),)),
    ],
)
def test_else_it_is_of_the_first_that_waits_without_what_is_cached(waiting, prefix, tokens, told):
    queue = state(scheduler(waiting=waiting))
    assert (queue.next_prefix_tokens, queue.next_prefill_tokens, queue.next_prompts) == (prefix, tokens, told)


def test_those_behind_a_prompt_that_is_part_way_through_come_without_what_is_cached():
    chunked = SimpleNamespace(seqlen=3000, extend_end=2048)
    queue = state(scheduler(waiting=[(500, 400), (900, 100), (9000, 8000)], chunked_req=chunked))
    assert queue.next_prefix_tokens == 2048
    assert queue.next_prefill_tokens == 952 + 100 + 800 + 1000
    assert queue.next_prompts == ((952, 2048), (100, 400), (800, 100), (1000, 8000))


def test_prompts_just_prefilled_run():
    last = SimpleNamespace(forward_mode=SimpleNamespace(is_extend=lambda: True), reqs=[1, 2, 3])
    assert state(scheduler(running=3, last_batch=last)).running == 6
    chunked = SimpleNamespace(seqlen=3000, extend_end=2048)
    queue = state(scheduler(running=0, last_batch=last, chunked_req=chunked))
    assert (queue.running, queue.slack_s) == (2, 6.0)


def pipeline(*sizes, last=(), **fields):
    """A scheduler on which so many requests run in each batch that is under way; last: batches that were prefilled."""
    batches = [StandInRunningBatch(size) for size in sizes]
    there = scheduler(**fields)
    there.running_batch, there.running_mbs = batches[0], batches
    there.last_mbs, there.mbs = [*last], [None] * len(sizes)
    return there


def prefilled(requests):
    mode = SimpleNamespace(is_extend=lambda: True)
    return SimpleNamespace(reqs=[None] * requests, forward_mode=mode)


def test_all_batches_of_a_pipeline_count():
    assert state(pipeline(3, 0, 5, last=[None, prefilled(2), None])).running == 10
    there = pipeline(0, 4)
    queues = Queues(there, Capacities(there))
    assert queues.counts() == {"running": 4, "waiting": 0}
    assert not queues.idle()
    for idle, last in ((True, []), (False, [prefilled(1)])):
        there = pipeline(0, 0, last=last)
        assert Queues(there, Capacities(there)).idle() is idle


def test_between_two_tokens_each_other_batch_of_a_pipeline_has_its_step():
    queue = state(pipeline(3, 0, 5, 2), decode_step_s=0.02)
    assert (queue.gap_s, queue.mean_s) == pytest.approx((0.1 - 2 * 0.02, 0.05 - 2 * 0.02))
    assert queue.due_s == pytest.approx(0.7 - 2 * 0.02)
    queue = state(pipeline(3, 1), decode_step_s=0.2)
    assert queue.gap_s == LEAST_TARGET_S
    assert queue.due_s == pytest.approx(0.5)
    alone = state(scheduler(running=3), decode_step_s=0.02)
    assert (alone.gap_s, alone.mean_s, alone.due_s) == (0.1, 0.05, 0.7)


def test_where_prompts_are_computed_elsewhere_none_is_to_be_computed():
    there = scheduler(waiting=[(500, 0), (700, 0)], disaggregation_mode=DisaggregationMode.DECODE)
    queue = state(there)
    assert (queue.waiting, queue.next_prefill_tokens, queue.next_prompts) == (2, 0, ())


def test_what_running_requests_may_still_generate_is_told_as_sglang_counts_it():
    def runs(most, so_far):
        return SimpleNamespace(sampling_params=SimpleNamespace(max_new_tokens=most), output_ids=[7] * so_far)

    batch = SimpleNamespace(reqs=[runs(100, 40), runs(1 << 30, 5000), runs(50, 60)], is_empty=lambda: False)
    seen = state(scheduler(running_batch=batch, waiting=[(900, 0), (10, 0)]))
    assert (seen.unwritten_tokens, seen.next_unwritten_tokens) == (60 + CLIP_MAX_NEW_TOKENS, 100)
    assert state(scheduler(running=0)).unwritten_tokens == 0
