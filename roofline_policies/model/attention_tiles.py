"""Attention kernels that work in tiles: FlashAttention 3, and SGLang's Triton kernels. FLOPs issued in one layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from roofline_policies.model.attention_kernels import Requests, read_keys

GROUPED_ROWS, GROUPED_KEYS = 16, 32
"""Query rows and keys of a tile of ``_fwd_grouped_kernel_stage1`` (BLOCK_H, BLOCK_N)."""

WINDOW_TILE = 128
"""Deterministic inference pads a window's keys so that they start at a multiple of it."""


class Tile(NamedTuple):
    """Query rows and keys that are multiplied at a time."""

    rows: int
    keys: int


def fa3_tile(
    head_dim: int,
    element_bytes: int,
    most_rows: int,
    page_size: int = 1,
    *,
    window: bool = False,
    one_row: bool = False,
) -> Tile:
    """The tile of FlashAttention 3 for a launch whose longest request has ``most_rows`` rows in a KV head's tiles.

    element_bytes: of the products. page_size: keys come by TMA only where a tile is a whole number of pages and the
    rows are more than one tile; without TMA some tiles are narrower. one_row: one new token per request, for which some
    head dimensions run the kernel without a causal mask.

    Up to 64 rows, 64 and 128 wide heads have a tile of 64 rows.

    Source: the template arguments of the Hopper kernels in ``flash_ops`` of sglang-kernel 0.4.10; which of them runs:
    Dao-AILab/flash-attention, ``hopper/flash_api.cpp`` (``get_pagedkv_tma``, the special case of one row).
    """
    dim = fa3_head_dim(head_dim)
    causal = not window and not (one_row and (dim <= 64 or dim > 128))
    tile = _fa3_tile(dim, element_bytes, most_rows <= 64, causal, window, tma=True)
    if page_size % tile.keys or most_rows <= tile.rows:
        tile = _fa3_tile(dim, element_bytes, most_rows <= 64, causal, window, tma=False)
    return tile


def _fa3_tile(dim: int, element_bytes: int, few: bool, causal: bool, window: bool, *, tma: bool) -> Tile:
    if element_bytes == 1:
        if dim == 64:
            return Tile(64, 128) if few else Tile(192, 160)
        if dim == 96:
            return Tile(192, 128)
        if dim == 128:
            return Tile(64, 96) if few else Tile(128, 224 if tma else 160)
        return Tile(128, 128 if window else 160) if dim == 192 else Tile(128, 64 if window else 128)
    if dim == 64:
        return Tile(64, 192) if few else Tile(192, 192 if window or (tma and not causal) else 128)
    if dim == 96:
        return Tile(192, 144 if tma and not window else 128)
    if dim == 128:
        return Tile(64 if few else 128, 128 if causal or window or not tma else 176)
    return Tile(128, 112 if tma and not window else 96) if dim == 192 else Tile(128, 64 if window else 80)


def fa3_head_dim(head_dim: int) -> int:
    """The width that FlashAttention 3 pads a head to. Source: ``round_up_headdim`` of ``hopper/flash_api.cpp``."""
    return next((dim for dim in (64, 96, 128, 192) if head_dim <= dim), 256)


