"""Windows of the policy file, against those that a server was launched with."""

import pytest

from roofline_policies.contract.decision import Knob, Range
from roofline_policies.errors import FieldError, InputError
from roofline_policies.settings.loading import load
from roofline_policies.settings.speculation import WINDOW_STAYS, SpeculationRequest

WINDOW = Knob.SPECULATION_WINDOW
LAUNCHED = ({WINDOW: Range(0, 5), Knob.RELEGATE_FOR_S: Range(0, 60)}, {Knob.QUANT_TIER: "one"}, {WINDOW: (0, 1, 3, 5)})


def settings(windows=None):
    return load("adaptive", overrides=() if windows is None else [f"speculation.windows={windows}"])


def test_without_a_word_all_that_the_server_was_launched_with_may_run():
    bounds = settings().bounds_for(*LAUNCHED)
    assert bounds.ranges[WINDOW] == Range(0, 5)
    assert list(bounds.values(WINDOW)) == [0, 1, 3, 5]
    assert bounds.immovable == {Knob.QUANT_TIER: "one"}


def test_a_list_narrows_what_the_server_was_launched_with():
    bounds = settings("[1,3]").bounds_for(*LAUNCHED)
    assert bounds.ranges == {WINDOW: Range(1, 3), Knob.RELEGATE_FOR_S: Range(0, 60)}
    assert [bounds.clamp(WINDOW, window) for window in (0, 2, 5)] == [1, 1, 3]


def test_a_window_that_the_server_was_not_launched_with_is_refused_with_those_that_it_was():
    with pytest.raises(InputError) as raised:
        settings("[0,2]").bounds_for(*LAUNCHED)
    assert str(raised.value) == (
        "adaptive: speculation.windows = [0, 2]: the server was launched with no such setting; "
        "allowed: some of [0, 1, 3, 5]"
    )


def test_null_lets_the_number_stay():
    for shipped in (settings("null"), load("static")):
        bounds = shipped.bounds_for(*LAUNCHED)
        assert bounds.immovable[WINDOW] == WINDOW_STAYS
        assert WINDOW not in bounds.ranges


def test_a_server_without_drafts_has_nothing_to_narrow():
    bounds, unmet = settings("[0,2]").bounds_near({}, {WINDOW: "nothing drafts"}, {})
    assert (bounds.ranges, bounds.immovable, unmet) == ({}, {WINDOW: "nothing drafts"}, [])


@pytest.mark.parametrize("windows", [(), (0,), (2, 1), (1, 1), (-1, 2), (True, 2), (0.5,), "all", 3])
def test_windows_that_cannot_be(windows):
    with pytest.raises(FieldError, match="windows"):
        SpeculationRequest(windows)


def test_unknown_keys_beside_the_windows_are_named():
    with pytest.raises(InputError, match=r"speculation\.width"):
        load("adaptive", overrides=["+speculation.width=3"])
