"""Caps and what a server has room for: capacities by name, and the cliff behind the largest captured graph."""

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roofline_policies.contract.decision import Knob
from roofline_policies.device.hardware import from_catalogue
from roofline_policies.model.batch import BatchShape
from roofline_policies.model.catalogue import shipped_model
from roofline_policies.policies import BatchSize
from roofline_policies.policies.base import Proposal
from roofline_policies.policies.batch_size import RidgeBatchSize
from roofline_policies.policies.room import scaled, within_capacities, within_graphs
from roofline_policies.slo.capacity import Capacity, Resource, binding
from roofline_policies.slo.objectives import ItlKind, Objectives, Slo
from roofline_policies.steps.efficiency import load_efficiency
from roofline_policies.steps.predictor import StepPredictor
from roofline_policies.testing import LinearSteps, Machine, Plant, fake_bounds, fake_point, fake_view

EMPTY = BatchShape()
GRAPH = 256


class Cliff(NamedTuple):
    """Step times with a cliff: so much more a step where a decode batch is larger than every captured graph."""

    largest: int = GRAPH
    base_s: float = 5.3e-3
    row_s: float = 1e-6
    eager_s: float = 25.3e-3

    def step_s(self, *, prefill=EMPTY, decode=EMPTY, graph=False):
        eager = decode.requests > self.largest or not graph
        return self.base_s + self.row_s * (decode.requests + prefill.new_tokens) + self.eager_s * eager


SMOOTH = Cliff(eager_s=0.0)


def asked(cap):
    return Proposal("a test", Knob.MAX_RUNNING_REQUESTS, cap, "wanted")


def view(cap, running, waiting=0, steps=None, capacities=(), **more):
    graphs = (Capacity(Resource.GRAPH_REQUESTS, running, GRAPH),)
    return fake_view(
        max_running_requests=cap, running=running, waiting=waiting, predictor=steps or Cliff(),
        bounds=fake_bounds(max_running_requests=4096), decisions=0, capacities=(*capacities, *graphs), **more,
    )  # fmt: skip


def test_the_cap_stays_at_the_largest_graph_where_leaving_it_costs_more_than_it_brings():
    """30.6 ms against 5.3 ms of TPOT were seen past the last captured size (SGLang issue 33483)."""
    (found,) = BatchSize().propose(view(2048, running=200, waiting=400))
    assert found.value == GRAPH
    assert found.reason == "256 requests decode under a captured graph in 5.6 ms, 600 without one in 31.2 ms"


def test_without_a_cliff_nothing_is_given_up_for_a_graph():
    assert BatchSize().propose(view(2048, running=200, waiting=400, steps=SMOOTH)) == ()
    assert within_graphs(view(2048, 200, 400, SMOOTH), asked(2048)).value == 2048


def test_the_cap_is_there_before_the_requests_are():
    (found,) = BatchSize().propose(view(2048, running=20))
    assert found.value == GRAPH
    for cap in (64, GRAPH):
        assert BatchSize().propose(view(cap, running=20)) == ()  # nobody meets it


def test_enough_requests_beyond_it_are_worth_the_steps_without_a_graph():
    """At 31 ms against 5.6 ms of a step, from 1,458 requests on more tokens come out a second."""
    least = next(n for n in range(GRAPH + 1, 4000) if n / Cliff().step_s(decode=rows(n)) >= GRAPH / graph_s())
    for waiting, cap in ((least - 201, GRAPH), (least - 200, 4096)):
        assert within_graphs(view(4096, 200, waiting), asked(4096)).value == cap


def rows(n):
    return BatchShape.of(decode_contexts=[1000] * n)


def graph_s():
    return Cliff().step_s(decode=rows(GRAPH), graph=True)


@given(st.integers(1, 600), st.integers(0, 2000), st.floats(0, 0.05), st.integers(1, 4096))
def test_a_cap_is_taken_back_to_the_graphs_only_where_more_tokens_come_out_there(running, waiting, eager_s, cap):
    steps = Cliff(eager_s=eager_s)
    seen = view(cap, running, waiting, steps)
    found = within_graphs(seen, asked(cap)).value
    assert found in (cap, GRAPH)
    if cap <= GRAPH:
        assert found == cap
    elif found == GRAPH:
        batch = min(cap, running + waiting)
        batch = batch if batch > GRAPH else min(cap, 2 * GRAPH)
        assert batch / steps.step_s(decode=rows(batch), graph=True) < GRAPH / steps.step_s(
            decode=rows(GRAPH), graph=True
        )


def test_the_ridge_rule_does_not_grow_past_the_cliff_either():
    at_it = {"decode": fake_point(), "decode_step_s": 0.005, "target_itl_s": 0.05}
    assert RidgeBatchSize().propose(view(GRAPH, running=GRAPH, waiting=50, **at_it)) == ()
    (found,) = RidgeBatchSize().propose(view(GRAPH, running=GRAPH, waiting=50, steps=SMOOTH, **at_it))
    assert found.value == 320
    (found,) = RidgeBatchSize().propose(view(240, running=240, waiting=50, **at_it))
    assert found.value == GRAPH


