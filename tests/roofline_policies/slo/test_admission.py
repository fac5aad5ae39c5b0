"""The order of admission: that it is kept, and that who is passed over lets the most be in time."""

import random
from collections import Counter
from dataclasses import dataclass, field
from itertools import combinations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from roofline_policies.slo.admission import LOOKED_AT, Admission, Rank, Ticket, beside, least_beside


@dataclass(eq=False)
class Entry:
    arrival_s: float
    due_s: float
    prefill_s: float = 1.0
    rank: Rank = Rank.IN_TIME
    ticket: Ticket = field(init=False)

    def __post_init__(self):
        self.ticket = Ticket(self.arrival_s, self.due_s, self.prefill_s, self.rank)


def admission():
    return Admission(lambda entry: entry.ticket)


def in_order(queue):
    """As the module says it: aged by age, in time by due time, relegated by age."""
    places = [
        (entry.ticket.rank, entry.due_s if entry.ticket.rank is Rank.IN_TIME else entry.arrival_s) for entry in queue
    ]
    return places == sorted(places)


times = st.integers(0, 6).map(float)  # many alike
entries = st.builds(Entry, times, times, times, st.sampled_from(Rank))


@settings(deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("insert"), entries, st.none()),
            st.tuples(st.just("move"), st.integers(0, 30), st.sampled_from(Rank)),
            st.tuples(st.just("take"), st.integers(0, 30), st.none()),
            st.tuples(st.just("move_one_that_waits_no_more"), entries, st.sampled_from(Rank)),
        ),
        max_size=60,
    )
)
def test_the_queue_is_in_order_after_anything_and_loses_and_doubles_nobody(steps):
    order, queue, waiting = admission(), [], []
    for kind, what, rank in steps:
        if kind == "insert":
            order.insert(queue, what)
            waiting.append(what)
        elif kind == "move_one_that_waits_no_more":
            before = what.ticket.rank
            assert not order.move(queue, what, rank)
            assert what.ticket.rank is before
        elif waiting:
            entry = waiting[what % len(waiting)]
            if kind == "take":
                queue.remove(entry)
                waiting.remove(entry)
            else:
                assert order.move(queue, entry, rank)
                assert entry.ticket.rank is rank
        assert in_order(queue)
        assert Counter(map(id, queue)) == Counter(map(id, waiting))


@given(st.lists(entries, max_size=30))
def test_sorting_gives_the_order_that_inserting_keeps(unsorted):
    order, queue = admission(), list(unsorted)
    order.sort(queue)
    assert in_order(queue)
    inserted = []
    for entry in unsorted:
        order.insert(inserted, entry)
    assert [id(entry) for entry in inserted] == [id(entry) for entry in queue]


def test_who_came_first_goes_first_where_nothing_else_tells():
    order, queue = admission(), []
    for arrival_s in (3.0, 1.0, 2.0):
        order.insert(queue, Entry(arrival_s, 9.0))
    assert [entry.arrival_s for entry in queue] == [1.0, 2.0, 3.0]


def on_time(jobs, start_s):
    """Whether all are, in the order of due times. If any order does it, this one does."""
    done_s = start_s
    for job in sorted(jobs, key=lambda job: job.due_s):
        done_s += job.prefill_s
        if done_s > job.due_s:
            return False
    return True


def most_on_time(jobs, start_s):
    """Over all subsets."""
    for size in range(len(jobs), -1, -1):
        if any(on_time(some, start_s) for some in combinations(jobs, size)):
            return size
    raise AssertionError("nobody is always on time")


def moore_hodgson(jobs, start_s):
    """As in a textbook, on lists; how many are on time."""
    kept = []
    for job in sorted(jobs, key=lambda job: job.due_s):
        kept.append(job)
        if start_s + sum(one.prefill_s for one in kept) > job.due_s:
            kept.remove(max(kept, key=lambda one: one.prefill_s))
    return len(kept)


jobs = st.lists(st.builds(Entry, st.just(0.0), st.integers(0, 24).map(float), st.integers(0, 8).map(float)), max_size=9)


