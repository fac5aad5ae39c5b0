"""FLOPs that attention kernels issue in one layer, without what they skip of the masked scores.

A kernel that works in tiles leaves out those that a mask empties, and issues whole ones otherwise: masked scores on the
diagonal and at the edge of a window, rows and keys that only fill a tile, head dimensions rounded up (``Fa3`` and
``TritonAttention`` of ``attention_tiles``). A padded product (``PaddedProduct``) skips nothing. Of a kernel whose tiles
are not known here the scores that are seen are counted and no others (``SeenOnly``), a bound from below.

Requests are (new tokens, prefix tokens) pairs. A multiply-add counts as two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

Requests = Sequence[tuple[int, int]]


class AttentionKernel(Protocol):
    """FLOPs issued in one layer of the shape that a device runs.

    window: keys before its own that a query sees; None: all of them.
    pair_flops: of one score and its part of the weighted sum, all query heads. masked_pair_flops: those of a masked
    score where none is skipped, 0 for a kernel that skips.
    """

    @property
    def window(self) -> int | None: ...

    @property
    def pair_flops(self) -> int: ...

    @property
    def masked_pair_flops(self) -> int: ...

    def prefill_flops(self, requests: Requests) -> int:
        """Of one launch over the new tokens of all these requests."""
        ...

    def decode_flops(self, contexts: Sequence[int], padded: int = 0) -> int:
        """Of one new token per request, which sees so many tokens, itself included; and of rows that pad a graph."""
        ...


class Windowed(NamedTuple):
    """The kernels of layers whose rows see a window of keys; those that ``Backends`` are for all."""

    prefill: AttentionKernel
    decode: AttentionKernel

    def sums(self, prefill: Requests, decode_contexts: Sequence[int], padded: int = 0) -> tuple[int, int, int]:
        """KV tokens that are read, scores that are seen, and FLOPs of one layer beyond those scores', of a batch that
        runs in the kernel of prefill (``prefill`` has all its rows) or in that of decode."""
        window = self.prefill.window
        if prefill:
            read = sum(read_keys(new, prefix, window) for new, prefix in prefill)
            seen = sum(seen_pairs(new, prefix, window) for new, prefix in prefill)
            return read, seen, self.prefill.prefill_flops(prefill) - self.prefill.pair_flops * seen
        read = sum([read_keys(1, length - 1, window) for length in decode_contexts])
        return read, read, self.decode.decode_flops(decode_contexts, padded) - self.prefill.pair_flops * read


class Backends(NamedTuple):
    """The kernels of a server's steps.

    prefill: of batches with prompts in them, of mixed ones, and of verify steps. decode: of one token per request.
    name: as SGLang calls them, for people. windowed: the kernels of layers with a window, None where there are none.
    """

    prefill: AttentionKernel
    decode: AttentionKernel
    name: str
    windowed: Windowed | None = None


def seen_pairs(new: int, prefix: int, window: int | None = None) -> int:
    """Scores of a request that are not masked: ``new * prefix + new * (new + 1) / 2``, less what is before a window."""
    seen = new * prefix + new * (new + 1) // 2
    if window is None or prefix + new - 1 <= window:
        return seen
    # Row i misses its first prefix + i - window keys, from the row on where that is positive.
    first = max(0, window - prefix)
    most, least = prefix + new - 1 - window, prefix + first - window
    return seen - (most + least) * (new - first) // 2


def read_keys(new: int, prefix: int, window: int | None = None) -> int:
    """KV tokens that some row of a request sees, its own included."""
    return new + (prefix if window is None else min(prefix, window))


@dataclass(frozen=True, slots=True)
class SeenOnly:
    """A kernel that skips what is masked, as if it had no tiles. heads, head_dim: of the queries."""

    heads: int
    head_dim: int
    window: int | None = None

    @property
    def pair_flops(self) -> int:
        return 4 * self.heads * self.head_dim

    @property
    def masked_pair_flops(self) -> int:
        return 0

    def prefill_flops(self, requests: Requests) -> int:
        return self.pair_flops * sum(seen_pairs(new, prefix, self.window) for new, prefix in requests)

    def decode_flops(self, contexts: Sequence[int], padded: int = 0) -> int:
        return self.pair_flops * sum(read_keys(1, length - 1, self.window) for length in contexts)


@dataclass(frozen=True, slots=True)
class PaddedProduct:
    """PyTorch's scaled dot product as the ``torch_native`` backend calls it: a mask is laid over the whole rectangle.

    heads, head_dim: of the queries. padded_queries: queries are padded to the whole context, as SGLang's own code does;
    without, the new rows alone are multiplied, and with no key that a window hides from all of them, as
    ``sglang_patches/cpu/attention.py`` has it.

    What a fused kernel behind PyTorch's function may leave out of the rectangle is counted: which one runs is PyTorch's
    choice.

    Source: SGLang 0.5.23, ``TorchNativeAttnBackend._run_sdpa_forward_extend`` and ``_run_sdpa_forward_decode``.
    """

    heads: int
    head_dim: int
    padded_queries: bool = False
    window: int | None = None

    @property
    def pair_flops(self) -> int:
        return 4 * self.heads * self.head_dim

    @property
    def masked_pair_flops(self) -> int:
        return self.pair_flops

    def prefill_flops(self, requests: Requests) -> int:
        pairs = 0
        for new, prefix in requests:
            if self.padded_queries:
                pairs += (new + prefix) ** 2
            else:
                pairs += new * read_keys(new, prefix, self.window)
        return self.pair_flops * pairs

    def decode_flops(self, contexts: Sequence[int], padded: int = 0) -> int:
        if self.padded_queries or self.window is None:
            return self.pair_flops * sum(contexts)
        return self.pair_flops * sum(read_keys(1, length - 1, self.window) for length in contexts)
