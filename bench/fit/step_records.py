"""Reads what a server recorded of its iterations (``record`` of conf/adaptive.yaml): one JSON object per line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bench.checks import choice, count, number
from bench.traffic.files import open_trace
from roofline_policies.contract.view import ForwardMode
from roofline_policies.errors import InputError
from roofline_policies.model.batch import BatchShape
from roofline_policies.model.rank_model import RankModel
from roofline_policies.work import Provenance

WARM_UP = 5
"""Iterations of a server that are left out: its first ones load and allocate what later ones find ready. A judgement: a
record has thousands, so that a few too many cost a fit nothing."""

_MODES = [mode.value for mode in ForwardMode]
_PAIR = BatchShape(causal_pairs=1)


class StepRecord(NamedTuple):
    """One iteration of a server.

    shape: its batch; pairs follow from the FLOPs. flops: issued. bytes: compulsory.
    seconds: of the forward pass. done_s: when that was over, on the monotonic clock of the server's machine.
    step_s: seconds since the one before was done; after_idle: there was none to count from.
    """

    mode: ForwardMode
    shape: BatchShape
    flops: int
    bytes: int
    seconds: float
    done_s: float
    step_s: float
    after_idle: bool

    @property
    def start_s(self) -> float:
        """When the forward pass began."""
        return self.done_s - self.seconds

    @property
    def host_s(self) -> float:
        """Seconds between the forward pass before and this one."""
        return self.step_s - self.seconds


def read_steps(files: Iterable[str | Path], model: RankModel) -> list[StepRecord]:
    """The iterations in the files, in order, without the first of each server.

    model: what one rank of the server runs; the batch is worked out from the FLOPs that it says the batch has.

    Raises:
        InputError: a file or a line cannot be used, or is of another model or of a server whose work is not the closed
            form.
    """
    return [step for file in files for step in _read(file, model)]


def _read(file: str | Path, model: RankModel) -> Iterator[StepRecord]:
    last = started = 0
    with open_trace(file) as lines:
        for line_number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            iteration, step = parse(line, f"{file}: line {line_number}", model)
            if iteration < last or not last:  # another server began to append to the file
                started = line_number
            last = iteration
            if line_number >= started + WARM_UP:
                yield step


def parse(line: str, where: str, model: RankModel) -> tuple[int, StepRecord]:
    """One line: the iteration's number, and what is needed of it. ``where`` names the line in errors.

    Raises:
        InputError: as for ``read_steps``.
    """
    conf = _object(line, where)
    return count(conf, "iteration", where), _step(conf, where, model)


def _object(line: str, where: str) -> Mapping[str, Any]:
    allowed = "one JSON object per line"
    try:
        conf = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"is not JSON ({error.msg})", where=where, value=line.strip()[:80], allowed=allowed) from None
    if not isinstance(conf, dict):
        raise InputError("is not an object", where=where, value=line.strip()[:80], allowed=allowed)
    return conf


def _step(conf: Mapping[str, Any], where: str, model: RankModel) -> StepRecord:
    provenance = conf.get("provenance")
    # Both follow from the sums of the batch, so that these can be had back; what attention counted itself does not.
    from_shapes = [[one.value] for one in (Provenance.MODULES, Provenance.CLOSED_FORM)]
    if provenance not in from_shapes:
        allowed = " or ".join(map(str, from_shapes))
        raise InputError("does not tell the batch", where=where, key="provenance", value=provenance, allowed=allowed)
    after_idle = conf.get("after_idle")
    if not isinstance(after_idle, bool):
        raise InputError("is not a choice", where=where, key="after_idle", value=after_idle, allowed="true, false")
    return StepRecord(
        mode=ForwardMode(choice(conf, "mode", where, _MODES)),
        shape=_shape(conf, where, model),
        flops=count(conf, "issued_flops", where),
        bytes=count(conf, "compulsory_bytes", where),
        seconds=number(conf, "seconds", where, above=0.0),
        done_s=number(conf, "done_s", where),
        step_s=number(conf, "step_s", where, above=0.0),
        after_idle=after_idle,
    )


def _shape(conf: Mapping[str, Any], where: str, model: RankModel) -> BatchShape:
    """The batch whose work was recorded: what is left of the FLOPs beside the linear layers is attention's."""
    requests, new = (count(conf, key, where) for key in ("requests", "new_tokens"))
    padded = count(conf, "padded_rows", where, low=0)
    decode = conf.get("mode") == ForwardMode.DECODE.value
    bare = BatchShape(requests, new, count(conf, "context_tokens", where), 0, 0, requests, padded, padded * decode)
    beside, pair = model.work(bare), model.attention_work(_PAIR)
    causal, rest = divmod(count(conf, "useful_flops", where) - beside.useful.total, pair.useful.total)
    pairs = (count(conf, "issued_flops", where) - beside.issued.total) // pair.useful.total
    if rest or not 0 < causal <= pairs:
        allowed = "FLOPs of the model that was served"
        raise InputError(
            "is of another model", where=where, key="issued_flops", value=conf["issued_flops"], allowed=allowed
        )
    # Everything that attention issued, in pairs: the rectangle of a padded product, the tiles of a kernel that skips.
    return bare._replace(pairs=pairs, causal_pairs=causal)
