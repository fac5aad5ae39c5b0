"""The two lines of virtual time, and what shows them to the code above: events, intervals, a module ``time``."""

import sys
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise
from types import ModuleType, SimpleNamespace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sglang_patches.virtual import clock as clock_module
from sglang_patches.virtual.clock import EPOCH_S, VirtualClock, VirtualTime, replace_clocks
from sglang_patches.virtual.events import VirtualDeviceModule, VirtualEvent, VirtualInterval

CLOCKS = ("time", "monotonic", "perf_counter")


def results(steps, *, overlap):
    """When the host has the result of each (host seconds, device seconds), since the start."""
    clock, launched, times = VirtualClock(), deque(), []

    def take():
        launched.popleft().synchronize()
        times.append(clock.now_s - EPOCH_S)

    for host_s, device_s in steps:
        clock.spend(host_s)
        clock.launch(device_s)
        event = VirtualEvent(clock)
        event.record()
        launched.append(event)
        while len(launched) > overlap:
            take()
    while launched:
        take()
    return times


def ticked(steps, *, overlap):
    """The same by counting ticks: a host that works, launches and waits, and a device that works through a queue."""
    tick, times, done = 0, [], set()
    queue, place, busy = deque(), 0, steps[0][0]
    while len(times) < len(steps):
        # What takes no time happens first, as often as anything can: zeros may follow one another.
        moved = True
        while moved:
            moved = False
            if queue and queue[0][1] == 0:
                done.add(queue.popleft()[0])
                moved = True
            if place < len(steps) and busy == 0 and len(times) >= place - overlap:
                queue.append([place, steps[place][1]])
                place += 1
                busy = None if len(times) < place - overlap or place == len(steps) else steps[place][0]
                moved = True
            waits_for = len(times)
            if waits_for in done and (waits_for < place - overlap or place == len(steps)):
                times.append(tick)
                if place < len(steps) and busy is None and len(times) >= place - overlap:
                    busy = steps[place][0]
                moved = True
        tick += 1
        if busy:
            busy -= 1
        if queue:
            queue[0][1] -= 1
    return times


lengths = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12)


@settings(deadline=None)
@given(lengths, st.booleans())
@example([(1, 5), (1, 5), (1, 5)], True)
@example([(0, 0), (6, 0), (0, 6), (0, 0)], True)
def test_lines_agree_with_ticks_of_a_host_and_a_device(steps, overlap):
    assert results(steps, overlap=overlap) == ticked(steps, overlap=overlap)


@pytest.mark.parametrize(("host_s", "device_s"), [(1.0, 8.0), (8.0, 1.0), (4.0, 4.0), (0.0, 8.0), (8.0, 0.0)])
def test_host_time_hides_behind_the_device_exactly_while_it_is_shorter(host_s, device_s):
    steps = [(host_s, device_s)] * 10
    longer = max(host_s, device_s)
    overlapped = results(steps, overlap=True)
    assert overlapped[0] == host_s + longer  # the next step is launched before anybody waits for the first
    assert [after - before for before, after in pairwise(overlapped[:-1])] == [longer] * 8
    assert overlapped[-1] - overlapped[-2] == device_s
    assert results(steps, overlap=False) == [(host_s + device_s) * n for n in range(1, 11)]


@settings(deadline=None)
@given(lengths)
def test_overlap_never_costs_and_never_beats_either_line(steps):
    overlapped, apart = results(steps, overlap=True), results(steps, overlap=False)
    assert overlapped[-1] <= apart[-1] == sum(host + device for host, device in steps)
    assert overlapped[-1] >= max(sum(host for host, _ in steps), sum(device for _, device in steps))
    assert overlapped == sorted(overlapped)


def test_a_launch_queues_behind_the_device_and_not_behind_the_past():
    clock = VirtualClock(start_s=10.0)
    assert clock.launch(4.0) == clock.device_free_s == 14.0
    assert clock.launch(2.0) == 16.0
    assert clock.now_s == 10.0
    clock.spend(10.0)
    assert clock.launch(1.0) == 21.0
    assert clock.launched == (21.0, 1.0)


def test_waiting_for_the_past_costs_nothing():
    clock = VirtualClock(start_s=10.0)
    clock.wait_until(9.0)
    assert clock.now_s == 10.0
    clock.wait_until(12.5)
    assert clock.now_s == 12.5


def test_time_starts_above_zero_which_sglang_takes_for_not_set():
    assert VirtualClock().now_s == VirtualClock().device_free_s == EPOCH_S > 0


def test_an_event_is_reached_when_the_device_has_done_what_was_queued_before_it():
    clock = VirtualClock(start_s=10.0)
    event = VirtualEvent(clock)
    assert event.query()  # nothing was recorded
    clock.launch(4.0)
    assert event.query()
    event.record(stream="any")
    clock.launch(8.0)
    assert not event.query()
    event.wait(stream="any")
    assert clock.now_s == 10.0
    event.synchronize()
    assert (clock.now_s, event.query()) == (14.0, True)
    event.record()
    event.synchronize()
    assert clock.now_s == 22.0


def test_the_stand_ins_module_makes_virtual_events_and_is_the_real_one_else():
    clock = VirtualClock()
    real = SimpleNamespace(current_stream=object(), Event=object())
    module = VirtualDeviceModule(real, clock)
    assert module.current_stream is real.current_stream
    with pytest.raises(AttributeError):
        module.nothing  # noqa: B018
    event = module.Event(enable_timing=True)
    clock.launch(2.0)
    event.record()
    event.synchronize()
    assert clock.now_s == EPOCH_S + 2.0


