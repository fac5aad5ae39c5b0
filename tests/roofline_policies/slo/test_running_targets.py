"""What running requests need, against an oracle that looks at every request every time."""

from collections import Counter
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roofline_policies.slo.objectives import ItlKind, Slo
from roofline_policies.slo.running_targets import AIM, MOST_GROUPS, Need, RunningTargets

MEAN = ItlKind.MEAN_TPOT
TOKEN_S = 0.01


class Oracle:
    """Every request with its objective; nothing is kept in order."""

    def __init__(self):
        self.running = {}

    def join(self, name, slo, arrival_s, first_s, tokens):
        self.running.pop(name, None)
        late = slo.ttft_s is not None and first_s - arrival_s > slo.ttft_s
        if not late and (slo.itl_s is not None or slo.e2e_s is not None):
            self.running[name] = [slo, arrival_s, first_s, tokens]

    def step(self):
        for one in self.running.values():
            one[3] += 1

    def drop_lost(self, now_s, horizon, fastest_s):
        """Of one target those that have to end first, as long as they cannot."""
        groups = {}
        for name, (slo, arrival_s, _, tokens) in self.running.items():
            if slo.e2e_s is not None:
                ends_s = arrival_s + slo.e2e_s
                lost = now_s + max(1, horizon - tokens) * fastest_s > ends_s
                groups.setdefault((slo.itl_kind, slo.itl_s, slo.e2e_s), []).append((ends_s, lost, name))
        for group in groups.values():
            for _, lost, name in sorted(group, key=lambda one: one[0]):
                if not lost:
                    break
                del self.running[name]

    def need(self, now_s, token_s, horizon, fastest_s):
        self.drop_lost(now_s, horizon, fastest_s)
        gaps, means, dues, ends = [], [], [], {}
        for slo, arrival_s, first_s, tokens in self.running.values():
            if slo.itl_s is not None and slo.itl_kind is ItlKind.PER_GAP:
                gaps.append(slo.itl_s)
            if slo.itl_s is not None and slo.itl_kind is MEAN:
                means.append(slo.itl_s)
                expected = max(horizon, tokens + 1)
                dues.append(first_s + AIM * slo.itl_s * (expected - 1) - (expected - tokens - 1) * token_s - now_s)
            if slo.e2e_s is not None:
                after = max(0, horizon - tokens - 1) * token_s
                target = (slo.itl_kind, slo.itl_s, slo.e2e_s)
                ends.setdefault(target, []).append((arrival_s + slo.e2e_s, arrival_s + slo.e2e_s - after - now_s))
        # Of one target, who has to end first; those that end together are as far as they are.
        dues += [max(due for end, due in group if end == min(group)[0]) for group in ends.values()]
        return min(gaps, default=None), min(means, default=None), min(dues, default=None)


SLOS = [
    Slo(itl_s=0.1), Slo(itl_s=0.05), Slo(ttft_s=1.0, itl_s=0.025), Slo(itl_s=0.04, itl_kind=MEAN),
    Slo(ttft_s=1.0, itl_s=0.02, itl_kind=MEAN), Slo(e2e_s=3.0), Slo(itl_s=0.1, e2e_s=1.0),
    Slo(itl_s=0.03, itl_kind=MEAN, e2e_s=0.7), Slo(ttft_s=1.0), Slo(),
]  # fmt: skip

events = st.lists(
    st.one_of(
        st.tuples(st.just("join"), st.integers(0, len(SLOS) - 1), st.sampled_from([0.0, 0.25, 0.75, 5.0])),
        st.tuples(st.just("step"), st.sampled_from([0.015625, 0.0625]), st.integers(1, 30)),
        st.tuples(st.just("leave"), st.integers(0, 40), st.none()),
        st.tuples(st.just("gone"), st.integers(0, 40), st.none()),
        st.tuples(st.just("rejoin"), st.integers(0, 40), st.none()),
        st.tuples(st.just("clear"), st.none(), st.none()),
    ),
    max_size=60,
)


