"""Guarantee: on traffic that stays the same, knobs come to rest; the loop answers the traffic and not its own echo."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roofline_policies.contract.decision import Knob
from roofline_policies.slo.objectives import Objectives, Slo
from roofline_policies.testing import Machine
from tests.roofline_policies.guarantees.guarantee_plants import DEFERRAL, POLICIES, biases, examples, noises, run

CALM = [(0.1 * i, 800, 100, None) for i in range(300)]
SATURATED = [(0.0, 800, 100, None)] * 400
TRAFFIC = {"calm": CALM, "saturated": SATURATED}


def late_changes(done):
    """Changes of the cap in the last half of the time in which requests come or wait, less its end, where nothing is
    left of them and the traffic is another."""
    busy_s = [moment.t_s for moment in done.moments if moment.queue.waiting or moment.queue.chunk_in_flight]
    return [
        (at_s, change.old, change.new)
        for at_s, change in done.changes()
        if change.knob is Knob.MAX_RUNNING_REQUESTS and busy_s[-1] / 2 < at_s <= 0.9 * busy_s[-1]
    ]


@pytest.mark.parametrize("asked", TRAFFIC)
@pytest.mark.parametrize("name", POLICIES)
@examples(5)
@given(
    bias=biases, noise=noises, delay_steps=st.integers(0, 4),
    itl_s=st.sampled_from([None, 0.1, 0.5]),
)  # fmt: skip
def test_a_costly_knob_rests_where_targets_leave_room(name, asked, bias, noise, delay_steps, itl_s):
    machine = Machine(bias=bias, noise=noise, delay_steps=delay_steps)
    assert late_changes(run(name, machine, Objectives(Slo(itl_s=itl_s)), TRAFFIC[asked])) == []


@pytest.mark.parametrize("asked", TRAFFIC)
@pytest.mark.parametrize("noise", [0.0, 0.1, 0.2])
@pytest.mark.parametrize("name", POLICIES)
def test_a_costly_knob_rests_where_a_target_binds(name, noise, asked):
    """A decode step of some 15 requests takes as long as it may."""
    machine = Machine(noise=noise)
    assert late_changes(run(name, machine, Objectives(Slo(itl_s=0.008)), TRAFFIC[asked])) == []


CUTS = pytest.mark.xfail(
    strict=True, raises=AssertionError, reason="the batch is cut to 1 for a target that a batch of 1 cannot keep either"
)


@pytest.mark.parametrize("name", ["predictive", pytest.param("ridge", marks=CUTS)])
def test_a_target_that_no_batch_keeps_does_not_cost_the_throughput(name):
    free = run(name, Machine(), Objectives(), SATURATED)
    bound = run(name, Machine(), Objectives(Slo(itl_s=0.004)), SATURATED)
    assert bound.steps[-1].done_s <= 4.0 * free.steps[-1].done_s


LONG = [(0.0, 50, 3000, None)] * 16 + [(0.01, 20_000, 2, None)] * 25
"""Sixteen answers that go on beside prompts that never cease: nothing changes but the place in a prompt."""


def turns(done):
    """Prompt tokens between each two tokens of the running requests, once the first prompts are through: what is
    learned at first is no echo. A chunk by itself does not tell: it means nothing while prefill is put off, and a turn
    may have a long and a short one."""
    found, tokens = [], 0
    for step in done.steps:
        tokens += step.prompt_tokens
        if step.rows:
            found.append(tokens)
            tokens = 0
    while found and not found[-1]:  # the answers go on when all prompts are through
        found.pop()
    return found[len(found) // 8 : -2][:400]


def echo(chosen):
    """How far a turn lies from the middle of its neighbours, on average, over the mean. Turns that shrink as a prompt
    goes on hardly count, turns that go to and fro count in full."""
    mean = sum(chosen) / len(chosen)
    apart = [abs(at - (before + after) / 2) for before, at, after in zip(chosen, chosen[1:], chosen[2:], strict=False)]
    return sum(apart) / len(apart) / mean


def longest_alternation(chosen):
    """The most changes in a row that turn back on the one before, each of more than a fifth of the mean turn and of
    more than a tile: at the edge between two tiles any noise takes the one or the other."""
    least = max(DEFERRAL.tile_tokens, sum(chosen) / len(chosen) / 5)
    longest = row = 0
    before = 0.0
    for earlier, later in pairwise(chosen):
        change = later - earlier if abs(later - earlier) > least else 0.0
        row = row + 1 if change * before < 0 else int(change != 0)
        before = change
        longest = max(longest, row)
    return longest


@pytest.mark.parametrize("name", POLICIES)
@examples(6)
@given(
    bias=st.sampled_from([1.0, 1.5, 0.7]), noise=st.sampled_from([0.2, 0.1, 0.0]),
    delay_steps=st.sampled_from([4, 1, 0]), itl_s=st.sampled_from([0.1, 0.05, 0.03]), overlap=st.booleans(),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_prefill_does_not_swing_because_of_noise_or_delay(name, bias, noise, delay_steps, itl_s, overlap, seed):
    """https://github.com/sgl-project/sglang/issues/35241

    A loop that answers late to its own doing swings: a turn that was too long is followed by one that is too short, and
    so on for as long as the traffic lasts. So two things are asked of the prompt tokens of the turns, against the same
    server without noise and delay: that no row of swings, each of more than a fifth of the mean turn, gets longer by
    more than six (turns drawn at random would reach 15 in 400, a loop that swings all 400); and that turns lie no
    further from the middle of their neighbours than by a fifth of the mean turn. What noise does to an estimate without
    an echo is a slow drift, which neither counts.
    """
    promised = Objectives(Slo(itl_s=itl_s))
    calm = turns(run(name, Machine(bias=bias, overlap=overlap), promised, LONG))
    machine = Machine(bias=bias, overlap=overlap, noise=noise, delay_steps=delay_steps)
    noisy = turns(run(name, machine, promised, LONG, seed=seed))
    assert len(noisy) > 25
    assert longest_alternation(noisy) <= longest_alternation(calm) + 6
    assert echo(noisy) <= echo(calm) + 0.2


def test_the_measures_of_swinging_tell_it_from_drifting():
    swings, drifts = [500, 1000] * 50, [1500 - 10 * i for i in range(100)]
    assert longest_alternation(swings) == 99
    assert echo(swings) == pytest.approx(2 / 3)
    assert longest_alternation(drifts) == 0
    assert echo(drifts) == pytest.approx(0.0)
