"""vLLM's step budget and prefill cadence, against the rule as it is described."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.rivals import VllmCadence
from roofline_policies.contract.decision import Bounds, Knob, Knobs, Range
from roofline_policies.contract.view import QueueState
from roofline_policies.errors import FieldError
from tests.roofline_policies.views import view

CHUNKS = {Knob.PREFILL_CHUNK_TOKENS: Range(1, 8192, 1)}
APART = Bounds(CHUNKS, {Knob.MIXED_CHUNK: "prefill and decode run on separate servers"})


def asked(policy, decisions=0, bounds=None, knobs=None, **queue):
    seen = view(knobs or Knobs(256, 8192), queue=QueueState(**queue), decisions=decisions)
    return {one.knob: one.value for one in policy.propose(seen._replace(bounds=bounds or Bounds(CHUNKS, {})))}


def defers(policy, decisions, **queue):
    queue = {"running": 8, "waiting": 1, "next_prefill_tokens": 500, **queue}
    return asked(policy, decisions, **queue)[Knob.DEFER_PREFILL]


def chunk(policy, **queue):
    return asked(policy, **queue)[Knob.PREFILL_CHUNK_TOKENS]


def test_decode_rows_and_prompts_share_the_budget_of_a_step():
    found = asked(VllmCadence(max_batched_tokens=2048), running=100, waiting=3, next_prefill_tokens=8192)
    assert found == {Knob.MIXED_CHUNK: True, Knob.PREFILL_CHUNK_TOKENS: 2048, Knob.DEFER_PREFILL: False}


@pytest.mark.parametrize(
    ("waiting", "in_flight", "tokens"),
    [(1, False, 8 + 512), (0, True, 8 + 512), (1, True, 8 + 1024), (3, True, 2048), (9, False, 2048), (0, False, 2048)],
)
def test_of_one_prompt_a_step_takes_the_threshold(waiting, in_flight, tokens):
    policy = VllmCadence(max_batched_tokens=2048, long_prompt_tokens=512)
    assert chunk(policy, running=8, waiting=waiting, chunk_in_flight=in_flight, next_prefill_tokens=8192) == tokens


@pytest.mark.parametrize(("interval", "expected"), [(1, "pppppp"), (2, "pdpdpd"), (3, "pddpdd"), (4, "pdddpd")])
def test_prompts_come_in_every_nth_step(interval, expected):
    policy = VllmCadence(interval=interval)
    assert "".join("d" if defers(policy, step) else "p" for step in range(6)) == expected


def test_prompts_come_in_every_step_while_no_request_can_decode_in_their_place():
    assert not defers(VllmCadence(), 1, running=0)
    assert defers(VllmCadence(), 1, running=1)


@pytest.mark.parametrize(
    ("queue", "deferred"),
    [
        ({"waiting": 4, "next_prefill_tokens": 1900}, True),  # all of them fit into the next step with prompts
        ({"waiting": 4, "next_prefill_tokens": 2040}, False),  # 2,048 less 8 rows: some would still wait
        ({"waiting": 2, "chunk_in_flight": True, "next_prefill_tokens": 8192}, False),
        ({"waiting": 0, "chunk_in_flight": True, "next_prefill_tokens": 8192}, True),  # it is in already, none waits
        ({"waiting": 1, "next_prefill_tokens": 8192}, True),  # it would come in and wait no more
    ],
)
def test_a_saturated_device_defers_nothing(queue, deferred):
    assert defers(VllmCadence(max_batched_tokens=2048), 1, **queue) is deferred


def test_where_mixing_cannot_be_had_rows_take_nothing_of_the_chunk():
    found = asked(VllmCadence(2048), bounds=APART, running=100, waiting=1, next_prefill_tokens=500)
    assert found == {Knob.PREFILL_CHUNK_TOKENS: 2048, Knob.DEFER_PREFILL: False}
    threshold = VllmCadence(2048, long_prompt_tokens=512)
    assert asked(threshold, bounds=APART, running=100, waiting=1)[Knob.PREFILL_CHUNK_TOKENS] == 512
    mixing = Knobs(256, 8192, mixed_chunk=True)
    assert asked(threshold, bounds=APART, knobs=mixing, running=100, waiting=1)[Knob.PREFILL_CHUNK_TOKENS] == 612


def test_what_cannot_be_moved_is_not_asked_for():
    off = Bounds({}, dict.fromkeys((Knob.PREFILL_CHUNK_TOKENS, Knob.MIXED_CHUNK), "chunked prefill is off"))
    assert asked(VllmCadence(), 1, off, Knobs(64, None), running=8, waiting=1) == {Knob.DEFER_PREFILL: True}
    none = Bounds({}, dict.fromkeys(Knob, "SGLang decides"))
    assert asked(VllmCadence(), 1, none, running=8, waiting=1) == {}


@pytest.mark.parametrize(("key", "value"), [("max_batched_tokens", 0), ("long_prompt_tokens", -1), ("interval", 0)])
def test_a_parameter_outside_its_range_is_named(key, value):
    with pytest.raises(FieldError) as raised:
        VllmCadence(**{key: value})
    assert raised.value.key == key


@given(
    st.integers(1, 16), st.integers(0, 300), st.integers(0, 300), st.booleans(), st.integers(0, 8192),
    st.integers(0, 4096), st.integers(0, 1000),
)  # fmt: skip
def test_of_any_interval_of_steps_one_lets_prompts_in_and_none_is_past_the_budget(
    interval, running, waiting, part_way, tokens, threshold, start
):
    policy = VllmCadence(4096, threshold, interval)
    queue = {"running": running, "waiting": waiting, "chunk_in_flight": part_way, "next_prefill_tokens": tokens}
    found = [asked(policy, step, **queue) for step in range(start, start + interval)]
    deferred = [one[Knob.DEFER_PREFILL] for one in found]
    assert sum(deferred) in (0, interval - 1)
    assert running > 0 or not any(deferred)
    for one in found:
        assert one[Knob.PREFILL_CHUNK_TOKENS] <= 4096
        if threshold and waiting + part_way:
            assert one[Knob.PREFILL_CHUNK_TOKENS] <= running + threshold * (waiting + part_way)
