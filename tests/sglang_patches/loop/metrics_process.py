"""A scheduler's share of /metrics without a scheduler: publishes as told, in a process with a directory of its own.

python metrics_process.py RANK SECONDS BUSY    the state after two decode steps and one knob change
"""

from __future__ import annotations

import os
import sys

from roofline_policies.contract.decision import Bounds, Knob, Knobs, Range
from roofline_policies.contract.view import ForwardMode, IterationRecord, QueueState
from roofline_policies.control.controller import Controller, ControllerSettings
from roofline_policies.device.hardware import Ceilings
from roofline_policies.model.batch import BatchShape
from roofline_policies.policies import Proposal
from roofline_policies.slo.objectives import Slo
from roofline_policies.work import Bytes, Flops, Precision, Provenance, Work
from sglang_patches.observe.drafts import DraftTotals
from sglang_patches.observe.metrics import Metrics


class Halves:
    def propose(self, view):
        return (Proposal("Halves", Knob.MAX_RUNNING_REQUESTS, view.knobs.max_running_requests // 2, "half is enough"),)


class Halved:
    def step_s(self, *, prefill, decode, graph):
        return 0.5


def controller() -> Controller:
    return Controller(
        Halves(), ceilings=Ceilings("stand-in", {Precision.BF16: 100.0}, 10.0, 1, None, "made up"),
        bounds=Bounds({Knob.MAX_RUNNING_REQUESTS: Range(1, 64)}, {}), launch=Knobs(64, 512), slo=Slo(),
        settings=ControllerSettings(), started_s=0.0, predictor=Halved(),
    )  # fmt: skip


def decoded(done_s: float) -> IterationRecord:
    """One second in which 50 FLOPs and 4 bytes gave 8 tokens."""
    flops, moved = Flops.at(Precision.BF16, 50), Bytes(4, 0)
    work = Work(flops, flops, moved, moved, frozenset({Provenance.CLOSED_FORM}))
    return IterationRecord(1, ForwardMode.DECODE, 8, 8, 80, 0, False, work, 1.0, "a test's clock", done_s, 1.0)


if __name__ == "__main__":
    rank, runs_s, busy = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3] == "busy"
    there = controller()
    drafts = DraftTotals(launched=3)
    metrics = Metrics(there, model_name="a model", dp_rank=rank, drafts=drafts)
    if runs_s:
        for done_s in (1.0, 2.0):
            decode = BatchShape.of(decode_contexts=[10] * 8)
            there.launched(ForwardMode.DECODE, done_s - 1.0, decode=decode)
            there.observe(decoded(done_s))
        there.decide(2.0, QueueState(running=8))
        metrics.iteration(2e-4)
        metrics.publish(there, runs_s, busy=True)
        metrics.publish(there, runs_s, busy=busy)
    if sys.argv[4] == "killed":
        os._exit(0)
    if sys.argv[4] == "waits":
        print("published", flush=True)
        sys.stdin.read()
