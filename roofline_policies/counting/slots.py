"""Where each kind of count lies in a stripe of the ledger."""

from __future__ import annotations

import triton.language as tl

from roofline_policies.work import Precision

LOAD, STORE, ATOMIC = 0, 1, 2
"""Bytes by direction."""

DOT: dict[Precision, int] = {precision: 3 + index for index, precision in enumerate(Precision)}
"""FLOPs of matrix products, by the precision of their operands."""

OTHER_DOT = 3 + len(Precision)
"""FLOPs of matrix products in a type that is no Precision (fp64, fp4)."""

USED = OTHER_DOT + 1
"""Counts a kernel carries."""

WIDTH = 16
"""Counters in a stripe: 16 int64 are the 128 bytes of a line of NVIDIA's L2 cache, so that two stripes share none."""

STRIPES = 64
"""Stripes of a kernel. Programs spread over them by their number, so that few meet in one atomic."""

_PRECISIONS: dict[str, Precision] = {
    "fp32": Precision.FP32,
    "bf16": Precision.BF16,
    "fp16": Precision.FP16,
    "int8": Precision.INT8,
    "uint8": Precision.INT8,
}


def dot_slot(operand: tl.dtype) -> int:
    """The slot of a product whose left operand has elements of type ``operand``."""
    if operand.is_fp8():
        return DOT[Precision.FP8]
    precision = _PRECISIONS.get(operand.name)
    return OTHER_DOT if precision is None else DOT[precision]


def scaled_slot(left_format: str, right_format: str) -> int:
    """The slot of a product of microscaled operands, by their element formats of OCP MX: that of the wider one."""
    formats = {left_format, right_format}
    if "bf16" in formats or "fp16" in formats:
        return DOT[Precision.BF16 if "bf16" in formats else Precision.FP16]
    return DOT[Precision.FP8] if formats & {"e4m3", "e5m2"} else OTHER_DOT
