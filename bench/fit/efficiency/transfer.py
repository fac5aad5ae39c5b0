"""How far another device's coefficients are off on these tables: what a device that nobody measured would get."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from bench.fit.efficiency.fitting import Error, Kernel, from_memory, held_out, summary
from bench.fit.efficiency.tables import Floats
from roofline_policies.steps.efficiency import Efficiency

SPLIT = "shapes"

_SAME: Mapping[str, tuple[str, ...]] = MappingProxyType({
    "decode": ("kernel", "kv_precision", "max_head_dim"),
    "prefill": ("kernel", "precision", "kv_precision", "max_head_dim"),
    "experts": ("name",),
    "latent_decode": ("kv_precision",),
    "latent_prefill": ("kernel", "kv_precision"),
    "expanded_prefill": ("kernel", "kv_precision"),
    "latent_products": ("precision",),
    "states": ("kind", "phase"),
    "collectives": ("operation", "library", "ranks"),
    "quantise": ("name",),
})  # fmt: skip
"""What a kernel of two devices has to have in common to be the same."""


def counterpart(kernel: Kernel, of: Efficiency) -> Any | None:
    """The other device's coefficients of the same kernel, None where it has none."""
    if kernel.key == "gemm":
        return of.gemm.get(kernel.name)
    names = _SAME[kernel.key]
    wanted = [getattr(kernel.start, name) for name in names]
    return next((e for e in getattr(of, kernel.key) if [getattr(e, name) for name in names] == wanted), None)


def errors_of(kernels: Iterable[Kernel], of: Efficiency) -> list[Error]:
    """Errors on the rows that a fit to these tables holds out by shape: of each kernel, and of all of an operation.

    A kernel that the other device has not is left out.
    """
    errors: list[Error] = []
    pooled: dict[str, list[list[Floats]]] = {}
    for whole in kernels:
        e = counterpart(whole, of)
        if e is None:
            continue
        kernel, cached = from_memory(whole)
        rows = np.flatnonzero(held_out(kernel.groups[SPLIT]))
        theirs = np.array([kernel.predict(e, row) for row in rows.tolist()])
        found = [np.abs(s / kernel.seconds[rows] - 1) for s in (theirs, kernel.roofline_s[rows])]
        errors.append(summary(kernel.operation, kernel.name, SPLIT, found, cached))
        pooled.setdefault(kernel.operation, []).append(found)
    for operation, parts in pooled.items():
        together = [np.concatenate(of_all) for of_all in zip(*parts, strict=True)]
        errors.append(summary(operation, "all", SPLIT, together))
    return errors
