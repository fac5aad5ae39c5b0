"""Draws for whole batches, slots for drafts, and what a server was launched with."""

from __future__ import annotations

import math
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from roofline_policies.errors import InputError
from roofline_policies.steps.acceptance import Acceptance
from roofline_policies.steps.speculation import Speculation
from sglang_patches.cpu.supplied.kernels import assign_req_to_token_pool_cpu
from sglang_patches.virtual.accepted import AcceptedRuns
from sglang_patches.virtual.speculative import check_launched, speculative_args, write_slots
from tests.sglang_patches.virtual.oracle_acceptance import WORD, probability, stream

IDS = [f"request {n}" for n in range(64)]

acceptances = st.builds(
    Acceptance,
    st.lists(st.floats(0, 1), min_size=1, max_size=5).map(tuple),
    spread=st.sampled_from([0.0, 0.5, 3.0]),
    seed=st.integers(0, 2**32),
)
batches = st.lists(st.tuples(st.integers(0, len(IDS) - 1), st.integers(0, 500)), min_size=1, max_size=32)


def runs(acceptance, batch, steps, ids=IDS):
    rows, positions = np.array(batch).T
    return AcceptedRuns(acceptance, ids).of(rows, positions, steps).tolist()


def test_the_oracle_draws_what_its_source_publishes():
    """The first outputs of SplitMix64 started with 1234567, without the 11 bits that a float has no room for."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert [draw * WORD for draw in islice(stream(1234567), 4)] == [number >> 11 << 11 for number in published]


@settings(deadline=None)
@given(acceptances, batches, st.integers(0, 8))
def test_runs_are_those_of_a_process_that_draws_one_number_at_a_time(acceptance, batch, steps):
    for (row, position), run in zip(batch, runs(acceptance, batch, steps), strict=True):
        draws = list(islice(stream(acceptance.key(IDS[row])), position, position + steps))
        level = acceptance.level(IDS[row])
        accepted = [draw < probability(acceptance, place, level) for place, draw in enumerate(draws)]
        assert run == (accepted.index(False) if False in accepted else steps)


@settings(deadline=None)
@given(acceptances, batches, st.integers(0, 8), st.randoms(use_true_random=False))
def test_runs_do_not_depend_on_the_batch(acceptance, batch, steps, chooser):
    together = dict(zip(batch, runs(acceptance, batch, steps), strict=True))
    other = chooser.sample(batch, chooser.randint(1, len(batch)))
    assert runs(acceptance, other, steps) == [together[one] for one in other]
    backwards = [(len(IDS) - 1 - row, position) for row, position in batch]
    assert runs(acceptance, backwards, steps, IDS[::-1]) == runs(acceptance, batch, steps)


@settings(deadline=None)
@given(acceptances, batches, st.integers(0, 8), st.integers(0, 8))
def test_fewer_drafts_cut_runs_off_and_change_nothing_else(acceptance, batch, steps, fewer):
    fewer = min(fewer, steps)
    assert runs(acceptance, batch, fewer) == [min(run, fewer) for run in runs(acceptance, batch, steps)]


@settings(deadline=None)
@given(acceptances, batches, st.integers(0, 8), st.floats(0, 1))
def test_runs_grow_with_the_probabilities(acceptance, batch, steps, towards):
    better = Acceptance(tuple(p + towards * (1 - p) for p in acceptance.per_position), seed=acceptance.seed)
    plain = Acceptance(acceptance.per_position, seed=acceptance.seed)
    pairs = zip(runs(plain, batch, steps), runs(better, batch, steps), strict=True)
    assert all(worse <= best for worse, best in pairs)


def test_the_mean_run_is_the_closed_form_within_four_standard_errors():
    acceptance, steps, count = Acceptance((0.85, 0.7, 0.5), seed=11), 5, 400
    rows, positions = np.repeat(np.arange(64), count), np.tile(np.arange(count) * steps, 64)
    found = AcceptedRuns(acceptance, IDS).of(rows, positions, steps)
    assert abs(found.mean() - acceptance.mean_accepted(steps)) < 4 * found.std() / math.sqrt(len(found))


def test_levels_spread_the_means_of_requests_as_the_normal_integral_says():
    """Each request's mean is a closed form at its level; over requests that is an integral, by Gauss and Hermite."""
    acceptance, steps, count = Acceptance((0.7, 0.6), spread=1.2, seed=2), 4, 40
    ids = [str(n) for n in range(3000)]
    rows, positions = np.repeat(np.arange(3000), count), np.tile(np.arange(count) * steps, 3000)
    means = AcceptedRuns(acceptance, ids).of(rows, positions, steps).reshape(3000, count).mean(axis=1)
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    expected = sum(w * acceptance.mean_accepted(steps, 1.2 * z) for z, w in zip(nodes, weights, strict=True))
    assert abs(means.mean() - expected / math.sqrt(2 * math.pi)) < 4 * means.std() / math.sqrt(3000)
    alike = AcceptedRuns(Acceptance((0.7, 0.6), seed=2), ids).of(rows, positions, steps)
    assert means.std() > 2 * alike.reshape(3000, count).mean(axis=1).std()