@pytest.mark.parametrize(("name", "beyond_pays"), [("qwen3_32b", True), ("llama_3_1_8b", False)])
def test_the_shipped_prices_say_for_each_model_whether_its_graphs_are_a_cliff(name, beyond_pays):
    """On an H200 with graphs for 16 requests, of which 18 could run: launching takes less than a large step."""
    model = shipped_model(name).rank(1)
    steps = StepPredictor(model, from_catalogue("h200"), load_efficiency("h200"), captured=(8, 16))
    within_s, beyond_s = (steps.step_s(decode=scaled(rows(12), n), graph=True) for n in (16, 18))
    assert (18 / beyond_s > 16 / within_s) is beyond_pays
    seen = fake_view(
        max_running_requests=64, running=12, waiting=6, predictor=steps, decisions=0, decode_context_tokens=12_000,
        capacities=(Capacity(Resource.GRAPH_REQUESTS, 12, 16),),
    )  # fmt: skip
    assert within_graphs(seen, asked(64)).value == (64 if beyond_pays else 16)


@pytest.mark.parametrize(
    ("resource", "used", "size", "each"),
    [
        (Resource.KV_TOKENS, 90_000, 100_000, 1000.0), (Resource.WINDOW_TOKENS, 9_000, 10_000, 100.0),
        (Resource.STATE_SLOTS, 90, 100, 1.0), (Resource.REQUEST_SLOTS, 90, 100, 1.0),
    ],
)  # fmt: skip
def test_a_cap_is_raised_no_further_than_the_capacity_that_binds_holds(resource, used, size, each):
    capacities = (Capacity(resource, used, size, each), Capacity(Resource.REQUEST_SLOTS, 0, 10**6))
    seen = fake_view(running=90, waiting=500, max_running_requests=64, capacities=capacities)
    found = within_capacities(seen, asked(512))
    assert found.value == 100
    assert found.reason == f"{resource.value} ({used} of {size} in use) hold 100 requests"
    assert within_capacities(seen, asked(99)).reason == "wanted"


@given(
    st.lists(
        st.builds(
            Capacity, st.sampled_from(Resource), st.integers(0, 5000), st.integers(1, 5000), st.floats(0.5, 400)
        ),
        unique_by=lambda one: one.resource, max_size=5,
    ),
    st.integers(1, 400), st.integers(0, 400), st.integers(1, 4096), st.sampled_from([None, 0.006, 0.02, 0.2]),
)  # fmt: skip
def test_no_policy_raises_a_cap_past_any_capacity(capacities, running, waiting, cap, target_s):
    seen = fake_view(
        running=running, waiting=waiting, max_running_requests=cap, capacities=tuple(capacities), decisions=0,
        target_itl_s=target_s, decode=fake_point(), decode_step_s=0.001,
        bounds=fake_bounds(max_running_requests=4096),
    )  # fmt: skip
    for policy in (BatchSize(), RidgeBatchSize()):
        for found in policy.propose(seen):
            if found.value > max(cap, running):
                more = found.value - running
                assert all(one.used + more * one.per_request <= one.size for one in capacities if one.hard)


machines = st.builds(
    Machine,
    max_running_requests=st.integers(1, 32), prefill_chunk_tokens=st.sampled_from([256, 2048]),
    kv_tokens=st.integers(2_000, 40_000), window_tokens=st.none() | st.integers(600, 4_000), window=st.just(500),
    state_slots=st.none() | st.integers(1, 12), request_slots=st.none() | st.integers(1, 12),
    graph_requests=st.none() | st.integers(1, 12),
)  # fmt: skip
requests = st.lists(
    st.tuples(st.floats(0, 2), st.integers(1, 1500), st.integers(1, 60), st.none()), min_size=1, max_size=25
)


@given(machines, requests, st.sampled_from([None, 0.01, 0.1]))
def test_a_plant_holds_no_more_than_it_has_room_for_and_serves_everyone(machine, asked_for, target_s):
    slo = Slo() if target_s is None else Slo(ttft_s=1.0, itl_s=target_s, itl_kind=ItlKind.PER_GAP)
    run = Plant(BatchSize(), machine, objectives=Objectives(slo)).run(asked_for)
    assert run.finished
    assert run.fallback_reason is None
    for moment in run.moments:
        for one in moment.queue.capacities:
            if one.hard:
                assert 0 <= one.used <= one.size
    most = max(step.rows for step in run.steps)
    slots = [one for one in (machine.state_slots, machine.request_slots) if one is not None]
    assert most <= min([machine.max_running_requests, *slots])


@pytest.mark.parametrize(
    ("limit", "resource"),
    [
        ({"kv_tokens": 4_000}, Resource.KV_TOKENS), ({"window_tokens": 1_500}, Resource.WINDOW_TOKENS),
        ({"state_slots": 3}, Resource.STATE_SLOTS), ({"request_slots": 3}, Resource.REQUEST_SLOTS),
    ],
)  # fmt: skip
def test_the_one_limit_of_a_plant_is_the_one_that_binds(limit, resource):
    machine = Machine(window=500, **limit)
    run = Plant(BatchSize(), machine, times=LinearSteps()).run([(0.0, 1000, 200, None)] * 12)
    waited = [moment.queue for moment in run.moments if moment.queue.waiting and moment.queue.running]
    assert waited
    assert {binding(queue.capacities).resource for queue in waited} == {resource}
    assert max(queue.running for queue in waited) == 3