@settings(deadline=None, max_examples=400)
@given(jobs, st.integers(0, 4), st.integers(0, 4), st.sampled_from([0.5, 1.0, 2.0]))
def test_who_is_given_up_leaves_the_most_in_time(jobs, now_s, ahead_s, pace):
    order, queue = admission(), []
    for job in jobs:
        order.insert(queue, job)
    before = list(queue)
    given_up = order.hopeless(queue, float(now_s), float(ahead_s), pace)
    assert queue == before  # nothing is changed
    assert len(set(map(id, given_up))) == len(given_up)
    start_s = now_s + ahead_s
    real = {id(job): Entry(0.0, job.due_s, job.prefill_s * pace) for job in jobs}
    kept = [real[id(job)] for job in jobs if all(job is not other for other in given_up)]
    assert on_time(kept, start_s)
    assert len(kept) == most_on_time(list(real.values()), start_s) == moore_hodgson(list(real.values()), start_s)


def test_the_longest_goes_so_that_the_others_are_in_time():
    order, queue = admission(), []
    long, one, two = Entry(0.0, 4.0, 3.0), Entry(0.0, 5.0, 2.0), Entry(0.0, 6.0, 2.0)
    for job in (long, one, two):
        order.insert(queue, job)
    assert order.hopeless(queue, 0.0, 0.0, 1.0) == [long]
    assert order.hopeless(queue, 0.0, 0.0, 0.1) == []
    assert order.hopeless(queue, 0.0, 1.5, 1.0) == [long]  # alone it would be late as well
    assert order.hopeless(queue, 100.0, 0.0, 1.0) == [long, one, two]


def test_those_that_have_waited_long_enough_are_not_given_up_and_not_counted_on():
    order, queue = admission(), []
    aged, relegated = Entry(0.0, 1.0, 50.0, Rank.AGED), Entry(0.0, 1.0, 50.0, Rank.RELEGATED)
    fits = Entry(0.0, 5.0, 4.0)
    for job in (fits, relegated, aged):
        order.insert(queue, job)
    assert queue == [aged, fits, relegated]
    assert order.hopeless(queue, 0.0, 0.0, 1.0) == []


def test_relegated_ones_age():
    order, queue = admission(), []
    old, young, fits = Entry(0.0, 1.0, rank=Rank.RELEGATED), Entry(6.0, 1.0, rank=Rank.RELEGATED), Entry(0.0, 50.0)
    for job in (young, fits, old):
        order.insert(queue, job)
    assert order.relegated == 0
    assert order.aged(queue, 10.0, 30.0) == []
    assert order.relegated == 2
    assert order.aged(queue, 10.0, 10.0) == []  # longer than that
    assert order.aged(queue, 10.5, 10.0) == [old]
    assert order.aged(queue, 17.0, 10.0) == [old, young]
    assert order.aged(queue, 17.0, 0.0) == [old, young]
    for entry in (old, young):
        order.move(queue, entry, Rank.AGED)
    assert queue == [old, young, fits]
    assert order.aged(queue, 17.0, 0.0) == []
    assert order.relegated == 0