@pytest.mark.parametrize(("second", "drift"), [(0.0, 0.5), (10.0, 0.5), (15.0, -0.75), (20.0, -2.0), (99.0, -2.0)])
def test_chances_are_those_of_the_level_of_request_and_class_and_of_the_drift(second, drift):
    acceptance = Acceptance((0.8, 0.5, 1.0), 0.7, 4, of_class=((5, -1.0),), drift=((10.0, 0.5), (20.0, -2.0)))
    found = AcceptedRuns(acceptance, IDS, [5 if n % 2 else None for n in range(64)])
    chances = found.chances(np.arange(64), 4, second)
    for n, chain in enumerate(chances):
        level = acceptance.level(IDS[n]) + (-1.0 if n % 2 else 0.0) + drift
        for given_share, chance in zip((0.8, 0.5, 1.0, 1.0), chain, strict=True):
            odds = math.inf if given_share == 1 else given_share / (1 - given_share) * math.exp(level)
            assert chance == pytest.approx(1.0 if given_share == 1 else odds / (1 + odds))


def test_what_drifts_meets_the_same_draws():
    """A token that was granted at a lower level is granted at a higher one."""
    rows, positions = np.repeat(np.arange(64), 50), np.tile(np.arange(50) * 4, 64)
    runs = AcceptedRuns(Acceptance((0.7, 0.6), drift=((0.0, -1.0), (10.0, 1.0))), IDS)
    low, high = runs.of(rows, positions, 3, 0.0), runs.of(rows, positions, 3, 10.0)
    assert (low <= high).all()
    assert low.mean() < high.mean() - 0.5


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 9)), min_size=1, max_size=16), st.randoms())
def test_slots_go_where_the_kernels_stand_in_puts_them(spans, chooser):
    rows = torch.tensor(chooser.sample(range(24), len(spans)))
    start = torch.tensor([first for first, _ in spans], dtype=torch.int32)
    end = torch.tensor([first + length for first, length in spans], dtype=torch.int32)
    slots = torch.tensor(chooser.sample(range(1000), int((end - start).sum())))
    ours, theirs = torch.zeros((24, 32), dtype=torch.int32), torch.zeros((24, 32), dtype=torch.int32)
    write_slots(rows, ours, start, end, slots, len(spans))
    assign_req_to_token_pool_cpu(rows, theirs, start, end, slots, 32)
    assert torch.equal(ours, theirs)


def launched(*arguments):
    """A scheduler that was launched so."""
    values = {"speculative_algorithm": None}
    for name, value in zip(arguments[::2], arguments[1::2], strict=True):
        values[name.removeprefix("--").replace("-", "_")] = int(value) if value.isdigit() else value
    return SimpleNamespace(server_args=SimpleNamespace(**values))


class Never:
    def step_s(self, **shapes):
        raise AssertionError("nothing is priced here")


def speculation(steps=3, head=False):
    return Speculation(Never(), steps, Acceptance((0.5,)), head)


@pytest.mark.parametrize("head", [False, True])
def test_a_server_that_was_launched_for_it_speculates(head):
    check_launched(launched(), None)
    check_launched(launched(*speculative_args(3, head=head)), speculation(3, head))


@pytest.mark.parametrize(
    ("arguments", "modelled", "message"),
    [
        (speculative_args(3), None, "speculative_algorithm = 'STANDALONE': has no draft model"),
        ([], speculation(), "speculative_algorithm = None: is not .*; allowed: STANDALONE"),
        (speculative_args(3), speculation(head=True), "speculative_algorithm = 'STANDALONE': .*; allowed: EAGLE"),
        (speculative_args(3, head=True), speculation(2, head=True), "speculative_num_steps = 3: .*; allowed: 2"),
        (
            [*speculative_args(3), "--speculative-eagle-topk", "4"], speculation(),
            "speculative_eagle_topk = 4: .*; allowed: 1",
        ),
    ],
)  # fmt: skip
def test_a_server_that_was_launched_otherwise_is_refused(arguments, modelled, message):
    with pytest.raises(InputError, match=message):
        check_launched(launched(*arguments), modelled)
