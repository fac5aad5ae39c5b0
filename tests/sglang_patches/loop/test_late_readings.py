"""Readings of the counters that arrive late, or never: records stay in order, and only what is lost is estimated."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from sglang.srt.model_executor.forward_batch_info import ForwardMode as SglangMode

from roofline_policies.counting import Ledger, LedgerError, slots
from roofline_policies.counting.ledger import IN_FLIGHT
from roofline_policies.model.batch import BatchShape
from roofline_policies.work import Provenance
from sglang_patches.observe.clocks import HostInterval
from sglang_patches.observe.counters import InlineWork
from sglang_patches.observe.observer import Observer
from tests.sglang_patches.stand_ins import MODEL, StandInBatch

STEPS = 80
DECODE = BatchShape.of(decode_contexts=[7, 20])


class Arrival:
    """A CUDA event: it has happened once ``is_there`` says so, and waiting for it fails where the reading is lost."""

    def __init__(self, number, is_there, polled, lost):
        self.number, self.is_there, self.polled, self.lost = number, is_there, polled, lost

    def query(self):
        self.polled.append(self.number)
        return self.is_there(self.number)

    def synchronize(self):
        if self.number in self.lost:
            raise LedgerError(f"snapshot {self.number} was overwritten")


class LateCounters:
    """Counters whose readings arrive when the test says so.

    polled: the steps whose reading was asked for, in that order.
    """

    def __init__(self, is_there, lost=()):
        self.ledger = Ledger("cpu", rows=1)
        self.ledger.open_row("decode")
        self.polled, self.lost, self.is_there = [], frozenset(lost), is_there
        self.taken = -1  # the first one is of InlineWork itself, and there at once

    def count(self, load):
        self.ledger.row(0)[slots.LOAD] += load

    def snapshot(self, device):
        number, self.taken = self.taken, self.taken + 1
        reading = self.ledger.snapshot()
        return (
            reading if number < 0 else replace(reading, arrived=Arrival(number, self.is_there, self.polled, self.lost))
        )


class Steps:
    """Decode steps, each of which loads a number of bytes of its own; records are taken when the test asks for them."""

    def __init__(self, is_there=lambda number: True, lost=()):
        self.done = 0
        self.counters = LateCounters(is_there, lost)
        self.observer = Observer(MODEL, interval=HostInterval, inline=InlineWork(MODEL, self.counters, "cpu"))

    def run(self, steps):
        for _ in range(steps):
            batch = StandInBatch(SglangMode.DECODE, seq_lens=[7, 20], forward_iter=self.done)
            self.observer.launch(batch)
            self.observer.forward_starts()
            self.counters.count(loaded(self.done))
            self.observer.forward_ends()
            self.observer.launched(batch)
            self.done += 1
            self.observer.finish(batch, SimpleNamespace(), float(self.done))

    def records(self):
        return list(self.observer.records())


def loaded(step):
    return 1000 + 8 * step


def check(records, closed_form=()):
    """Every record but those named has inline work, of its own step alone."""
    beside = MODEL.work_beside_attention(DECODE).requested.read
    for record in records:
        if record.iteration in closed_form:
            assert record.work == MODEL.work(DECODE)
            assert record.work.provenance == {Provenance.CLOSED_FORM}
        else:
            assert record.work.provenance == {Provenance.INLINE}
            assert record.work.requested.read - beside == loaded(record.iteration), record.iteration


@pytest.mark.parametrize("delay", [0, 1, 2, 30, IN_FLIGHT - 1])
def test_readings_that_arrive_some_steps_later_all_count(delay):
    """More steps than readings may be under way, and nobody takes a record in between."""
    steps = Steps(lambda number: steps.done - 1 >= number + delay)
    steps.run(STEPS)
    early = steps.records()
    assert [record.iteration for record in early] == list(range(STEPS - delay))
    steps.done += delay
    records = early + steps.records()
    assert [record.iteration for record in records] == list(range(STEPS))
    check(records)


def test_readings_are_asked_for_in_order_and_not_again():
    """Each is not there when it is asked for first."""
    asked = set()

    def second_time(number):
        again = number in asked
        asked.add(number)
        return again

    steps = Steps(second_time)
    steps.run(STEPS)
    polled = steps.counters.polled
    assert polled == sorted(polled)
    assert all(polled.count(number) <= 2 for number in range(STEPS))
    records = steps.records()
    assert [record.iteration for record in records] == list(range(STEPS))
    check(records)
    assert len(steps.counters.polled) == 2 * STEPS


@pytest.mark.parametrize(
    ("lost", "closed_form"),
    [({10}, {10, 11}), ({10, 11}, {10, 11, 12}), ({0}, {0, 1}), ({3, 40, 79}, {3, 4, 40, 41, 79})],
)
@pytest.mark.parametrize("at_a_time", [1, STEPS])
def test_a_lost_reading_costs_its_record_and_the_next(lost, closed_form, at_a_time):
    steps, records = Steps(lost=lost), []
    for _ in range(STEPS // at_a_time):
        steps.run(at_a_time)
        records += steps.records()
    assert [record.iteration for record in records] == list(range(STEPS))
    check(records, closed_form)


def test_a_reading_that_was_overwritten_is_lost_and_nothing_else():
    """The first one is held up for longer than its memory lasts; those behind it are there in time."""
    steps = Steps(lambda number: number or steps.done > IN_FLIGHT)
    steps.run(STEPS)
    records = steps.records()
    assert [record.iteration for record in records] == list(range(STEPS))
    check(records, {0, 1})


def test_a_reading_that_cannot_be_taken_any_more_says_so():
    """What the observer is spared: the ledger itself refuses."""
    counters = LateCounters(lambda number: True)
    counters.snapshot(torch.device("cpu"))
    reading = counters.snapshot(torch.device("cpu"))
    for _ in range(IN_FLIGHT):
        counters.snapshot(torch.device("cpu"))
    with pytest.raises(LedgerError, match=f"allowed: to leave fewer than {IN_FLIGHT} unread"):
        reading.totals()
