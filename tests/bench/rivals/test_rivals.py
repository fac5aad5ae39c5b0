"""Rivals that need nothing but queues and measured times: decisions against values computed by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.rivals import PPas, SlaBisection
from roofline_policies.contract.decision import Bounds, Knob, Knobs, Range
from roofline_policies.contract.view import QueueState
from roofline_policies.errors import FieldError, InputError
from roofline_policies.policies import Policy
from roofline_policies.settings.loading import load
from roofline_policies.slo.objectives import Slo
from tests.roofline_policies.views import BOUNDS, view

WIDE = Bounds({Knob.MAX_RUNNING_REQUESTS: Range(1, 256), Knob.PREFILL_CHUNK_TOKENS: Range(64, 16384, 64)}, {})


def chunk(policy, bounds=WIDE, **queue):
    (proposal,) = policy.propose(view(queue=QueueState(**queue))._replace(bounds=bounds))
    assert proposal.knob is Knob.PREFILL_CHUNK_TOKENS
    return proposal.value


@pytest.mark.parametrize("name", ["p_pas", "eb_plus", "sla_bisection", "slack_chunks", "sliding_serve", "vllm_cadence"])
def test_each_is_chosen_by_its_name_with_its_own_defaults(name):
    policy = load("adaptive", overrides=[f"policy=rivals/{name}"]).policy
    assert isinstance(policy, Policy)
    assert type(policy).__module__ == f"bench.rivals.{name}"
    assert policy == type(policy)()


def test_parameters_are_set_and_checked_like_any_policys():
    assert load("adaptive", overrides=["policy=rivals/p_pas", "policy.low=512"]).policy == PPas(low=512)
    with pytest.raises(InputError, match=r"policy\.low = 0: out of range"):
        load("adaptive", overrides=["policy=rivals/p_pas", "policy.low=0"])


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: PPas(low=3, high=2), "low"),
        (lambda: PPas(crowd=0), "crowd"),
        (lambda: SlaBisection(tolerance=1.0), "tolerance"),
        (lambda: SlaBisection(alpha=0), "alpha"),
        (lambda: SlaBisection(delta=0), "delta"),
        (lambda: SlaBisection(kv_share=0.0), "kv_share"),
        (lambda: SlaBisection(every_s=-1.0), "every_s"),
    ],
)
def test_a_parameter_outside_its_range_is_named(make, key):
    with pytest.raises(FieldError) as raised:
        make()
    assert raised.value.key == key


@pytest.mark.parametrize(
    ("queue", "tokens"),
    [
        ({"running": 8, "waiting": 2}, 2048),
        ({"running": 8, "waiting": 1, "chunk_in_flight": True}, 2048),
        ({"running": 8, "waiting": 1}, 16384),
        ({"running": 8, "chunk_in_flight": True}, 16384),
        ({"running": 0, "waiting": 9, "chunk_in_flight": True}, 16384),
        ({"running": 1, "waiting": 9}, 2048),
        ({}, 16384),
    ],
)
def test_p_pas_takes_the_small_budget_while_two_prompts_compete_with_decode(queue, tokens):
    assert chunk(PPas(), **queue) == tokens


def test_p_pas_stays_within_the_launch_setting_and_idles_without_chunks():
    assert chunk(PPas(), BOUNDS, running=8) == 2048
    assert chunk(PPas(low=100), BOUNDS, running=8, waiting=2) == 96  # a multiple of the step
    bounds = Bounds({}, {Knob.PREFILL_CHUNK_TOKENS: "chunked prefill is off"})
    assert PPas().propose(view(Knobs(64, None))._replace(bounds=bounds)) == ()


@given(st.integers(0, 300), st.integers(0, 300), st.booleans(), st.integers(1, 5))
def test_p_pas_knows_two_values_and_the_second_only_where_something_decodes(running, waiting, part_way, crowd):
    value = chunk(PPas(crowd=crowd), running=running, waiting=waiting, chunk_in_flight=part_way)
    assert value in (2048, 16384)
    assert (value == 2048) == (running > 0 and waiting + part_way >= crowd)


def moment(now_s, itl_s=None, batch=None, target_s=0.1, running=32, kv_use=0.0):
    seen = view(slo=Slo(itl_s=target_s), queue=QueueState(running=running, kv_use=kv_use))
    return seen._replace(bounds=WIDE, now_s=now_s, itl_s=itl_s, decode_requests=batch)


def cap(policy, *arguments, **fields):
    (proposal,) = policy.propose(moment(*arguments, **fields))
    assert proposal.knob is Knob.MAX_RUNNING_REQUESTS
    return proposal.value


def test_the_batch_is_bisected_on_the_latency():
    policy = SlaBisection(alpha=16, delta=4)
    assert cap(policy, 0.0, 0.05, 32.0) == (32 + 256) // 2  # fast: low = min(32, 256 - 16), high = 256
    assert cap(policy, 1.0, 0.05, 100.0) == (100 + 256) // 2
    assert cap(policy, 2.0, 0.20, 178.0) == (96 + 178) // 2  # late: high = 178, low gives way by 4
    assert cap(policy, 3.0, 0.10, 120.0) == 120  # within the band: 112 to 128
    assert cap(policy, 4.0, 0.20, 120.0) == (108 + 128) // 2  # late: high = max(120, 112 + 16)
    assert cap(policy, 5.0, 0.05, 118.0) == (112 + 132) // 2  # fast: low = min(118, 128 - 16)


@pytest.mark.parametrize(("itl_s", "expected"), [(0.0951, 50), (0.1049, 50), (0.0949, 153), (0.1051, 25)])
def test_a_latency_near_the_target_is_right(itl_s, expected):
    assert cap(SlaBisection(tolerance=0.05), 0.0, itl_s, 50.0) == expected


def test_the_interval_moves_once_per_period():
    policy = SlaBisection(every_s=1.0)
    first = cap(policy, 0.0, 0.05, 32.0)
    assert cap(policy, 0.9, 0.20, 178.0) == first
    assert cap(policy, 1.0, 0.20, 178.0) < first


def test_memory_caps_the_batch_at_what_fits_if_all_are_as_long():
    assert cap(SlaBisection(kv_share=0.9), 0.0, running=32, kv_use=0.45) == 64
    assert cap(SlaBisection(), 0.0, running=32, kv_use=0.001) == 256
    assert cap(SlaBisection(), 0.0, 0.05, 32.0, running=32, kv_use=0.45) == 64  # the lower of both
    assert cap(SlaBisection(), 0.0, 0.2, 32.0, running=32, kv_use=0.45) == (1 + 32) // 2


def test_without_a_target_memory_decides_and_without_either_nothing_does():
    assert cap(SlaBisection(), 0.0, 0.5, 32.0, target_s=None, kv_use=0.45) == 64
    assert SlaBisection().propose(moment(0.0, 0.5, 32.0, target_s=None)) == ()
    assert SlaBisection().propose(moment(0.0)) == ()
    assert SlaBisection().propose(moment(0.0, 0.05, 32.0, running=0)) == ()


moments = st.lists(
    st.tuples(
        st.floats(0, 2), st.floats(1e-4, 1.0), st.floats(0, 300), st.integers(0, 300), st.floats(0, 1)
    ),
    max_size=40,
)  # fmt: skip


@given(moments, st.integers(1, 40), st.integers(1, 40))
def test_the_cap_stays_within_bounds_and_the_same_history_gives_the_same(history, alpha, delta):
    def play(policy):
        now_s, caps = 0.0, []
        for gap_s, itl_s, batch, running, kv_use in history:
            now_s += gap_s
            caps.append(policy.propose(moment(now_s, itl_s, batch, running=running, kv_use=kv_use)))
        return caps

    policy = SlaBisection(alpha=alpha, delta=delta)
    first = play(policy)
    assert all(1 <= proposal.value <= 256 for proposals in first for proposal in proposals)
    assert play(SlaBisection(alpha=alpha, delta=delta)) == first
    policy.reset()
    assert play(policy) == first
