"""Products with stored weights of 8 and 4 bits in plain torch: weights are turned back, activations stay as they are.

That is what SGLang's compiled CPU operations do with fp8 (it calls it W8A16). With 4 bits they also round activations
to 8; these do not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import linear

_PER_INT32 = 8
_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where in an int32 AWQ keeps each of eight consecutive columns, in units of 4 bits.

Source: https://arxiv.org/abs/2306.00978, its released packing: columns 0, 2, 4, 6, 1, 3, 5, 7 from the lowest bits up.
"""


def by_blocks(weight: torch.Tensor, scales: torch.Tensor, block: list[int], dtype: torch.dtype) -> torch.Tensor:
    """A weight [rows, columns] whose blocks of block[0] x block[1] elements have a scale each, in `dtype`."""
    rows, columns = weight.shape
    spread = scales.repeat_interleave(block[0], dim=0)[:rows].repeat_interleave(block[1], dim=1)[:, :columns]
    return (weight.float() * spread).to(dtype)


def fp8_scaled_mm_cpu(
    x: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor,
    block_size: list[int],
    bias: torch.Tensor | None,
    out_dtype: torch.dtype,
    is_vnni: bool,
) -> torch.Tensor:
    """x [..., in] times an fp8 weight [out, in] with a scale for each block (float32 [blocks, blocks]): [..., out]."""
    return _product(x, by_blocks(weight, scales, block_size, x.dtype), bias, out_dtype)


def fp8_per_tensor_scaled_mm_cpu(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None,
    out_dtype: torch.dtype,
    is_vnni: bool,
) -> torch.Tensor:
    """The same with one scale for the weight (float32 [1]) or one for each row of it (float32 [out] or [out, 1])."""
    spread = scale.float().reshape(-1, 1)
    return _product(x, (weight.float() * spread).to(x.dtype), bias, out_dtype)


def _product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out_dtype: torch.dtype) -> torch.Tensor:
    return linear(x, weight, None if bias is None else bias.to(x.dtype)).to(out_dtype)


def fours(packed: torch.Tensor, dim: int) -> torch.Tensor:
    """The eight numbers of 4 bits in each int32, lowest bits first along `dim`: int32, eight times as long."""
    shifts = torch.arange(0, 4 * _PER_INT32, 4, dtype=torch.int32)
    apart = (packed.unsqueeze(-1) >> shifts) & 0xF
    return apart.movedim(-1, dim + 1).flatten(dim, dim + 1)


def packed(numbers: torch.Tensor, dim: int) -> torch.Tensor:
    """The inverse of ``fours``."""
    apart = numbers.to(torch.int64).unflatten(dim, (-1, _PER_INT32)).movedim(dim + 1, -1)
    joined: torch.Tensor = (apart << torch.arange(0, 4 * _PER_INT32, 4)).sum(-1)
    return (joined - ((joined >> 31) << 32)).to(torch.int32)


def convert_weight_packed_scale_zp(
    qweight: torch.Tensor, qzeros: torch.Tensor, scales: torch.Tensor, algorithm: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Bring AWQ (0) and GPTQ (1) to one layout of the same bytes: eight inputs to an int32, zero points as they are.

    AWQ: qweight int32 [in, out / 8], columns interleaved; qzeros int32 [groups, out / 8], likewise. GPTQ: qweight int32
    [in / 8, out]; qzeros int32 [groups, out / 8], one less than they are, 15 for none. A dimension of experts may come
    first. scales: [groups, out]. Returns qweight int32 [in / 8, out], qzeros int32 [groups, out / 8], and the scales.
    """
    dim = qweight.ndim - 1
    if algorithm == 0:
        weights, zeros = (_columns_in_order(fours(x, dim)) for x in (qweight, qzeros))
        return packed(weights, dim - 1), packed(zeros, dim), scales
    return qweight, packed((fours(qzeros, dim) + 1) & 0xF, dim), scales


def _columns_in_order(columns: torch.Tensor) -> torch.Tensor:
    ordered: torch.Tensor = columns.unflatten(-1, (-1, _PER_INT32))[..., list(_AWQ_ORDER)].flatten(-2)
    return ordered


def by_groups(qweight: torch.Tensor, qzeros: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A weight [out, in] in `dtype` from the layout of ``convert_weight_packed_scale_zp``; a group is of inputs."""
    weights, zeros = fours(qweight, 0), fours(qzeros, 1)
    group = weights.shape[0] // scales.shape[0]
    zeros, spread = (x.repeat_interleave(group, dim=0) for x in (zeros, scales))
    return ((weights - zeros).float() * spread.float()).to(dtype).t()


def int4_scaled_mm_cpu(
    x: torch.Tensor, qweight: torch.Tensor, qzeros: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """x [..., in] times a weight of 4 bits in the layout of ``convert_weight_packed_scale_zp``: [..., out]."""
    return _product(x, by_groups(qweight, qzeros, scales, x.dtype), bias, x.dtype)


_STEPS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""What three bits of e2m1 stand for; the fourth is the sign.

Source: Open Compute Project, Microscaling Formats (MX) Specification 1.0, section 5.3.3.
"""


def by_powers(weight: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A weight [out, in] in `dtype` from MXFP4: uint8 [out, in / 2], the first of two in the lower bits.

    scales: uint8 [out, in / 32], exponents of two beside 127.
    """
    fours = torch.stack([weight & 0xF, weight >> 4], dim=-1).flatten(-2).long()
    numbers = torch.tensor([*_STEPS, *(-step for step in _STEPS)])[fours]
    powers = (scales.float() - 127).exp2().repeat_interleave(numbers.shape[-1] // scales.shape[-1], dim=-1)
    return (numbers * powers).to(dtype)


def convert_scale_packed(scales: torch.Tensor) -> torch.Tensor:
    """Scales of MXFP4 as they are."""
    return scales.clone()


OPERATIONS: dict[str, Callable[..., Any]] = {
    operation.__name__: operation
    for operation in (
        convert_scale_packed,
        convert_weight_packed_scale_zp,
        fp8_per_tensor_scaled_mm_cpu,
        fp8_scaled_mm_cpu,
        int4_scaled_mm_cpu,
    )
}
"""What torch finds in the `sgl_kernel` namespace of its operations, by name."""
