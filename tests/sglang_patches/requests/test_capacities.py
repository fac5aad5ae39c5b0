"""Pools, tables and graphs of a scheduler as capacities. Pools are stand-ins with the fields of SGLang's."""

import logging
from dataclasses import fields
from types import SimpleNamespace

import pytest
from sglang.srt.managers.scheduler_components.pool_stats_observer import PoolStats

from roofline_policies.slo.capacity import Capacity, Resource, binding
from sglang_patches.requests.capacities import Capacities, kv_share
from tests.sglang_patches.stand_ins import pools, request_table, stand_in_scheduler


def reading(stats, table=None, graph=None, running=4, next_tokens=0):
    """The capacities where SGLang tells these figures of its pools."""
    there = PoolStats(full_token_usage=0.0, full_available_size=0, full_evictable_size=0, **stats)
    scheduler = stand_in_scheduler(
        req_to_token_pool=table or request_table(1000),
        pool_stats_observer=SimpleNamespace(get_pool_stats=lambda: there),
    )
    return Capacities(scheduler, graph).now(running, next_tokens)


AMPLE = {"full_num_used": 8_000, "full_capacity": 10**7}


@pytest.mark.parametrize(
    ("short", "first"),
    [
        ({"full_num_used": 9_000, "full_capacity": 10_000}, Capacity(Resource.KV_TOKENS, 9_000, 10_000, 1125.0)),
        ({"swa_num_used": 900, "swa_capacity": 1_000}, Capacity(Resource.WINDOW_TOKENS, 900, 1_000, 112.5)),
        # Two states a request, one of them a copy; what the prefix cache holds goes when it is asked for.
        ({"mamba_num_used": 16, "mamba_available_size": 1, "mamba_evictable_size": 2},
         Capacity(Resource.STATE_SLOTS, 16, 19, 2.0)),
    ],
)  # fmt: skip
def test_the_pool_that_is_short_binds(short, first):
    assert binding(reading({**AMPLE, **short}, request_table(1000, held=8))) == first


def test_places_in_the_table_of_requests_and_graphs_bind_too():
    assert binding(reading(AMPLE, request_table(8, held=7))) == Capacity(Resource.REQUEST_SLOTS, 7, 8)
    first = binding(reading(AMPLE, request_table(1000, held=8), graph=8, running=8))
    assert first == Capacity(Resource.GRAPH_REQUESTS, 8, 8)


def test_where_nothing_is_held_the_next_prompt_stands_for_all():
    (tokens, _) = reading({"full_num_used": 0, "full_capacity": 10_000}, next_tokens=700)
    assert tokens == Capacity(Resource.KV_TOKENS, 0, 10_000, 700.0)


def test_the_share_of_the_fuller_pool_is_the_kv_use():
    assert kv_share(reading({**AMPLE, "swa_num_used": 900, "swa_capacity": 1_000})) == 0.9
    assert kv_share(reading({"full_num_used": 300, "full_capacity": 1_000})) == 0.3
    assert kv_share(()) == 0.0


def test_a_pool_that_sglang_cannot_tell_of_is_named_once_and_the_rest_stays(caplog):
    def broken():
        raise AttributeError("a pool that nobody foresaw")

    scheduler = stand_in_scheduler(pool_stats_observer=SimpleNamespace(get_pool_stats=broken))
    capacities = Capacities(scheduler, 32)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert capacities.now(5) == (Capacity(Resource.GRAPH_REQUESTS, 5, 32),)
    (line,) = caplog.messages
    assert "a pool that nobody foresaw" in line


def test_a_pool_that_counts_nothing_is_no_capacity():
    assert [one.resource for one in reading({"full_num_used": 0, "full_capacity": None})] == [Resource.REQUEST_SLOTS]


def test_the_stand_in_of_other_tests_has_fields_of_sglangs():
    names = {field.name for field in fields(PoolStats)}
    assert set(vars(pools().get_pool_stats())) <= names
