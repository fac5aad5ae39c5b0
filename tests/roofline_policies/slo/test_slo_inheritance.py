"""Who is promised what: a request's own targets, then its class's, then the server's."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from roofline_policies.errors import FieldError
from roofline_policies.slo.objectives import ItlKind, Objectives, Slo

SERVER = Slo(ttft_s=2.0, itl_s=0.1, e2e_s=60.0)
FAST = Slo(ttft_s=0.5, itl_s=0.025)
OBJECTIVES = Objectives(SERVER, {10: FAST, -1: Slo()})


def test_the_nearest_to_the_request_holds():
    assert OBJECTIVES.of() == OBJECTIVES.of(priority=7) == SERVER
    assert OBJECTIVES.of(priority=10) == FAST
    assert OBJECTIVES.of(priority=-1) == Slo()
    assert OBJECTIVES.asked(10, {"itl_s": 1.0}) == Slo(ttft_s=0.5, itl_s=1.0)
    assert OBJECTIVES.asked(None, {"itl_s": 1.0}) == Slo(ttft_s=2.0, itl_s=1.0, e2e_s=60.0)
    assert OBJECTIVES.every() == (SERVER, FAST, Slo())


def test_null_is_no_target_and_left_out_is_the_next_ones():
    assert OBJECTIVES.asked(None, {"itl_s": None}) == Slo(ttft_s=2.0, e2e_s=60.0)
    assert OBJECTIVES.asked(10, {}) == FAST
    assert OBJECTIVES.asked(10, {}) == FAST
    assert OBJECTIVES.asked(None, {"ttft_s": None, "itl_s": None, "e2e_s": None}) == Slo()


def test_kinds_come_as_text():
    assert Slo(itl_s=0.1, itl_kind="mean_tpot").itl_kind is ItlKind.MEAN_TPOT
    assert OBJECTIVES.asked(None, {"itl_kind": "mean_tpot"}).itl_kind is ItlKind.MEAN_TPOT
    assert OBJECTIVES.asked(None, {"itl_kind": ItlKind.PER_GAP}).itl_kind is ItlKind.PER_GAP


@pytest.mark.parametrize("own", [3, "fast", [("itl_s", 1.0)], True])
def test_targets_of_ones_own_are_a_mapping(own):
    with pytest.raises(FieldError, match="a mapping with ttft_s, itl_s, itl_kind, e2e_s") as raised:
        OBJECTIVES.asked(None, own)
    assert (raised.value.key, raised.value.value) == ("slo", own)


@pytest.mark.parametrize(
    ("own", "key", "allowed"),
    [
        ({"tpot_s": 0.1}, "tpot_s", "one of ttft_s, itl_s, itl_kind, e2e_s"),
        ({3: 0.1}, "3", "one of ttft_s"),
        (
            {"weight": 5.0},
            "weight",
            "one of ttft_s, itl_s, itl_kind, e2e_s",
        ),  # what it counts for is the operator's say
        ({"itl_s": 0}, "itl_s", "greater than 0"),
        ({"itl_s": -1.0}, "itl_s", "greater than 0"),
        ({"ttft_s": float("nan")}, "ttft_s", "greater than 0"),
        ({"e2e_s": float("inf")}, "e2e_s", "greater than 0"),
        ({"e2e_s": 10**400}, "e2e_s", "greater than 0"),  # JSON has integers that no float holds
        ({"ttft_s": "0.5"}, "ttft_s", "a number of seconds"),
        ({"ttft_s": True}, "ttft_s", "a number of seconds"),
        ({"e2e_s": [1]}, "e2e_s", "a number of seconds"),
        ({"itl_kind": "p99"}, "itl_kind", "per_gap or mean_tpot"),
        ({"itl_kind": None}, "itl_kind", "per_gap or mean_tpot"),
        ({"itl_kind": 1}, "itl_kind", "per_gap or mean_tpot"),
    ],
)
def test_what_is_no_target_is_refused_by_name(own, key, allowed):
    with pytest.raises(FieldError) as raised:
        OBJECTIVES.asked(10, own)
    assert raised.value.key == key
    assert allowed in str(raised.value)


def test_a_request_keeps_the_weight_of_its_class_whatever_it_asks_for():
    objectives = Objectives(SERVER, {10: Slo(ttft_s=0.5, itl_s=0.025, weight=4.0)})
    assert objectives.of(10).weight == 4.0
    assert objectives.of().weight == 1.0
    assert objectives.granted(10, {"itl_s": 0.05}).slo == Slo(ttft_s=0.5, itl_s=0.05, weight=4.0)
    assert objectives.granted(None, {"itl_s": 0.05}).slo.weight == 1.0


@pytest.mark.parametrize("weight", [0, -1.0, float("nan"), float("inf"), "2", None, True])
def test_what_is_no_weight_is_refused_by_name(weight):
    with pytest.raises(FieldError, match="a finite number greater than 0") as raised:
        Slo(weight=weight)
    assert raised.value.key == "weight"


targets = st.one_of(st.none(), st.floats(1e-6, 1e6))
slos = st.builds(Slo, ttft_s=targets, itl_s=targets, itl_kind=st.sampled_from(ItlKind), e2e_s=targets)


@settings(deadline=None)
@given(
    slos, st.dictionaries(st.integers(-3, 3), slos), st.one_of(st.none(), st.integers(-5, 5)),
    st.fixed_dictionaries(
        {}, optional={"ttft_s": targets, "itl_s": targets, "e2e_s": targets, "itl_kind": st.sampled_from(ItlKind)}
    ),
)  # fmt: skip
def test_every_target_is_the_nearest_one_that_is_given(server, classes, priority, own):
    found = Objectives(server, classes).asked(priority, own)
    beneath = classes.get(priority, server)
    for key in ("ttft_s", "itl_s", "itl_kind", "e2e_s"):
        assert getattr(found, key) == (own[key] if key in own else getattr(beneath, key))


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None)
@example({"\n": None})
@given(st.one_of(junk, st.dictionaries(st.sampled_from(["ttft_s", "itl_s", "itl_kind", "e2e_s"]), junk)))
def test_whatever_a_request_brings_is_an_objective_or_a_field_error(own):
    try:
        found = OBJECTIVES.asked(10, own)
    except FieldError as error:
        found = error
    assert isinstance(found, Slo) or "\n" not in str(found)