@settings(deadline=None, max_examples=300)
@given(events, st.sampled_from([1, 5, 40]), st.sampled_from([0.0, 0.004]))
def test_it_is_what_looking_at_every_request_gives(events, horizon, fastest_s):
    """Steps take no less than a token alone does, as on a server."""
    gone, now_s, number, made = set(), 100.0, 0, {}
    targets, oracle = RunningTargets(gone.__contains__), Oracle()
    for kind, what, how in events:
        names = list(oracle.running)
        if kind == "join":
            now_s += 0.0078125
            made[number] = (SLOS[what], now_s - how, now_s)
            for one in (targets, oracle):
                one.join(number, *made[number], 1)
            number += 1
        elif kind == "step":
            for _ in range(how):
                now_s += what
                targets.step()
                oracle.step()
        elif kind == "clear":
            targets.clear()
            oracle.running.clear()
        elif names:
            name = names[what % len(names)]
            slo, *_, tokens = oracle.running[name]
            if kind == "rejoin":  # retracted and back; whoever is under a mean is not the youngest then
                if slo.itl_kind is not MEAN:
                    for one in (targets, oracle):
                        one.join(name, *made[name], tokens)
                continue
            del oracle.running[name]
            gone.add(name) if kind == "gone" else targets.leave(name)
        need = targets.need(now_s, TOKEN_S, horizon, fastest_s=fastest_s)
        assert need == pytest.approx(oracle.need(now_s, TOKEN_S, horizon, fastest_s))


def test_a_mean_by_hand():
    """Ten tokens are expected: the last is due 0.95 * 0.1 s * 9 after the first, and 8 follow the second."""
    targets = RunningTargets()
    targets.join("a", Slo(itl_s=0.1, itl_kind=MEAN), 0.0, 1.0, 1)
    assert targets.need(1.0, 0.01, 10) == pytest.approx((None, 0.1, 0.95 * 0.9 - 0.08))
    assert targets.need(1.5, 0.01, 10).due_s == pytest.approx(0.95 * 0.9 - 0.08 - 0.5)
    assert targets.need(1.0, 0.01, 1).due_s == pytest.approx(0.095)  # it may end with any token
    targets.step()
    assert targets.need(1.0, 0.01, 1).due_s == pytest.approx(2 * 0.095)


def test_an_end_by_hand():
    targets = RunningTargets()
    targets.join("a", Slo(e2e_s=2.0), 0.5, 1.0, 1)
    assert targets.need(1.0, 0.01, 10) == pytest.approx((None, None, 2.5 - 0.08 - 1.0))
    for _ in range(20):
        targets.step()
    assert targets.need(1.0, 0.01, 10).due_s == pytest.approx(1.5)


def test_who_cannot_end_in_time_is_not_followed():
    """Two seconds for 101 tokens. After 60 ms a token there is time for 40 more at 20 ms each; of 42 they expect 41."""
    targets = RunningTargets()
    targets.join("a", Slo(e2e_s=2.0, itl_s=0.1), 0.0, 0.1, 1)
    lengths = {1: 101, 2: 42, 3: 43}.__getitem__
    assert targets.need(0.1, 0.01, 1, expected=lengths).due_s == pytest.approx(2.0 - 99 * 0.01 - 0.1)
    targets.step()
    need = targets.need(1.2, 0.01, 1, expected=lengths, fastest_s=0.02)
    assert need == pytest.approx((0.1, None, 2.0 - 39 * 0.01 - 1.2))
    targets.step()
    assert targets.need(1.21, 0.01, 1, expected=lengths, fastest_s=0.02) == (None, None, None)  # nor is its gap


def test_who_came_first_has_to_end_first_whenever_it_was_admitted():
    targets = RunningTargets()
    targets.join("early", Slo(e2e_s=5.0), 1.0, 2.0, 1)
    targets.step()
    targets.join("late", Slo(e2e_s=5.0), 0.5, 3.0, 1)
    assert targets.need(3.0, 0.0, 1).due_s == pytest.approx(2.5)
    targets.leave("late")
    assert targets.need(3.0, 0.0, 1).due_s == pytest.approx(3.0)


def test_a_mean_that_is_old_keeps_its_end():
    targets = RunningTargets()
    targets.join("a", Slo(itl_s=1.0, itl_kind=MEAN, e2e_s=2.0), 0.0, 1.0, 1)
    for _ in range(10):
        targets.step()
    assert targets.need(1.5, 0.01, 2).due_s == pytest.approx(0.5)


def test_who_cannot_meet_the_objective_any_more_is_not_followed():
    targets = RunningTargets()
    targets.join("late", Slo(ttft_s=1.0, itl_s=0.01), 0.0, 1.5, 1)
    assert targets.need(2.0, TOKEN_S, 1) == Need(None, None, None)
    targets.join("just", Slo(ttft_s=1.0, itl_s=0.01), 0.0, 1.0, 1)
    assert targets.need(2.0, TOKEN_S, 1).gap_s == 0.01
    targets.join("just", Slo(ttft_s=1.0, itl_s=0.01), 0.0, 1.5, 1)  # and is not any more
    assert targets.need(2.0, TOKEN_S, 1) == Need(None, None, None)


