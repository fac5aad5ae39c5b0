"""Tensors as the server would pass them to its attention kernels, and what attention should make of them."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import torch


class Builder:
    """Makes tensors on one device from one seed; on the meta device they have no contents."""

    def __init__(self, device: str, dtype: torch.dtype, seed: int) -> None:
        self.device, self.dtype = device, dtype
        self.random = torch.Generator().manual_seed(seed)
        self.on_device = None if device in ("cpu", "meta") else torch.Generator(device).manual_seed(seed)

    def normal(self, *shape: int) -> torch.Tensor:
        values = torch.empty(shape, dtype=self.dtype, device=self.device)
        if self.on_device is not None:  # billions of values at serving sizes: the host would take minutes
            return values.normal_(generator=self.on_device)
        return values if self.device == "meta" else values.copy_(torch.randn(shape, generator=self.random))

    def integers(self, values: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype).to(self.device)

    def slots(self, lengths: Sequence[int], shared: int, page_size: int) -> tuple[list[torch.Tensor], int]:
        """Each request's slots, pages shuffled, the first `shared` tokens common to all; size of the cache in slots.

        As in the server, the first page stays free: padded tokens are written there.
        """
        if shared % page_size or shared > min(lengths):
            raise ValueError(f"shared_prefix = {shared}: not whole pages of {page_size}, or longer than a request")
        pages = [ceil((length - shared) / page_size) for length in lengths]
        total = (common := shared // page_size) + sum(pages)
        if self.device == "meta":
            return [torch.empty(n, dtype=torch.int64, device="meta") for n in lengths], (total + 1) * page_size
        shuffled = torch.randperm(total, generator=self.random) + 1
        tables, end = [], common
        for length, own in zip(lengths, pages, strict=True):
            start, end = end, end + own
            table = torch.cat([shuffled[:common], shuffled[start:end]])[:, None] * page_size + torch.arange(page_size)
            tables.append(table.flatten()[:length].to(self.device))
        return tables, (total + 1) * page_size


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, allowed: torch.Tensor | None = None
) -> torch.Tensor:
    """Attention of one request in float32: q [n, heads, dk], k [m, kv_heads, dk], v [m, kv_heads, dv]."""
    q, k, v = q.float(), k.float(), v.float()
    group = q.shape[1] // k.shape[1]
    scores = torch.einsum("nhd,mhd->hnm", q, k.repeat_interleave(group, 1)) * scale
    if allowed is not None:
        scores = scores.masked_fill(~allowed, float("-inf"))
    return torch.einsum("hnm,mhd->nhd", scores.softmax(-1), v.repeat_interleave(group, 1))
