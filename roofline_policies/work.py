"""Work: how many FLOPs and bytes an iteration executes, kept by kind and with its provenance.

Named tuples rather than frozen dataclasses: several are made in every scheduler iteration, at a fifth of the cost.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import NamedTuple


class Precision(StrEnum):
    """Arithmetic precision of a matrix product; each has a compute ceiling of its own."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"
    FP8 = "fp8"
    INT8 = "int8"
    FP4 = "fp4"

    # Enum hashes by a Python-level function; these are dictionary keys in every iteration.
    __hash__ = str.__hash__


class Provenance(StrEnum):
    """Where a figure comes from."""

    INLINE = "inline"  # attention counted on the device by its kernels, what shapes alone decide added to it
    MODULES = "modules"  # computed from the sizes of the modules that the server loaded
    CLOSED_FORM = "closed_form"  # computed from shapes
    NVML = "nvml"  # sampled
    ESTIMATED = "estimated"  # anything else


BYTES_PER_ELEMENT: Mapping[Precision, int] = MappingProxyType(
    {Precision.FP32: 4, Precision.BF16: 2, Precision.FP16: 2, Precision.FP8: 1, Precision.INT8: 1}
)
"""Of a whole element; four bits are half a byte, and never come without scales, so they are not in here."""


def stored_bytes(elements: int, precision: Precision) -> int:
    """Bytes of so many elements, packed and without scales."""
    if precision is Precision.FP4:
        return -(-elements // 2)
    return elements * BYTES_PER_ELEMENT[precision]


class Bytes(NamedTuple):
    """Bytes moved between memory and the device, by direction."""

    read: int = 0
    written: int = 0

    @property
    def total(self) -> int:
        return self.read + self.written

    def __add__(self, other: Bytes) -> Bytes:  # type: ignore[override]  # these add, they do not concatenate
        return Bytes(self.read + other.read, self.written + other.written)


class Flops(NamedTuple):
    """Floating-point operations by precision, a multiply-add counted as two. A count, never a rate."""

    fp32: int = 0
    bf16: int = 0
    fp16: int = 0
    fp8: int = 0
    int8: int = 0
    fp4: int = 0

    @classmethod
    def at(cls, precision: Precision, count: int) -> Flops:
        """``count`` FLOPs, all of one precision."""
        return cls(**{precision.value: count})

    @property
    def total(self) -> int:
        return self.fp32 + self.bf16 + self.fp16 + self.fp8 + self.int8 + self.fp4

    def items(self) -> list[tuple[Precision, int]]:
        """The precisions that occur, with their counts."""
        counts = zip(Precision, (self.fp32, self.bf16, self.fp16, self.fp8, self.int8, self.fp4), strict=True)
        return [(precision, count) for precision, count in counts if count]

    def __add__(self, other: Flops) -> Flops:  # type: ignore[override]  # these add, they do not concatenate
        return Flops(
            self.fp32 + other.fp32,
            self.bf16 + other.bf16,
            self.fp16 + other.fp16,
            self.fp8 + other.fp8,
            self.int8 + other.int8,
            self.fp4 + other.fp4,
        )


class Work(NamedTuple):
    """FLOPs and bytes of one launch, iteration or window.

    issued: FLOPs executed, full tiles and padded rows included; predicts time.
    useful: FLOPs of valid rows only; the numerator of MFU. ``useful <= issued``.
    requested: bytes the kernels ask for (active lanes x element size).
    compulsory: unique bytes that must move (each weight once, each KV page once per KV head).
        Traffic to memory lies between compulsory and requested.
    provenance: where the figures come from. A sum keeps every provenance that went into it.
    """

    issued: Flops = Flops()
    useful: Flops = Flops()
    requested: Bytes = Bytes()
    compulsory: Bytes = Bytes()
    provenance: frozenset[Provenance] = frozenset()

    def __add__(self, other: Work) -> Work:  # type: ignore[override]  # these add, they do not concatenate
        return Work(
            self.issued + other.issued,
            self.useful + other.useful,
            self.requested + other.requested,
            self.compulsory + other.compulsory,
            self.provenance | other.provenance,
        )

    @property
    def intensity_flops_per_byte(self) -> float:
        """Issued FLOPs per compulsory byte; the x axis of the roofline.

        Raises:
            ZeroDivisionError: no bytes were counted.
        """
        return self.issued.total / self.compulsory.total
