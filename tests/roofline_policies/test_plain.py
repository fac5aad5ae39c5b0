"""Anything as plain text: what JSON, UTF-8 and a line of a log can carry."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roofline_policies.errors import FieldError, InputError
from roofline_policies.plain import MOST_CHARACTERS, described, plain, shown, type_name
from tests.roofline_policies.hostile import HOSTILE, Hostile, HostileStr, Raising
from tests.roofline_policies.views import view

ANY = st.one_of(
    st.text(st.characters(codec=None)),
    st.binary(),
    st.none(),
    st.integers(),
    st.floats(),
    st.integers(0, len(HOSTILE) - 1).map(HOSTILE.__getitem__),
)


def is_plain(text):
    json.loads(json.dumps(text, ensure_ascii=False).encode("utf-8"))
    return type(text) is str and text.isprintable() and len(text) <= MOST_CHARACTERS


@given(ANY)
def test_whatever_it_is_becomes_one_printable_line(value):
    for text in (plain(value), shown(value), type_name(value), described(Raising(value))):
        assert is_plain(text)


@given(st.text(max_size=60))
def test_text_that_can_be_printed_stays_as_it_is_and_the_gate_is_passed_once(text):
    assert (plain(text) == text) is text.isprintable()
    assert plain(plain(text)) == plain(text)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a\nb\tc", "a b c"),
        ("\x00\x1b[31m", "\\x00\\x1b[31m"),
        ("\udcff", "\\udcff"),
        ("\u202eabc", "\\u202eabc"),
        ("déjà vu 中", "déjà vu 中"),
        (None, "None"),
        (ValueError("no\nroom"), "no room"),
        ("x" * (MOST_CHARACTERS + 1), "x" * (MOST_CHARACTERS - 1) + "…"),
        ("x" * MOST_CHARACTERS, "x" * MOST_CHARACTERS),
    ],
)
def test_closed_forms(value, text):
    assert plain(value) == text


def test_hostile_objects():
    assert plain(HostileStr("mine")) == "mine"
    assert (
        plain(Hostile())
        == shown(HostileStr("mine")).replace("HostileStr", "Hostile")
        == "<Hostile that cannot be shown>"
    )


def test_escapes_do_not_make_text_longer_than_it_may_be():
    assert len(plain("\x00" * MOST_CHARACTERS)) == MOST_CHARACTERS


def test_a_whole_view_is_a_reason_of_a_line():
    assert plain(view()).startswith("SchedulerView(")
    assert is_plain(plain(view()))


def test_an_exception_says_what_it_is_also_where_it_cannot_say_why():
    assert described(ZeroDivisionError("no seconds")) == "ZeroDivisionError: no seconds"
    assert described(Raising("x")) == "Raising: <Raising that cannot be shown>"


@pytest.mark.parametrize(
    ("key", "named"), [("ttft_s", "ttft_s"), ("two\nlines", "'two\\nlines'"), ("\u202ereversed", "'\\u202ereversed'")]
)
def test_a_key_of_any_name_leaves_an_error_on_its_line(key, named):
    assert str(FieldError(key, 1, "nothing")) == f"{named} = 1; allowed: nothing"
    assert str(InputError("unknown key", where="body", key=key)) == f"body: {named}: unknown key"
    assert str(InputError("is wrong", where="body", key=key, value=2)) == f"body: {named} = 2: is wrong"
