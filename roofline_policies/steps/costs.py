"""What a predicted step costs beside the kernels that were measured: stated, not fitted."""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import isfinite

from roofline_policies.errors import InputError


@dataclass(frozen=True, slots=True)
class StepCosts:
    """What a step costs beside matrix products and attention. Estimates, not fitted, unless a source is given.

    small_kernels: per layer: two norms with residual, rotary embedding, KV store, activation. head_kernels: per step:
        embedding, last norm, sampling.
    small_kernel_s: seconds of a kernel with next to no work inside a graph; the least time in the H200's GEMM table.
    small_memory: share of the bandwidth that small kernels reach on large operands. Source: the H200 system file of
        ai-dynamo/aiconfigurator.
    eager_kernel_s: host seconds per kernel of a step without a graph, SGLang's own work around the launch included.
        Source: pull request 40346 of sgl-project/sglang: Qwen3-0.6B on an RTX 5090, 5.44 to 5.51 ms per token where
        decode batches were beyond the captured sizes; 28 layers of 10 kernels, and 6, by this count.
    host_s: host seconds per step that the device waits for; 0 where the overlap schedule hides them all.
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
    host_s: float = 0.0
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
