"""Where what a policy returns enters: nonsense is refused, all else is plain behind it."""

import itertools
import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roofline_policies.contract.decision import Knob
from roofline_policies.contract.view import QueueState
from roofline_policies.control.controller import State
from roofline_policies.control.status import explain, log_line, status
from roofline_policies.errors import PolicyError
from roofline_policies.policies import Kind, Proposal, Strength, compose, when
from roofline_policies.policies.compose import Composition
from roofline_policies.policies.conditions import kv_use
from roofline_policies.policies.gate import MOST_PROPOSALS, accepted
from tests.roofline_policies.control.test_controller import BUSY, Says, controller
from tests.roofline_policies.hostile import HOSTILE, Hostile, HostileFloat, HostileInt, HostileStr, Raising
from tests.roofline_policies.views import BOUNDS, LAUNCH, view

CHUNK = Knob.PREFILL_CHUNK_TOKENS


class Own(Proposal):
    """A kind of proposal that answers otherwise than it was made."""

    @property
    def value(self):
        raise RuntimeError("no value")

    def __iter__(self):
        raise RuntimeError("no fields")


class Answers:
    def __init__(self, answer):
        self.answer = answer

    def propose(self, view):
        return self.answer() if callable(self.answer) else self.answer


def proposal(value=512, reason="because", policy="P", knob=CHUNK, kind=Kind.TARGET, strength=Strength.GUARD):
    return Proposal(policy, knob, value, reason, kind, strength)


def is_plain(one):
    types = (str, Knob, (int, bool, float), str, Kind, Strength)
    return type(one) is Proposal and all(
        type(field) in (kind if isinstance(kind, tuple) else (kind,)) for field, kind in zip(one, types, strict=True)
    )


def test_what_is_plain_passes_as_it_is():
    made = (proposal(), proposal(True, knob=Knob.DEFER_PREFILL), proposal(0.5, kind=Kind.CAP))
    assert all(one is other for one, other in zip(accepted(made), made, strict=True))
    assert accepted(iter(made)) == made


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.int64(512), 512), (np.uint8(3), 3), (np.float64(2.5), 2.5), (np.float32(0.5), 0.5), (np.array(7), 7),
        (Fraction(1, 2), 0.5),
    ],
)  # fmt: skip
def test_numbers_of_other_kinds_become_plain_ones(value, plain):
    (one,) = accepted([proposal(value)])
    assert (one.value, type(one.value)) == (plain, type(plain))


def test_hostile_and_huge_numbers_become_plain_ones():
    for value, plain in [(HostileInt(512), 512), (HostileFloat(0.5), 0.5), (10**400, 10**400)]:
        (one,) = accepted([proposal(value)])
        assert (one.value, type(one.value)) == (plain, type(plain))


def test_numpys_booleans_move_a_switch():
    loop = controller(Says(Knob.DEFER_PREFILL, np.True_))
    assert loop.decide(0.0, BUSY).knobs.defer_prefill is True
    assert loop.state is State.ACTIVE


@pytest.mark.parametrize("place", range(len(HOSTILE)))
def test_what_is_merely_not_text_becomes_text(place):
    hostile = HOSTILE[place]
    (one,) = accepted([proposal(reason=hostile, policy=hostile)])
    assert is_plain(one)
    assert one.value == 512
    json.dumps([one.reason, one.policy], ensure_ascii=False).encode("utf-8")