@dataclass(frozen=True, slots=True)
class Fa3:
    """FlashAttention 3 over a paged cache; tiles beyond the diagonal and before a window are skipped.

    element_bytes: of the products, which is the cache's: with an 8 bit cache they are 8 bit ones. page_size: of the
    cache.

    The query heads of a KV head share tiles (packed GQA, which launches of varying lengths always have). How keys are
    split over SMs changes no count. A row that pads a graph has one tile of keys.

    Source: Dao-AILab/flash-attention, ``hopper/block.h`` for the tiles that a tile of rows meets.
    """

    heads: int
    kv_heads: int
    head_dim: int
    element_bytes: int = 2
    page_size: int = 1
    window: int | None = None

    @property
    def pair_flops(self) -> int:
        return 4 * self.heads * self.head_dim

    @property
    def masked_pair_flops(self) -> int:
        return 0

    def prefill_flops(self, requests: Requests) -> int:
        if not requests:
            return 0
        most = max(new for new, _ in requests)
        tile, window = self._tile(most, max(new + prefix for new, prefix in requests))
        group = self.heads // self.kv_heads
        return self._per_tile(tile) * sum(_met(new, prefix, tile, group, window) for new, prefix in requests)

    def decode_flops(self, contexts: Sequence[int], padded: int = 0) -> int:
        tile, window = self._tile(1, max(contexts, default=1))
        if window is None:
            met = sum([-(-length // tile.keys) for length in contexts])
        else:
            met = sum([-(-length // tile.keys) - max(0, length - 1 - window) // tile.keys for length in contexts])
        row_tiles = -(-self.heads // (self.kv_heads * tile.rows))
        return self._per_tile(tile) * row_tiles * (met + padded)

    def _tile(self, most_new: int, longest: int) -> tuple[Tile, int | None]:
        """The launch's tile, and its window where some request is longer than that."""
        window = None if self.window is None or self.window >= longest - 1 else self.window
        rows = most_new * (self.heads // self.kv_heads)
        windowed, one_row = window is not None, most_new == 1
        return fa3_tile(
            self.head_dim, self.element_bytes, rows, self.page_size, window=windowed, one_row=one_row
        ), window

    def _per_tile(self, tile: Tile) -> int:
        return 4 * self.kv_heads * fa3_head_dim(self.head_dim) * tile.rows * tile.keys


def triton_tile(head_dim: int, capability: tuple[int, int]) -> Tile:
    """The tile of ``_fwd_kernel`` on a CUDA device of that compute capability; the interpreter's, (0, 0), is 64 x 64.

    Source: SGLang 0.5.23, ``_get_block_sizes_for_extend_attention``; a test holds this against it.
    """
    major, minor = capability
    wide, wider = head_dim > 128, head_dim > 256
    if major == 12 or (major == 8 and minor in (6, 9)):
        return Tile(32, 32) if wider else Tile(64, 64 if wide else 128)
    if major == 10:
        return Tile(16 if wider else 64, 64)
    if major >= 9:
        return Tile(32 if wider else 64 if wide else 128, 64)
    if major == 8:
        return Tile(32, 64) if wider else Tile(64, 64) if wide else Tile(128, 128)
    return Tile(32, 32) if wide else Tile(64, 64)


@dataclass(frozen=True, slots=True)
class TritonAttention:
    """SGLang's Triton kernels: ``_fwd_kernel`` (extend), ``_fwd_grouped_kernel_stage1`` (decode).

    tile: of extend, see ``triton_tile``. unified: deterministic inference, whose ``_fwd_kernel_unified`` meets every
    key where there is no window.

    A tile of extend has rows of one query head. The cached prefix, from which the backend has cut what no row of the
    chunk's first can see, and the new tokens are tiled apart. Where every query head has its own KV head, decode
    multiplies without ``tl.dot``, and what is seen.

    Source: SGLang 0.5.23, ``kernels/ops/attention/extend_attention.py`` and ``decode_attention.py``, CUDA path; tests
    hold this against ``bench/kernels/closed_forms.py``, and that against counts of the kernels.
    """

    heads: int
    kv_heads: int
    head_dim: int
    tile: Tile
    window: int | None = None
    unified: bool = False

    @property
    def pair_flops(self) -> int:
        return 4 * self.heads * self.head_dim

    @property
    def masked_pair_flops(self) -> int:
        return 0

    @property
    def _padded_dim(self) -> int:
        return 1 << (self.head_dim - 1).bit_length()

    def prefill_flops(self, requests: Requests) -> int:
        met = sum(self._unified_met(*one) if self.unified else self._extend_met(*one) for one in requests)
        return 4 * self.heads * self._padded_dim * self.tile.rows * self.tile.keys * met

    def decode_flops(self, contexts: Sequence[int], padded: int = 0) -> int:
        window = self.window
        if self.heads == self.kv_heads:
            return self.pair_flops * sum([read_keys(1, length - 1, window) for length in contexts])
        lengths = contexts if window is None else [min(length, window) for length in contexts]
        row_tiles = -(-self.heads // min(GROUPED_ROWS, self.heads // self.kv_heads))
        blocks = sum([-(-length // GROUPED_KEYS) for length in lengths]) + padded
        return 4 * row_tiles * blocks * GROUPED_ROWS * GROUPED_KEYS * self._padded_dim

    def _extend_met(self, new: int, prefix: int) -> int:
        (rows, keys), window = self.tile, self.window
        count = -(-new // rows)
        if window is None:
            return count * -(-prefix // keys) + _met(new, 0, self.tile, 1, None)
        cached, met = min(prefix, window), 0
        for first in range(0, new, rows):
            start = cached + first - window
            kept = cached if start <= 0 else max(0, cached - start // keys * keys) if start < cached else 0
            own = min(new, first + rows) - max(first - window, 0) // keys * keys
            met += -(-kept // keys) + -(-own // keys)
        return met

    def _unified_met(self, new: int, prefix: int) -> int:
        (rows, keys), window = self.tile, self.window
        if window is None:
            return -(-new // rows) * -(-(prefix + new) // keys)
        cached = min(prefix, window)
        cached += (prefix - cached) % WINDOW_TILE
        met = 0
        for first in range(0, new, rows):
            start = max(cached + first - window, 0) // keys * keys
            met += -(-(cached + min(new, first + rows) - start) // keys)
        return met


def _met(new: int, prefix: int, tile: Tile, group: int, window: int | None) -> int:
    """Tiles that a request's rows meet in one list of keys, ``group`` rows per new token.

    Tile i of rows meets the keys up to those of its last row, rows that fill it included, and from those that its first
    row's window reaches. ``floor((floor(x / g) + c) / n) = floor((x + c g) / (g n))`` makes one division of two.
    """
    rows, keys = tile
    count, across = -(-new * group // rows), group * keys
    ends = _floors(count - 1, across, rows, rows - 1 + group * (prefix + keys)) + -(-(prefix + new) // keys)
    if window is None or prefix + new - 1 <= window:
        return ends
    first = max(0, -(-group * (window - prefix) // rows))
    return ends - _floors(count - first, across, rows, rows * first + group * (prefix - window))


def _floors(count: int, divisor: int, step: int, start: int) -> int:
    """``sum of (step i + start) // divisor for i in range(count)``, none of them negative; O(log divisor).

    Source: the lattice points below a line, by Euclid's algorithm; R. Graham, D. Knuth, O. Patashnik, "Concrete
    Mathematics", 3.5.
    """
    total = 0
    while count > 0:
        total += (count - 1) * count // 2 * (step // divisor) + count * (start // divisor)
        step, start = step % divisor, start % divisor
        most = step * count + start
        count, start, divisor, step = most // divisor, most % divisor, step, divisor
        if not divisor:
            break
    return total