def test_an_interval_is_what_was_launched_to_the_last_bit_once_the_device_is_done():
    clock = VirtualClock()
    clock.launch(0.3)
    interval = VirtualInterval(clock)
    clock.launch(0.1)
    assert interval.seconds() is None  # not ended
    interval.end()
    clock.launch(7.0)
    clock.wait_until(EPOCH_S + 0.3)
    assert interval.seconds() is None
    clock.wait_until(EPOCH_S + 0.3 + 0.1)
    assert interval.seconds() == 0.1
    assert interval.done_s(1234.5) == 1234.5
    assert interval.source == "virtual clock"


def test_a_step_that_the_host_waited_for_is_done_when_it_ended_not_when_its_result_was_looked_at():
    clock = VirtualClock()
    interval = VirtualInterval(clock, synchronous=True)
    done_s = clock.launch(0.25)
    interval.end()
    clock.wait_until(done_s)
    clock.spend(3.0)
    assert interval.done_s(clock.now_s) == done_s == EPOCH_S + 0.25


def test_every_clock_shows_the_hosts_line():
    clock = VirtualClock()
    virtual = VirtualTime(clock)
    for seconds in (0.0, 0.1, 1e-9, 123456.789):
        clock.spend(seconds)
        clock.launch(5.0)
        for name in CLOCKS:
            assert getattr(virtual, name)() == clock.now_s
            assert getattr(virtual, f"{name}_ns")() == round(clock.now_s * 1e9)
            assert isinstance(getattr(virtual, f"{name}_ns")(), int)


def test_everything_else_of_time_is_the_real_one():
    virtual = VirtualTime(VirtualClock())
    assert isinstance(virtual, ModuleType)
    assert virtual.__name__ == "time"
    replaced = {*CLOCKS, *(f"{name}_ns" for name in CLOCKS), "sleep"}
    for name in dir(time):
        if not name.startswith("__"):
            assert (getattr(virtual, name) is getattr(time, name)) == (name not in replaced), name
    with pytest.raises(AttributeError):
        virtual.nothing  # noqa: B018


def test_sleep_moves_the_line_of_its_own_thread_alone(monkeypatch):
    clock = VirtualClock()
    virtual = VirtualTime(clock)
    virtual.sleep(2.5)
    assert clock.now_s == EPOCH_S + 2.5

    slept = []
    monkeypatch.setattr(clock_module, "real_time", SimpleNamespace(sleep=slept.append))
    other = threading.Thread(target=virtual.sleep, args=(7.0,))
    other.start()
    other.join()
    assert slept == [7.0]
    assert clock.now_s == EPOCH_S + 2.5


@dataclass(frozen=True)
class Stamped:
    count: int = 0
    at_s: float = field(default_factory=time.perf_counter)
    at_ns: int = field(default_factory=time.time_ns)
    list: list = field(default_factory=list)


def made(monkeypatch, name, **members):
    """A loaded module."""
    module = ModuleType(name)
    vars(module).update(members)
    monkeypatch.setitem(sys.modules, name, module)
    return module


def test_modules_get_the_virtual_clock_however_they_bound_the_real_one(monkeypatch):
    holder = made(monkeypatch, "room.a", time=time, clock=time)
    names = {name: getattr(time, name) for name in CLOCKS} | {f"{n}_ns": getattr(time, f"{n}_ns") for n in CLOCKS}
    importer = made(monkeypatch, "room.b.c", **names, sleep=time.sleep, now=time.time, gmtime=time.gmtime)
    monkeypatch.setitem(sys.modules, "room.gone", None)
    clock = VirtualClock()
    virtual = VirtualTime(clock)
    assert replace_clocks(virtual, ("room.",)) == 2 + 8
    clock.spend(1.0)
    assert holder.time is holder.clock is virtual
    assert [getattr(importer, name)() for name in (*CLOCKS, "now")] == [EPOCH_S + 1.0] * 4
    assert [getattr(importer, f"{name}_ns")() for name in CLOCKS] == [1001 * 10**9] * 3
    importer.sleep(2.0)
    assert holder.time.monotonic() == EPOCH_S + 3.0
    assert importer.gmtime is time.gmtime
    assert replace_clocks(virtual, ("room.",)) == 0


def test_other_packages_keep_their_clocks(monkeypatch):
    kept = [made(monkeypatch, name, time=time, now=time.time) for name in ("room", "rooms.a", "a.room.b")]
    own = made(monkeypatch, "sglang_patches.virtual.made_up", time=time)
    assert replace_clocks(VirtualTime(VirtualClock()), ("room.", "sglang_patches.virtual.clock")) == 0
    assert all(module.time is time and module.now is time.time for module in kept)
    assert own.time is time
    assert clock_module.real_time is time  # which shows all others where the real one is


def test_default_factories_of_dataclasses_move_with_their_module(monkeypatch):
    clock = VirtualClock()
    monkeypatch.setattr(Stamped, "__module__", "room.a")
    made(monkeypatch, "room.b", Stamped=Stamped)
    assert replace_clocks(VirtualTime(clock), ("room.b",)) == 0  # only imported there
    assert Stamped().at_s != EPOCH_S
    made(monkeypatch, "room.a", Stamped=Stamped, instance=Stamped(), Alias=Stamped)
    assert replace_clocks(VirtualTime(clock), ("room.a",)) == 2
    clock.spend(0.5)
    assert Stamped() == Stamped(at_s=EPOCH_S + 0.5, at_ns=1_000_500_000_000)
    assert Stamped(at_s=3.0).at_s == 3.0
    assert Stamped().list == []
