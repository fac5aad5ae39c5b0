"""How busy cores are, by /proc/stat."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from roofline_policies.device import occupied
from roofline_policies.device.occupied import Ticks, cpu_busy, ticks

STAT = """\
cpu  400 40 60 1000 100 5 15 80 7 0
cpu0 100 10 20 500 50 1 4 30 7 0
cpu1 300 30 40 500 50 4 11 50 0 0
intr 12345 1 2 3
ctxt 99
"""


def test_busy_is_all_but_idleness_and_disks_and_time_of_other_machines_counts() -> None:
    assert ticks(STAT, {0}) == Ticks(165, 715)
    assert ticks(STAT, {1}) == Ticks(435, 985)
    assert ticks(STAT, {0, 1}) == Ticks(600, 1700)
    assert ticks(STAT, {7}) == Ticks(0, 0)


def test_a_kernel_that_tells_no_steal_is_read_as_well() -> None:
    assert ticks("cpu0 1 2 3 4 5\n", {0}) == Ticks(6, 15)


def test_this_machine_tells() -> None:
    busy = cpu_busy(0.05)
    assert busy is not None
    assert 0.0 <= busy <= 1.0


@pytest.mark.parametrize("text", [None, "cpu0 a b c d e\n", "cpu0 1\n", STAT])
def test_where_the_system_does_not_tell_or_no_tick_passes_nobody_knows(
    text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "stat"
    if text is not None:
        file.write_text(text)
    monkeypatch.setattr(occupied, "_STAT", file)
    assert cpu_busy(0.0) is None


def test_a_system_without_affinities_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    assert cpu_busy(0.0) is None
