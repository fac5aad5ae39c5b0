"""What a predicted step costs beside the kernels that were measured: stated, or fitted to runs of whole servers."""

from __future__ import annotations

import io
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files
from math import isfinite

from roofline_policies.errors import InputError


@dataclass(frozen=True, slots=True)
class StepCosts:
    """What a step costs beside matrix products and attention. Estimates, unless a source is given.

    conf/costs has what ``bench.silicon.fit`` found for some devices; see ``costs_of``.

    small_kernels: per layer: two norms with residual, rotary embedding, KV store, activation. head_kernels: per step:
        embedding, last norm, sampling.
    small_kernel_s: seconds of a kernel with next to no work inside a graph; the least time in the H200's GEMM table.
    small_memory: share of the bandwidth that small kernels reach on large operands. Source: the H200 system file of
        ai-dynamo/aiconfigurator.
    eager_kernel_s: host seconds per kernel of a step without a graph, SGLang's own work around the launch included.
        Source: pull request 40346 of sgl-project/sglang: Qwen3-0.6B on an RTX 5090, 5.44 to 5.51 ms per token where
        decode batches were beyond the captured sizes; 28 layers of 10 kernels, and 6, by this count.
    eager_gap_s: seconds per kernel that a step with prompts and without a graph takes longer than kernels and launches
        come to: gaps that none of both hides. Steps that only decode take what eager_kernel_s was reported for.
    decode_attention: by what share attention of steps that only decode takes longer in a server than by itself, where
        tables have it: lengths that differ, caches that other kernels have filled.
    host_s, host_request_s: seconds per step, and per request of a step that only decodes, that a server takes longer
        than its kernels: gaps between them, and what of the host's work the overlap schedule does not hide. 0: all is
        hidden.
    allreduce_s: seconds of a collective without data. link_bytes_per_s: bytes/s of a rank's links, one way; NVLink 4's
        450 GB/s of the H100 and H200 datasheets, of which 0.8.
    routing_kernels: per layer of experts: choosing them, sorting rows by expert (two), adding up what they return.
    latent_memory, latent_compute: shares of the ceilings that attention to latents reaches in absorbed form, for which
        there is no table. A little below what FlashMLA's page says of its kernel on an H800: 3000 GB/s, 660 TFLOP/s.

    Raises:
        InputError: a value that is negative, or a bandwidth that is not positive.
    """

    small_kernels: int = 5
    head_kernels: int = 5
    small_kernel_s: float = 2.4e-6
    small_memory: float = 0.8
    eager_kernel_s: float = 1.9e-5
    eager_gap_s: float = 0.0
    decode_attention: float = 0.0
    host_s: float = 0.0
    host_request_s: float = 0.0
    allreduce_s: float = 8e-6
    link_bytes_per_s: float = 3.6e11
    routing_kernels: int = 4
    latent_memory: float = 0.8
    latent_compute: float = 0.6

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            share = item.name in ("small_memory", "latent_memory", "latent_compute")
            least = 1e-3 if share or item.name == "link_bytes_per_s" else 0
            if not isfinite(value) or value < least or (share and value > 1):
                allowed = f"a finite number of at least {least:g}" + (", at most 1" if share else "")
                raise InputError("out of range", where="StepCosts", key=item.name, value=value, allowed=allowed)


DEFAULT_COSTS = StepCosts()
_GROUP = "conf/costs"
FRONT = "front_s"


@dataclass(frozen=True, slots=True)
class FittedCosts:
    """What was fitted to runs of whole servers on a device. source, date: of the runs, and of the fit.

    front_s: how much later a first token reached its client than its steps say, in such runs. It is no part of a
        client's turn: with it there, requests would stay in step that did not.
    costs: of steps.

    Apart from the device's efficiencies, which are of kernels alone: other measurements, another command, another date.
    """

    source: str
    date: str
    front_s: float
    costs: StepCosts


def costs_of(device: str) -> StepCosts:
    """Those fitted for a device of the catalogue, e.g. ``h200``; DEFAULT_COSTS where no run of a server was at hand.

    Raises:
        InputError: its file has a key or a value that cannot be used.
    """
    fitted = fitted_costs(device)
    return DEFAULT_COSTS if fitted is None else fitted.costs


@cache
def fitted_costs(device: str) -> FittedCosts | None:
    """The shipped file of a device of the catalogue; None where there is none.

    Raises:
        InputError: it has a key or a value that cannot be used.
    """
    from omegaconf import OmegaConf  # here, so that costs themselves need nothing installed

    file, where = files("roofline_policies.conf") / "costs" / f"{device}.yaml", f"{_GROUP}/{device}.yaml"
    if not file.is_file():
        return None
    values = dict(OmegaConf.to_container(OmegaConf.load(io.StringIO(file.read_text(encoding="utf-8")))))  # type: ignore[arg-type]
    texts = {}
    for key in ("source", "date"):
        texts[key] = values.pop(key, None)
        if not isinstance(texts[key], str) or not texts[key]:
            raise InputError("must be a text that is not empty", where=where, key=key, value=texts[key])
    known = [FRONT, *(item.name for item in fields(StepCosts))]
    for key, value in values.items():
        if key not in known:
            raise InputError("unknown key", where=where, key=str(key), allowed=known)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError("is not a number", where=where, key=str(key), value=value)
    front_s = float(values.pop(FRONT, 0.0))
    if not isfinite(front_s) or front_s < 0:
        raise InputError("out of range", where=where, key=FRONT, value=front_s, allowed="a finite number of at least 0")
    return FittedCosts(**texts, front_s=front_s, costs=StepCosts(**values))
