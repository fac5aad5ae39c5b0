"""What binds first, and how many more requests fit."""

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roofline_policies.slo.admission import Admission, Ticket
from roofline_policies.slo.capacity import (
    Capacity,
    Resource,
    binding,
    entering,
    graph_requests,
    more_requests,
)

AMPLE = {
    Resource.KV_TOKENS: Capacity(Resource.KV_TOKENS, 10_000, 1_000_000, 1000.0),
    Resource.WINDOW_TOKENS: Capacity(Resource.WINDOW_TOKENS, 1_000, 100_000, 100.0),
    Resource.STATE_SLOTS: Capacity(Resource.STATE_SLOTS, 10, 1000),
    Resource.REQUEST_SLOTS: Capacity(Resource.REQUEST_SLOTS, 10, 1000),
    Resource.GRAPH_REQUESTS: Capacity(Resource.GRAPH_REQUESTS, 10, 1000),
}
FULL = {
    Resource.KV_TOKENS: Capacity(Resource.KV_TOKENS, 998_500, 1_000_000, 1000.0),
    Resource.WINDOW_TOKENS: Capacity(Resource.WINDOW_TOKENS, 99_870, 100_000, 100.0),
    Resource.STATE_SLOTS: Capacity(Resource.STATE_SLOTS, 999, 1000),
    Resource.REQUEST_SLOTS: Capacity(Resource.REQUEST_SLOTS, 999, 1000),
    Resource.GRAPH_REQUESTS: Capacity(Resource.GRAPH_REQUESTS, 999, 1000),
}

capacity = st.builds(
    lambda resource, used, size, each: Capacity(resource, min(used, size), size, each),
    st.sampled_from(Resource), st.integers(0, 5000), st.integers(1, 5000), st.floats(0.5, 400),
)  # fmt: skip
capacities = st.lists(capacity, unique_by=lambda one: one.resource, max_size=5).map(tuple)


@pytest.mark.parametrize("resource", Resource)
def test_the_one_that_alone_has_no_room_binds_by_name(resource):
    there = tuple({**AMPLE, resource: FULL[resource]}.values())
    first = binding(there)
    assert first == FULL[resource]
    assert more_requests(there) == (990 if resource is Resource.GRAPH_REQUESTS else 1)


def test_of_two_that_are_short_the_one_with_room_for_fewer_requests_binds():
    """A pool may be fuller and still take more: what counts is what a request takes of it."""
    states = Capacity(Resource.STATE_SLOTS, 5, 8)
    tokens = Capacity(Resource.KV_TOKENS, 900, 1000, 20.0)
    assert binding((tokens, states)) is states
    assert binding((tokens._replace(per_request=60.0), states)).resource is Resource.KV_TOKENS


def test_nothing_is_known():
    assert binding(()) is None
    assert more_requests(()) == inf
    assert graph_requests(()) is None
    assert entering((), [5, 6, 7]) == 3


@given(capacities)
def test_what_is_said_to_fit_fits_and_one_more_does_not(there):
    hard = [one for one in there if one.hard]
    more = more_requests(there)
    if not hard:
        assert more == inf
        return
    assert all(one.used + more * one.per_request <= one.size * (1 + 1e-12) for one in hard) or more == 0
    assert any(one.used + (more + 1) * one.per_request > one.size for one in hard)


@given(capacities, st.lists(st.integers(0, 900), max_size=40))
def test_prompts_enter_as_long_as_every_capacity_has_room(there, tokens):
    def fits(count):
        return all(
            one.used + (sum(max(1, each) for each in tokens[:count]) if one.resource is Resource.KV_TOKENS
                        else count * one.per_request) <= one.size + 1e-6
            for one in there if one.hard
        )  # fmt: skip

    count = entering(there, tokens)
    assert fits(count)
    assert count == len(tokens) or not all(
        one.used + (sum(max(1, each) for each in tokens[: count + 1]) if one.resource is Resource.KV_TOKENS
                    else (count + 1) * one.per_request) <= one.size - 1e-6
        for one in there if one.hard
    )  # fmt: skip


@pytest.mark.parametrize("resource", [resource for resource in Resource if resource is not Resource.GRAPH_REQUESTS])
def test_no_room_of_a_chunk_is_kept_for_prompts_that_cannot_enter(resource):
    tickets = [Ticket(0.0, 9.0, 1.0), Ticket(0.0, 1.0, 0.1), Ticket(0.0, 2.0, 0.1), Ticket(0.0, 3.0, 0.1)]
    part_way, *queue = tickets
    admission: Admission[Ticket] = Admission(lambda ticket: ticket)

    def kept(there):
        return admission.kept_tokens(0.0, part_way, queue, lambda _: 100, 1000, 1, capacities=there)

    assert kept(()) == 300
    assert kept(tuple(AMPLE.values())) == 300
    one_more = FULL[resource]._replace(used=FULL[resource].size - (100 if resource is Resource.KV_TOKENS else 1))
    one_more = one_more._replace(per_request=1.0)
    assert kept((*(one for name, one in AMPLE.items() if name is not resource), one_more)) == 100
    none = one_more._replace(used=one_more.size)
    assert kept((none,)) == 0
