"""Clients of a virtual server by themselves: when they send, in an open and in a closed loop."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sglang.srt.managers.io_struct import AbortReq

from sglang_patches.virtual.clock import EPOCH_S, VirtualClock
from sglang_patches.virtual.traffic import Loop, TimeIsUp, VirtualRequest, VirtualTraffic


@dataclass
class Finished:
    """A request that a scheduler has finished, as far as the streamer looks at it. Not SGLang's."""

    rid: str
    output_ids: list[int] = field(default_factory=lambda: [5])
    finished_output: bool = False
    finished_len: int | None = None
    send_token_offset: int = 0
    cached_tokens: int = 0
    retraction_count: int = 0
    finished_reason: Any = None

    def __post_init__(self) -> None:
        self.finished_reason = self

    def to_json(self) -> dict[str, str]:
        return {"type": "length"}

    def finished(self) -> bool:
        return True

    @property
    def output_ids_through_stop(self) -> list[int]:
        return self.output_ids


def requests(count: int, arrival_s: float = 0.0) -> list[VirtualRequest]:
    return [VirtualRequest(str(n), arrival_s, lambda: array("q", [7]), 1, 1) for n in range(count)]


def pulled(traffic: VirtualTraffic) -> list[str]:
    return [message.rid for message in traffic.pull()]


def test_a_request_is_sent_when_one_ends_and_not_before() -> None:
    clock = VirtualClock()
    traffic = VirtualTraffic(clock, requests(5), loop=Loop(2, turn_s=0.25))
    assert pulled(traffic) == ["0", "1"]
    assert traffic.next_arrival_s() is None
    clock.spend(1.0)
    assert pulled(traffic) == []
    traffic.stream_output([Finished("1")], False)  # type: ignore[list-item]
    assert traffic.next_arrival_s() == EPOCH_S + 1.25
    assert pulled(traffic) == []
    clock.spend(0.25)
    assert pulled(traffic) == ["2"]
    assert [traffic.deliveries[rid].arrived_s for rid in "0123"] == [0.0, 0.0, 1.25, None]


def test_a_refused_request_frees_its_slot_too() -> None:
    traffic = VirtualTraffic(VirtualClock(), requests(3), loop=Loop(1))
    assert pulled(traffic) == ["0"]
    traffic.send_output(AbortReq(rid="0", finished_reason={"type": "abort", "message": "too long"}))
    assert pulled(traffic) == ["1"]


def test_what_warms_up_ends_before_anything_else_is_sent() -> None:
    clock = VirtualClock()
    traffic = VirtualTraffic(clock, requests(7), loop=Loop(2, first=3))
    assert pulled(traffic) == ["0", "1"]
    for rid, then in (("0", ["2"]), ("2", []), ("1", ["3", "4"]), ("4", ["5"])):
        clock.spend(0.5)
        traffic.stream_output([Finished(rid)], False)  # type: ignore[list-item]
        assert pulled(traffic) == then


def test_time_is_up_so_long_after_the_last_was_sent_and_not_before_that() -> None:
    clock = VirtualClock()
    traffic = VirtualTraffic(clock, requests(2), loop=Loop(1), most_s=5.0)
    assert pulled(traffic) == ["0"]
    clock.spend(60.0)
    assert pulled(traffic) == []  # the second one is not sent yet: nothing counts
    traffic.stream_output([Finished("0")], False)  # type: ignore[list-item]
    assert pulled(traffic) == ["1"]
    clock.spend(5.0)
    assert pulled(traffic) == []
    clock.spend(0.5)
    with pytest.raises(TimeIsUp):
        traffic.pull()


@given(
    count=st.integers(1, 30),
    concurrency=st.integers(1, 12),
    first=st.integers(0, 10),
    ends=st.lists(st.integers(0, 1000), min_size=40, max_size=40),
)
def test_whatever_ends_first_everything_is_sent_once_and_never_too_much_at_a_time(
    count: int, concurrency: int, first: int, ends: list[int]
) -> None:
    first = min(first, count)
    clock = VirtualClock()
    traffic = VirtualTraffic(clock, requests(count), loop=Loop(concurrency, first))
    open_now: list[str] = []
    seen: list[str] = []
    for end in ends:
        arrived = pulled(traffic)
        open_now += arrived
        seen += arrived
        assert len(open_now) <= concurrency
        warming = sum(int(rid) < first for rid in open_now)
        assert warming in (0, len(open_now))
        if not open_now:
            break
        clock.spend(0.5)
        traffic.stream_output([Finished(open_now.pop(end % len(open_now)))], False)  # type: ignore[list-item]
        still = (first if len(seen) - len(open_now) < first else count) - len(seen)
        assert len(open_now) + len(traffic.deliveries) - len(seen) >= 0
        if still > 0 and len(seen) >= first:
            assert traffic.next_arrival_s() is not None  # a free slot is filled at once
    assert seen == [str(n) for n in range(count)]
    assert traffic.open == 0


def test_an_open_loop_sends_at_its_times() -> None:
    clock = VirtualClock()
    asked = [VirtualRequest(str(n), s, lambda: array("q", [7]), 1, 1) for n, s in enumerate((2.0, 1.0))]
    traffic = VirtualTraffic(clock, asked)
    assert traffic.next_arrival_s() == EPOCH_S + 1.0
    clock.spend(1.0)
    assert pulled(traffic) == ["1"]
    clock.spend(1.0)
    assert pulled(traffic) == ["0"]