def test_a_proposal_of_another_class_is_what_it_was_made_of():
    assert accepted([Own("P", CHUNK, 512, "because")]) == (Proposal("P", CHUNK, 512, "because"),)
    assert accepted([proposal(knob=HostileStr("max_running_requests"), kind=1, strength=0)]) == (
        Proposal("P", Knob.MAX_RUNNING_REQUESTS, 512, "because", Kind.CAP, Strength.OPTIMISER),
    )


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        (None, "returned None"), (3, "returned 3"), (proposal(), "returned a Proposal"), ("text", "'t', which is no"),
        ([(proposal(),)], "which is no Proposal"), ([object], "<class 'object'>, which is no Proposal"),
        (itertools.repeat(proposal()), f"more than {MOST_PROPOSALS}"),
        ([proposal(math.nan)], "prefill_chunk_tokens = nan"), ([proposal(-math.inf)], "= -inf"),
        ([proposal(np.float32("nan"))], "nan"), ([proposal("512")], "'512'"), ([proposal(None)], "= None"),
        ([proposal(1j)], "1j"), ([proposal([512])], "[512]"),
        ([proposal(knob="chunk")], "'chunk', which is no knob"), ([proposal(knob=None)], "None, which is no knob"),
        ([proposal(knob=[])], "[], which is no knob"), ([proposal(kind=2)], "allowed: TARGET, CAP"),
        ([proposal(strength="GUARD")], "allowed: OPTIMISER, GUARD"),
        ([tuple.__new__(Proposal, ("P", CHUNK))], "of 2 fields"),
    ],
)  # fmt: skip
def test_nonsense_is_refused_by_name(answer, named):
    with pytest.raises(PolicyError) as caught:
        accepted(answer)
    assert named in str(caught.value)


def test_what_is_refused_need_not_be_shown():
    for answer in ([Hostile()], [proposal(Hostile())], [proposal(knob=Hostile())]):
        with pytest.raises(PolicyError, match="<Hostile that cannot be shown>"):
            accepted(answer)


def raises_midway():
    yield proposal()
    raise Raising("midway")


def exits():
    raise SystemExit(3)


anything = st.one_of(
    st.integers(0, len(HOSTILE) - 1).map(HOSTILE.__getitem__),
    st.integers(), st.floats(), st.text(), st.none(), st.booleans(),
    st.sampled_from([*Knob, *Kind, *Strength]), st.builds(np.int32, st.integers(0, 9)),
)  # fmt: skip
fields = st.tuples(anything, st.one_of(st.sampled_from(Knob), anything), anything, anything, anything, anything)
proposed = st.one_of(
    st.builds(Proposal._make, fields),
    st.builds(proposal, value=anything, reason=anything, policy=anything, knob=st.sampled_from(Knob)),
    st.builds(Own._make, fields),
    anything,
)
answers = st.one_of(
    st.lists(proposed, max_size=4), anything, st.sampled_from([raises_midway, exits]),
    st.lists(proposed, max_size=3).map(iter),
)  # fmt: skip


@pytest.mark.parametrize(
    "composed", [lambda p: p, compose, lambda p: compose(compose(p)), lambda p: when(kv_use < 2, p)]
)
@given(answer=answers)
def test_whatever_a_policy_returns_the_loop_goes_on_and_its_page_is_json(composed, answer):
    loop = controller(composed(Answers(answer)))
    for now_s in (0.0, 1.0):
        decision = loop.decide(now_s, BUSY)
        assert BOUNDS.contains(decision.knobs)
        page = status(loop, now_s, QueueState())
        json.dumps(page, ensure_ascii=False, allow_nan=False).encode("utf-8")
        assert (explain(loop.queue, decision) + log_line(loop, now_s)).isprintable()
        assert all(type(value) in (int, bool, type(None)) for value in page["knobs"].values())
    assert loop.state is State.ACTIVE or decision.knobs == LAUNCH


def test_a_policy_that_raises_what_cannot_be_said_or_ends_the_process_is_given_up():
    for answer, reason in [
        (raises_midway, "Raising: <Raising that cannot be shown>"), (exits, "SystemExit: 3"),
    ]:  # fmt: skip
        loop = controller(Answers(answer))
        assert loop.decide(0.0, BUSY).knobs == LAUNCH
        assert loop.fallback_reason == f"Answers raised {reason}"


def test_an_interrupt_is_the_operators():
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        controller(Answers(interrupted)).decide(0.0, BUSY)


def test_a_class_that_derives_from_composition_passes_the_gate_too():
    class Mine(Composition):
        def propose(self, view):
            return (proposal(reason=Hostile()), proposal(policy="\udcff"))

    loop = controller(Mine(()))
    loop.decide(0.0, BUSY)
    assert status(loop, 0.0, QueueState())["changes"][0]["reason"] == "<Hostile that cannot be shown>"
    assert view().knobs is not None