def test_who_has_no_target_needs_nothing():
    targets = RunningTargets()
    targets.join("any", Slo(), 0.0, 1.0, 1)
    targets.join("first", Slo(ttft_s=9.0), 0.0, 1.0, 1)
    targets.leave("never seen")
    assert targets.need(2.0, TOKEN_S, 1) == Need(None, None, None)


def test_asks_few_requests_whether_they_have_left():
    """One per target and question, and each request once when it has."""
    gone, asked = set(), Counter()

    def is_gone(name):
        asked["times"] += 1
        return name in gone

    targets = RunningTargets(is_gone)
    slos = [slo for slo in SLOS if slo.itl_s is not None or slo.e2e_s is not None]
    questions = 0
    for number in range(20_000):
        targets.join(number, slos[number % len(slos)], 0.0, 0.0, 1)
        if number >= 500:
            gone.add(number - 500)
        targets.step()
        if number % 4 == 0:
            targets.need(float(number), TOKEN_S, 30)
            questions += 1
    assert asked["times"] <= 5 * 20_000 + 3 * questions * len(slos)


def ladder(count):
    return [Slo(itl_s=0.010 * 1.01**n, itl_kind=kind) for kind in ItlKind for n in range(count)]


def test_ever_new_targets_are_told_apart_up_to_a_power_of_two():
    """A scheduler whose every request brings its own numbers."""
    targets, slos = RunningTargets(), ladder(300)  # 10 to 196 ms
    for number, slo in enumerate(slos):
        targets.join(number, slo, 0.0, 0.0, 1)
    assert len(targets._groups) <= MOST_GROUPS + 2 * 6
    for number in range(250):  # of one kind only those above 120 ms are left, and of the other all
        targets.leave(number)
    least = slos[250].itl_s
    need = targets.need(0.0, TOKEN_S, 1)
    assert least / 2 < need.gap_s <= least  # never more than was promised
    assert need.mean_s <= slos[300].itl_s


def test_targets_that_nobody_has_any_more_make_room():
    targets = RunningTargets()
    for number, slo in enumerate(ladder(300)):
        targets.join(number, slo, 0.0, 0.0, 1)
        targets.need(0.0, TOKEN_S, 1)
        targets.leave(number)
    assert len(targets._groups) <= MOST_GROUPS + 1
    targets.join("last", Slo(itl_s=0.0123), 0.0, 0.0, 1)
    assert targets.need(0.0, TOKEN_S, 1).gap_s == 0.0123  # and it is not tightened


@pytest.mark.parametrize("slo", [Slo(e2e_s=1.0), Slo(itl_s=0.001, itl_kind=MEAN), Slo(itl_s=0.001, e2e_s=1.0)])
def test_no_living_group_is_forgotten_for_room(slo):
    targets = RunningTargets()
    targets.join("stays", slo, 0.0, 0.0, 1)
    for _ in range(5):
        targets.step()
    before = targets.need(0.0, TOKEN_S, 1)
    for number in range(3 * MOST_GROUPS):
        targets.join(number, Slo(itl_s=1.0 + number), 0.0, 0.0, 1)
    after = targets.need(0.0, TOKEN_S, 1)
    assert (after.mean_s, after.due_s) == pytest.approx((before.mean_s, before.due_s))
    assert min(after.gap_s or inf, 1.0) == min(before.gap_s or inf, 1.0)


@pytest.mark.parametrize("kind", ItlKind)
def test_who_is_given_up_is_not_followed_for_the_rest_of_its_answer(kind):
    targets = RunningTargets()
    targets.join("tight", Slo(itl_s=0.025, itl_kind=kind, e2e_s=9.0), 0.0, 1.0, 1)
    targets.join("loose", Slo(itl_s=0.1), 0.0, 1.0, 1)
    assert targets.need(1.0, TOKEN_S, 1, defended_s=0.025) == targets.need(1.0, TOKEN_S, 1)
    assert targets.need(1.0, TOKEN_S, 1, defended_s=0.1) == Need(0.1, None, None)
    assert targets.need(1.0, TOKEN_S, 1) == Need(0.1, None, None)  # its gaps were late meanwhile
    targets.join("new", Slo(itl_s=0.025, itl_kind=kind), 0.0, 1.0, 1)
    need = targets.need(1.0, TOKEN_S, 1)
    assert 0.025 in (need.gap_s, need.mean_s)
