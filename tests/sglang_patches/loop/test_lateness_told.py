"""The log says when gaps begin to come later than planned, and when they no longer do; once each."""

from __future__ import annotations

import pytest

from roofline_policies.contract.view import ForwardMode, QueueState
from roofline_policies.control.controller import Controller
from roofline_policies.control.status import log_line
from roofline_policies.settings.loading import load
from sglang_patches.loop.reports import Reports
from tests.roofline_policies.records import record
from tests.sglang_patches.loop.metrics_process import controller


def decoded(there: Controller, reports: Reports, gaps_s: list[float], now_s: float = 0.0) -> float:
    """Decode steps that were to take half a second each, one after the other, under a target of 0.8 s."""
    there.queue = QueueState(running=8, gap_s=0.8)
    for gap_s in gaps_s:
        _, gap = there.launched(ForwardMode.DECODE, now_s)
        now_s += gap_s
        there.observe(record(now_s, 0.5)._replace(gap=gap))
        reports.due(now_s, busy=True)
    return now_s


def test_the_log_tells_when_it_begins_and_ends(caplog: pytest.LogCaptureFixture) -> None:
    there = controller()
    reports = Reports(there, load("adaptive", overrides=["log_interval_s=1e9"]), 0.0, device_uuid=None, series=False)
    with caplog.at_level("INFO"):
        now_s = decoded(there, reports, [0.5] * 200)
        assert caplog.messages == []
        now_s = decoded(there, reports, [0.85] * 30, now_s)
        (began,) = caplog.messages
        assert began.startswith("Roofline: gaps between two tokens have come later than planned for 0 s: ")
        decoded(there, reports, [0.5] * 2500, now_s)
    assert caplog.messages == [began, "Roofline: gaps between two tokens come as planned again."]


def test_policies_see_the_tightened_target_and_the_line_says_so() -> None:
    there = controller()
    reports = Reports(there, load("adaptive"), 0.0, device_uuid=None, series=False)
    now_s = decoded(there, reports, [*[0.5] * 200, *[0.85] * 30])
    seen = there.view(now_s, there.queue).queue.gap_s
    assert seen == pytest.approx(0.8 / there.lateness.gaps.tightening.factor)
    assert 0.4 <= seen < 0.6
    assert "gaps between two tokens have come later than planned for " in log_line(there, now_s)
