"""Agree: one rank decides, every rank applies the same in the same iteration.

Under tensor parallelism each rank runs a scheduler of its own, and they must form the same batches, or a collective
waits for ever. So must the stages of a pipeline. The deciding rank puts its decision among the requests that SGLang
already broadcasts to the ranks that share a waiting queue and relays from stage to stage, so it arrives everywhere in
the same iteration, in order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sglang.srt.runtime_context import get_parallel

from roofline_policies.contract.decision import Knobs
from roofline_policies.slo.admission import Rank
from sglang_patches.needs.objects import Parallel


@dataclass(frozen=True, slots=True)
class KnobsUpdate:
    """The setting from this iteration on; travels as a control request.

    clock_s: the deciding rank's time, by which every rank tells when requests came. moved: waiting requests that get
    another rank in the queue, by their id. answer_s: how long answers are expected to take from their first token to
    their last.
    """

    knobs: Knobs
    clock_s: float
    moved: Mapping[str, Rank] = field(default_factory=dict)
    answer_s: float = 0.0
    rid: str = "roofline-knobs"


def ranks() -> Parallel:
    """Where this process stands among the ranks."""
    parallel: Parallel = get_parallel()
    return parallel


def decides_here() -> bool:
    """Whether this rank decides: the first of the ranks that share a waiting queue, in the first stage of a pipeline.

    Under data-parallel attention each group of attention ranks has a queue of its own, and a rank that decides.
    """
    parallel = ranks()
    return bool(parallel.attn_tp_rank == 0 and parallel.attn_cp_rank == 0 and parallel.pp_rank == 0)


def alone() -> bool:
    """Whether no other rank shares this one's waiting queue."""
    parallel = ranks()
    return bool(parallel.attn_tp_size == 1 and parallel.attn_cp_size == 1 and parallel.pp_size == 1)


def scheduler_index() -> int:
    """Which of the schedulers that answer the front end this one is or works for: by replica, then attention group."""
    parallel = ranks()
    return int((parallel.dp_rank or 0) * parallel.attn_dp_size + parallel.attn_dp_rank)
