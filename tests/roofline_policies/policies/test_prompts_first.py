"""Prompts come first where no target is at stake."""

import pytest

from roofline_policies.contract.decision import Knobs
from roofline_policies.policies import PrefillDeferral
from roofline_policies.slo.capacity import Capacity, Resource
from tests.roofline_policies.policies.test_prefill_deferral import BOTH, CHUNK, DEFER, LONG, MIXED, seen, settled
from tests.roofline_policies.steps.closed_form_steps import Affine, exact


@pytest.mark.parametrize(
    ("changes", "mixed"),
    [
        ({}, False),
        ({"gap_s": 0.5}, True),
        ({"due_s": 1.0}, True),
        ({"peers_decoding": 1}, True),
        ({"waiting": 57}, True),  # 64 may run, and 8 do
        ({"capacities": (Capacity(Resource.KV_TOKENS, 90, 100, 2.0),)}, True),  # room for five of nine
    ],
)
def test_where_no_target_is_at_stake_prompts_come_first_as_long_as_there_is_room_for_all(changes, mixed):
    """A mixed step is cheaper here, since the base of a decode step is paid once. But rows that ride along save none of
    the decode steps that those who join later need."""
    queue = LONG._replace(**{"gap_s": None, **changes})
    knobs = Knobs(64, 8192, mixed_chunk=mixed)
    found = settled(PrefillDeferral(), seen(exact(Affine()), queue, BOTH, knobs=knobs))
    assert (found[MIXED], found[DEFER]) == (mixed, False)
    if not mixed:
        assert found[CHUNK] == 8192
