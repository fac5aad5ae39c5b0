"""What requests may ask for: never more than the operator promises somebody, or said that they may."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roofline_policies.errors import FieldError, InputError
from roofline_policies.settings.loading import load
from roofline_policies.slo.asking import Asking, limits_of
from roofline_policies.slo.objectives import ItlKind, Objectives, Slo, soonest

SERVER, TIGHT = Slo(ttft_s=4.0, itl_s=0.1), Slo(ttft_s=0.5, itl_s=0.025, e2e_s=20.0)
TARGETS = st.none() | st.floats(1e-3, 1e3)
SLOS = st.builds(Slo, TARGETS, TARGETS, st.sampled_from(ItlKind), TARGETS)


@pytest.mark.parametrize(
    ("promised", "asked", "granted"),
    [
        ([4.0, 0.5], 0.1, 0.5), ([4.0, 0.5], 2.0, 2.0), ([4.0, 0.5], 9.0, 4.0), ([4.0, 0.5], None, 4.0),
        ([4.0, None], 9.0, 9.0), ([4.0, None], 1.0, 4.0), ([4.0, None], None, None),
        ([None, None], 1.0, None), ([None], None, None),
    ],
)  # fmt: skip
def test_a_target_moves_within_what_is_promised(promised, asked, granted):
    assert limits_of(promised).nearest(asked) == granted


@given(SLOS, st.lists(SLOS, max_size=3), SLOS)
def test_no_request_gets_a_target_outside_those_of_the_server_and_its_classes(server, classes, asked):
    objectives = Objectives(server, dict(enumerate(classes)))
    own = {key: getattr(asked, key) for key in ("ttft_s", "itl_s", "itl_kind", "e2e_s")}
    got, refused = objectives.granted(None, own)
    for key in ("ttft_s", "e2e_s"):
        every = [getattr(one, key) for one in objectives.every()]
        value = getattr(got, key)
        assert value in every or (value is not None and value == getattr(asked, key))
        if value is not None:
            assert value >= min(one for one in every if one is not None)
            assert None in every or value <= max(one for one in every if one is not None)
    alike = [one.itl_s for one in objectives.every() if one.itl_kind is got.itl_kind]
    assert alike
    assert got.itl_s is None or got.itl_s >= min(one for one in alike if one is not None)
    assert set(refused) == {key for key in own if getattr(got, key) != getattr(asked, key)}


def test_the_number_of_a_kind_that_nobody_is_promised_is_not_read_as_one_of_another_kind():
    """A mean of 20 ms is far less than 20 ms for every gap."""
    wide = Asking(itl_s=[0.001, None])
    asked = {"itl_s": 0.02, "itl_kind": "mean_tpot"}
    assert Objectives(SERVER, requests=wide).granted(None, asked) == (SERVER, ("itl_s", "itl_kind"))
    mean = Slo(itl_s=0.05, itl_kind=ItlKind.MEAN_TPOT)
    assert Objectives(SERVER, {10: mean}, wide).granted(None, asked) == (Slo(4.0, 0.02, ItlKind.MEAN_TPOT), ())


@given(SLOS, SLOS)
def test_the_first_token_and_the_end_are_due_no_later_than_promised(own, promised):
    kept = soonest(own, promised)
    for key in ("ttft_s", "e2e_s"):
        known = [value for value in (getattr(own, key), getattr(promised, key)) if value is not None]
        assert getattr(kept, key) == min(known, default=None)
    assert (kept.itl_s, kept.itl_kind, kept.weight) == (own.itl_s, own.itl_kind, own.weight)


@given(SLOS, st.lists(SLOS, max_size=3))
def test_whoever_asks_for_what_it_is_promised_gets_it_and_for_anybodys_first_token_too(server, classes):
    objectives = Objectives(server, dict(enumerate(classes)))
    for priority in (None, *range(len(classes))):
        promised = objectives.of(priority)
        own = {key: getattr(promised, key) for key in ("ttft_s", "itl_s", "itl_kind", "e2e_s")}
        assert objectives.granted(priority, own) == (promised, ())
        for one in objectives.every():
            assert objectives.granted(priority, {"ttft_s": one.ttft_s}).slo.ttft_s == one.ttft_s


@given(SLOS, st.lists(SLOS, max_size=3), SLOS)
def test_by_default_nobody_gets_sooner_tokens_or_an_earlier_end_than_its_class(server, classes, asked):
    """Others would pay for it, also where a class that is promised as much has no request."""
    objectives = Objectives(server, dict(enumerate(classes)))
    own = {key: getattr(asked, key) for key in ("ttft_s", "itl_s", "itl_kind", "e2e_s")}
    for priority in (None, *range(len(classes))):
        got, promised = objectives.granted(priority, own).slo, objectives.of(priority)
        for key in ("itl_s", "e2e_s"):
            value, least = getattr(got, key), getattr(promised, key)
            assert value is None or (least is not None and value >= least)
        assert got.itl_s is None or got.itl_kind is promised.itl_kind or got.itl_kind is ItlKind.MEAN_TPOT


def test_a_tight_class_is_not_asked_for_by_those_outside_of_it():
    objectives = Objectives(SERVER, {10: TIGHT})
    asked = {"ttft_s": 0.5, "itl_s": 0.025, "e2e_s": 20.0}
    assert objectives.granted(None, asked) == (Slo(ttft_s=0.5, itl_s=0.1), ("itl_s", "e2e_s"))
    assert objectives.granted(10, asked) == (TIGHT, ())
    assert objectives.granted(10, {"itl_s": 0.05, "e2e_s": None}) == (Slo(0.5, 0.05), ())


def test_the_operator_sets_other_ranges():
    objectives = Objectives(SERVER, {10: TIGHT}, Asking(ttft_s=[0.1, None], itl_s=[0.05, 0.2]))
    assert objectives.granted(None, {"ttft_s": 0.2, "itl_s": 0.01}) == (Slo(0.2, 0.05), ("itl_s",))
    assert objectives.granted(None, {"ttft_s": None, "itl_s": None}) == (Slo(None, 0.2), ("itl_s",))
    assert objectives.granted(10, {"e2e_s": 1.0}) == (Slo(0.5, 0.05, e2e_s=20.0), ("e2e_s",))
    nothing = Objectives(SERVER, {10: TIGHT}, Asking(allow=False))
    assert nothing.granted(10, {"ttft_s": 0.6}) == (TIGHT, ("ttft_s",))


@pytest.mark.parametrize(
    "value",
    [3, "1", [1], [1, 2, 3], [2, 1], [0, 1], [None, 1], [1, float("inf")], [True, 2], ["1", 2], {"a": 1, "b": 2}],
)
def test_what_is_no_range_is_refused(value):
    with pytest.raises(FieldError, match=r"ttft_s = .*\[least, most\] in seconds"):
        Asking(ttft_s=value)


def test_ranges_are_read_from_the_configuration():
    settings = load("adaptive", overrides=["slo.requests={ttft_s: [0.5, 10], itl_s: [0.05, null]}"])
    assert settings.objectives.requests == Asking(ttft_s=[0.5, 10], itl_s=[0.05, None])
    assert load("adaptive").objectives.requests == Asking()
    assert not load("adaptive", overrides=["slo.requests.allow=false"]).objectives.requests.allow


@pytest.mark.parametrize(
    ("override", "told"),
    [
        (
            "slo.requests={ttft_s: [5, 1]}",
            "adaptive: slo.requests.ttft_s = [5, 1]: out of range; allowed: [least, most]",
        ),
        ("+slo.requests.tpot_s=[1, 2]", "adaptive: slo.requests.tpot_s: unknown key; allowed: allow, ttft_s"),
        ("slo.requests.allow=maybe", "adaptive: slo.requests.allow = 'maybe': wrong type"),
        ("slo.requests=3", "adaptive: slo.requests = 3: must be a mapping"),
    ],
)
def test_what_cannot_be_used_is_named(override, told):
    with pytest.raises(InputError) as raised:
        load("adaptive", overrides=[override])
    assert str(raised.value).startswith(told)
