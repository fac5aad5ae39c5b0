"""Due times of the next tokens, against an oracle that looks at every request every time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roofline_policies.slo import deadlines
from roofline_policies.slo.deadlines import Deadlines


def test_a_request_that_keeps_up_gains_time_and_one_that_does_not_is_late():
    due = Deadlines(0.1)
    assert due.tightest_s() is None
    due.join("a", first_due_s=10.0, tokens=1)
    assert due.tightest_s() == pytest.approx(10.1)
    for _ in range(5):
        due.step()
    assert due.tightest_s() == pytest.approx(10.6)


def test_the_tightest_is_not_the_oldest():
    due = Deadlines(0.1)
    due.join("early", first_due_s=10.0, tokens=1)
    for _ in range(30):
        due.step()
    due.join("late", first_due_s=11.0, tokens=1)  # due at 11.1, while the other is ahead: 13.1
    assert due.tightest_s() == pytest.approx(11.1)
    due.leave("late")
    assert due.tightest_s() == pytest.approx(13.1)
    due.leave("late")
    due.leave("never came")
    due.clear()
    assert due.tightest_s() is None


def test_who_comes_back_is_due_as_what_it_has_by_then():
    due = Deadlines(0.1)
    due.join("a", first_due_s=10.0, tokens=1)
    due.step()
    due.leave("a")
    for _ in range(7):
        due.step()
    due.join("a", first_due_s=10.0, tokens=3)
    assert due.tightest_s() == pytest.approx(10.3)
    due.join("a", first_due_s=10.0, tokens=4)  # joins anew without having left
    assert due.tightest_s() == pytest.approx(10.4)


def test_what_left_without_a_word_is_forgotten_also_below_the_top():
    left = set()
    due = Deadlines(0.1, gone=left.__contains__)
    due.join("runs on", first_due_s=0.0, tokens=1)
    for number in range(10_000):
        due.join(number, first_due_s=float(number + 1), tokens=1)
        left.add(number)
        assert due.tightest_s() == pytest.approx(0.1)
    assert len(due._heap) <= deadlines._SMALL + 1
    assert len(due._serials) <= deadlines._SMALL + 1


class Oracle:
    """Every member with its own count of tokens."""

    def __init__(self, itl_s):
        self.itl_s, self.members = itl_s, {}

    def tightest_s(self):
        return min((first + self.itl_s * tokens for first, tokens in self.members.values()), default=None)


events = st.lists(
    st.one_of(
        st.tuples(st.just("join"), st.integers(0, 9), st.floats(0, 1e4), st.integers(1, 3000)),
        st.tuples(st.sampled_from(["leave", "vanish"]), st.integers(0, 9)),
        st.just(("step",)),
        st.just(("clear",)),
    ),
    max_size=120,
)


@given(events, st.floats(1e-3, 2.0), st.integers(1, 8))
def test_any_history_gives_what_looking_at_everybody_gives(history, itl_s, small):
    gone, oracle = set(), Oracle(itl_s)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deadlines, "_SMALL", small)  # so that short histories are cleaned up after, too
        due = Deadlines(itl_s, gone.__contains__)
        for event, *values in history:
            if event == "join":
                member, first_due_s, tokens = values
                gone.discard(member)
                due.join(member, first_due_s, tokens)
                oracle.members[member] = (first_due_s, tokens)
            elif event == "step":
                due.step()
                oracle.members = {member: (first, tokens + 1) for member, (first, tokens) in oracle.members.items()}
            elif event == "clear":
                due.clear()
                oracle.members.clear()
            else:
                gone.add(*values) if event == "vanish" else due.leave(*values)
                oracle.members.pop(*values, None)
            expected = oracle.tightest_s()
            assert due.tightest_s() == (expected if expected is None else pytest.approx(expected))
