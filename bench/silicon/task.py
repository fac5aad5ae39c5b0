"""What a process does for one measured run: the virtual run, and the latencies and parts that it comes to."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.report.one_request import tpot_s, ttft_s
from bench.report.records import ArmRun, RequestRecord
from bench.silicon.journal import StepJournal
from bench.virtual.arms import VirtualArm
from bench.virtual.settings import Experiment
from sglang_patches.virtual.clock import EPOCH_S

Floats = npt.NDArray[np.float64]


def predict(
    experiment: Experiment, arm: VirtualArm, full: int, told: Callable[[int, float], None]
) -> tuple[dict[str, Any], float]:
    """The run's figures, ready for JSON, and the seconds of one core that it took."""
    from bench.virtual.run import run_arm  # here: it imports SGLang, which the process that asks for this need not do

    began_s = time.process_time()
    journal = StepJournal()
    run, iterations = run_arm(experiment, arm, told, journal)
    return {**figures(experiment, run, journal, full), "iterations": iterations}, time.process_time() - began_s


def figures(experiment: Experiment, run: ArmRun, journal: StepJournal, full: int) -> dict[str, Any]:
    """Means over the run's requests of TTFT and TPOT, seconds, and of what the device did meanwhile.

    ``*_parts``: see ``StepJournal.between``; TPOT's are per token. ``*_p50_s``: medians.

    Raises:
        RuntimeError: a request did not end as it should.
    """
    assert experiment.closed is not None
    records = run.records
    broken = [record for record in records if not record.completed]
    if broken:
        raise RuntimeError(f"{len(broken)} of {len(records)} requests did not end whole: {broken[0].error}")
    weights = slot_weights(len(records), experiment.closed.concurrency, full)
    sent, first, last = (np.array(moments) + EPOCH_S for moments in zip(*map(_moments, records), strict=True))
    more = np.array([max(1, record.output_tokens - 1) for record in records])
    egress_s = experiment.path.egress_s
    waited = journal.between(sent, first - egress_s)
    decoded = journal.between(first - egress_s, last - egress_s)
    ttft = np.array([ttft_s(record) for record in records], np.float64)
    tpot = np.array([tpot_s(record) or 0.0 for record in records], np.float64)
    return {
        "status": "ok",
        "requests": len(records),
        "ttft_s": _mean(ttft, weights),
        "tpot_s": _mean(tpot, weights),
        "ttft_p50_s": _median(ttft, weights),
        "tpot_p50_s": _median(tpot, weights),
        "ttft_parts": {name: _mean(values, weights) for name, values in waited.items()},
        "tpot_parts": {name: _mean(values / more, weights) for name, values in decoded.items()},
        "kv_tokens": experiment.device.kv_tokens,
    }


def slot_weights(requests: int, concurrency: int, full: int) -> Floats:
    """How often each request counts, in the order in which they were sent, so that a short run stands for a full one.

    The first ``concurrency`` meet an empty server all at once, and the last see it drain: they count once. Those
    between are alike, and count as often as it takes to come to ``full`` requests per slot.
    """
    weights = np.ones(requests)
    between = requests - 2 * concurrency
    if between > 0:
        weights[concurrency:-concurrency] = max(1.0, (full - 2) * concurrency / between)
    return weights


def _moments(record: RequestRecord) -> Sequence[float]:
    return record.scheduled_s, record.token_s[0], record.token_s[-1]


def _mean(values: Floats, weights: Floats) -> float:
    return float(np.average(values, weights=weights))


def _median(values: Floats, weights: Floats) -> float:
    """The value that half of the weight lies below."""
    order = np.argsort(values)
    summed = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(summed, summed[-1] / 2)])
