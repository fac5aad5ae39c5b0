"""Iteration records and ceilings for controller tests: round numbers, so that closed forms are easy to read."""

from __future__ import annotations

from roofline_policies.contract.view import ForwardMode, IterationRecord
from roofline_policies.device.hardware import Ceilings
from roofline_policies.work import Bytes, Flops, Precision, Provenance, Work

CEILINGS = Ceilings("a device", {Precision.BF16: 100.0}, 10.0, 1000, None, "made up for tests")


def work(flops: int, read: int) -> Work:
    count = Flops.at(Precision.BF16, flops)
    return Work(count, count, Bytes(read), Bytes(read), frozenset({Provenance.CLOSED_FORM}))


def record(
    done_s: float, step_s: float = 1.0, *, mode: ForwardMode = ForwardMode.DECODE, flops: int = 50, read: int = 5,
    tokens: int = 8, iteration: int = 1,
) -> IterationRecord:  # fmt: skip
    return IterationRecord(
        iteration, mode, 8, tokens, 80, 0, False, work(flops, read), step_s, "host clock", done_s, step_s
    )