@pytest.mark.parametrize("count", [1000, 100_000])
def test_looks_at_no_more_than_the_head_whatever_the_length(count):
    looked = Counter()

    def ticket(entry):
        looked["at"] += 1
        return entry.ticket

    draw = random.Random(1)
    order = Admission(ticket)
    queue = sorted(
        (Entry(draw.random(), draw.uniform(0, 1000), 5.0, draw.choice([*Rank][:2])) for _ in range(count)),
        key=lambda entry: entry.ticket.key,
    )
    looked.clear()
    assert len(order.hopeless(queue, 0.0, 0.0, 1.0)) > LOOKED_AT // 2
    assert looked["at"] <= LOOKED_AT + 20
    looked.clear()
    order.insert(queue, Entry(0.0, 500.0))
    order.aged(queue, 0.0, 30.0)
    order.move(queue, queue[count // 2], Rank.RELEGATED)
    assert looked["at"] <= 20 * 5


def test_those_behind_the_head_are_judged_when_they_have_moved_up():
    order = admission()
    queue = [Entry(0.0, float(n), 0.5) for n in range(1, LOOKED_AT + 3)]
    queue[-1].ticket.prefill_s = 1e6
    assert order.hopeless(queue, 0.0, 0.0, 1.0) == []
    assert order.hopeless(queue[3:], 0.0, 0.0, 1.0) == [queue[-1]]


@settings(deadline=None)
@given(st.integers(0, 2**32), st.floats(0.1, 3.0))
def test_a_long_head_keeps_as_many_as_the_textbook(seed, pace):
    draw, order, queue = random.Random(seed), admission(), []
    for _ in range(LOOKED_AT):
        order.insert(queue, Entry(0.0, draw.uniform(0, 60), draw.choice([0.1, 0.5, draw.uniform(0, 5)])))
    given_up = order.hopeless(queue, 0.0, 0.0, pace)
    real = [Entry(0.0, job.due_s, job.prefill_s * pace) for job in queue]
    assert LOOKED_AT - len(given_up) == moore_hodgson(real, 0.0)


def test_the_first_that_is_due_and_not_passed_over_is_told():
    order = admission()
    soon, later, passed = Entry(0.0, 5.0), Entry(0.0, 9.0), Entry(0.0, 1.0, rank=Rank.RELEGATED)
    assert order.due_s(2.0, later, soon) == order.due_s(2.0, soon, later) == order.due_s(2.0, None, soon) == 3.0
    assert order.due_s(7.0, soon) == -2.0
    assert order.due_s(2.0, later, passed) == 7.0
    assert order.due_s(2.0, passed, None) is order.due_s(2.0) is None


def settled(others, askers, now_s, ahead_s, pace):
    """The queue after looks until nobody moves any more; how many looks it took."""
    order, queue = admission(), []
    for entry in sorted([*others, *askers], key=lambda entry: entry.arrival_s):
        order.insert(queue, entry)
    for looks in range(2 * len(queue) + 2):
        found = order.hopeless(queue, now_s, ahead_s, pace)
        if not found:
            return queue, looks
        for entry in found:
            assert order.move(queue, entry, Rank.RELEGATED)
    raise AssertionError("looks do not come to an end")


due_times = st.integers(0, 24).map(float)
waiting_prompts = st.lists(
    st.tuples(due_times, st.integers(0, 8).map(float), st.none() | st.integers(1, 24).map(float)), max_size=9
)
"""Due by the class, prefill, and how much sooner a prompt asks to be due; None: it asks for nothing."""


@settings(deadline=None, max_examples=600)
@example([(8.0, 2.0, None), (9.0, 2.0, None), (7.0, 1.0, 1.0)], 2, 4, 1.0)  # what is asked for cannot be kept at all
@given(waiting_prompts, st.integers(0, 4), st.integers(0, 4), st.sampled_from([0.5, 1.0, 2.0]))
def test_whatever_some_ask_the_others_wait_in_the_same_order_and_the_same_are_passed_over(
    prompts, now_s, ahead_s, pace
):
    def made(asked):
        others, askers = [], []
        for place, (due_s, prefill_s, sooner_s) in enumerate(prompts):
            entry = Entry(0.001 * place, due_s, prefill_s)
            (others if sooner_s is None else askers).append(entry)
            if asked and sooner_s is not None:
                entry.ticket.due_s, entry.ticket.class_due_s = due_s - sooner_s, due_s
        queue, _ = settled(others, askers, float(now_s), float(ahead_s), pace)
        return [(entry.arrival_s, entry.ticket.rank) for entry in queue if any(entry is one for one in others)]

    assert made(asked=True) == made(asked=False)


def test_who_asked_for_an_earlier_time_goes_back_to_its_class_before_anybody_is_late_for_it():
    order, queue = admission(), []
    asks, long, short = Entry(0.0, 9.0, 2.0), Entry(1.0, 6.0, 5.0), Entry(2.0, 8.0, 2.0)
    asks.ticket.due_s, asks.ticket.class_due_s = 4.0, 9.0
    for entry in (asks, long, short):
        order.insert(queue, entry)
    assert queue == [asks, long, short]
    assert order.hopeless(queue, 0.0, 0.0, 0.5) == []  # all are in time: it keeps its place
    assert order.hopeless(queue, 0.0, 0.0, 1.0) == [asks]
    order.move(queue, asks, Rank.RELEGATED)
    assert queue == [long, short, asks]
    assert asks.ticket == Ticket(0.0, 9.0, 2.0)  # as one that asked for nothing
    assert order.hopeless(queue, 0.0, 0.0, 1.0) == []
    order.move(queue, asks, Rank.RELEGATED)
    assert asks.ticket.rank is Rank.RELEGATED


def test_who_cannot_have_the_time_that_it_asked_for_waits_as_its_class():
    order = admission()
    asks = Entry(0.0, 9.0, 2.0)
    asks.ticket.due_s, asks.ticket.class_due_s = 1.0, 9.0
    queue = [asks]
    assert order.hopeless(queue, 0.0, 0.0, 1.0) == [asks]
    order.move(queue, asks, Rank.RELEGATED)
    assert (asks.ticket.rank, asks.ticket.due_s) == (Rank.IN_TIME, 9.0)


def test_who_is_given_up_goes_behind_only_where_others_would_be_late_for_it():
    """Three prompts of 1 s each; the second is given up, and the third is late behind both, in time behind one."""
    kept, lost, last = (Ticket(0.0, due_s, 1.0, itl_s=itl_s) for due_s, itl_s in ((5, 0.1), (6, 0.02), (6.5, 0.1)))
    queue = [kept, lost, last]
    admission = Admission(lambda ticket: ticket)
    assert admission.hopeless(queue, 0.0, 4.0, 1.0, 0.1) == [lost]
    assert admission.hopeless(queue, 0.0, 4.0, 1.0) == [last]
    assert admission.hopeless(queue, 0.0, 3.0, 1.0, 0.1) == []


def test_as_many_that_are_given_up_go_as_one_of_the_others_needs():
    lost = [Ticket(0.0, 4.0, 1.0, itl_s=0.02) for _ in range(3)]
    long = Ticket(0.0, 4.5, 3.0, itl_s=0.1)
    admission = Admission(lambda ticket: ticket)
    found = admission.hopeless([*lost, long], 0.0, 0.0, 1.0, 0.1)
    assert len(found) == 2
    assert long not in found


@settings(deadline=None, max_examples=200)
@given(jobs, st.integers(0, 9), st.integers(0, 4), st.integers(0, 4), st.sampled_from([0.5, 1.0, 2.0]))
def test_who_goes_beside_the_prompt_part_way_does_not_wait_for_the_rest_of_it(jobs, first, soon_s, rest_s, pace):
    order, queue = admission(), []
    for job in jobs:
        order.insert(queue, job)
    first = min(first, len(queue))
    given_up = order.hopeless(queue, 0.0, float(soon_s + rest_s), pace, beside=first, soon_s=float(soon_s))
    done_s, kept = float(soon_s), [job for job in queue if all(job is not other for other in given_up)]
    for place, job in enumerate(queue):
        if place == first:
            done_s += rest_s
        if job in kept:
            done_s += job.prefill_s * pace
            assert done_s <= job.due_s
    if first == len(queue):
        assert given_up == order.hopeless(queue, 0.0, float(soon_s), pace)
    if first == 0:
        assert given_up == order.hopeless(queue, 0.0, float(soon_s + rest_s), pace)


def test_who_is_due_before_the_one_part_way_and_fits_whole_goes_beside_it():
    order = admission()
    queue = [Entry(0.0, due_s) for due_s in (1.0, 2.0, 3.0, 9.0)]
    for entry, tokens in zip(queue, (100, 800, 100, 100), strict=True):
        entry.ticket.tokens = tokens
    part_way = Entry(0.0, 5.0, 20.0)
    assert order.beside(0.0, part_way, queue, 1024) == 3
    assert order.beside(0.0, part_way, queue, 900) == 1  # 800 do not fit, and nobody passes them
    assert order.beside(0.0, part_way, queue, 64) == 0
    assert order.beside(0.0, part_way, queue, 1024, room_s=1.2) == 3
    assert order.beside(0.0, part_way, queue, 1024, room_s=1.1) == 0  # 1 s is at most 7 of 8 parts of a chunk
    assert order.beside(0.0, part_way, queue, 1024, ahead_s=5.1) == 4  # it will be late
    part_way.ticket.rank = Rank.RELEGATED
    assert order.beside(0.0, part_way, queue, 1024) == 4
    assert order.due_before(0.0, part_way, queue) == 4


def test_one_part_way_that_will_be_late_steps_back():
    order, part_way = admission(), Entry(0.0, 5.0)
    assert not order.steps_back(1.0, part_way, 4.0)
    assert order.steps_back(1.0, part_way, 4.1)
    part_way.ticket.rank = Rank.RELEGATED
    assert not order.steps_back(1.0, part_way, 4.1)  # it has
    part_way.ticket.rank = Rank.AGED
    assert not order.steps_back(1.0, part_way, 4.1)


@given(st.integers(1, 10_000))
def test_the_smallest_chunk_with_room_beside_is_known(tokens):
    assert beside([tokens], least_beside(tokens)) == [tokens]
    assert beside([tokens], least_beside(tokens) - 2) == []
