"""How busy a CPU is, with the work of every process: whether a measurement on it would be of the device alone."""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

SAMPLE_S = 0.5
"""Seconds between the two readings of ``cpu_busy``: 50 ticks of each core, so 2% of one core are seen. A judgement."""


class Ticks(NamedTuple):
    """Time that cores spent since the machine started, in kernel ticks. busy: with work. all: altogether."""

    busy: int
    all: int


def ticks(stat: str, cores: Collection[int]) -> Ticks:
    """What /proc/stat says of these cores. Waiting for a disk is no work; time that another virtual machine had is.

    Source: proc_stat(5): user, nice, system, idle, iowait, irq, softirq, steal; guests are in user and nice already.
    """
    busy = everything = 0
    for line in stat.splitlines():
        name, *fields = line.split()
        if name.removeprefix("cpu").isdecimal() and int(name.removeprefix("cpu")) in cores:
            user, nice, system, idle, iowait, *others = map(int, fields[:8])
            busy += user + nice + system + sum(others)
            everything += user + nice + system + idle + iowait + sum(others)
    return Ticks(busy, everything)


def cpu_busy(seconds: float = SAMPLE_S) -> float | None:
    """The share of the next ``seconds`` in which the cores of this process work, from 0 to 1, while it sleeps itself.
    None where the system does not tell."""
    try:
        cores = os.sched_getaffinity(0)
        before = ticks(_STAT.read_text(encoding="ascii"), cores)
        time.sleep(seconds)
        after = ticks(_STAT.read_text(encoding="ascii"), cores)
    except (AttributeError, OSError, ValueError):  # no Linux, or no /proc that can be read
        return None
    passed = after.all - before.all
    return None if passed <= 0 else (after.busy - before.busy) / passed


_STAT = Path("/proc/stat")
