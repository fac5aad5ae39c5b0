"""What SGLang's Triton attention kernels load, store and multiply, in closed form: from lengths and tile sizes alone.

Nothing here looks at a kernel's masks or runs one; tests hold the counts of the kernels against it, exactly. Bytes are
active lanes x element size, by what they are bytes of. FLOPs are those of `tl.dot`, a multiply-add as two, in full
tiles: padded query rows, keys and head dimensions included.

With H query and G KV heads, B requests, es bytes per element, Dk and Dv the head dimensions as tiles hold them (powers
of two; 576 and 288, and in extend 192, as two parts), Lk and Lv as tensors have them:

============================  ==========================================================================================
`_fwd_grouped_kernel_stage1`  FLOPs  T x sum ceil(L / 32) x 2 x 16 x 32 x (Dk + Dv), T = ceil(H / min(16, H / G)) tiles
                              of 16 query rows; KV bytes  T x sum L x (Lk + Lv) x es, no Lv where V is K transposed
`_fwd_kernel_stage1`          no FLOPs: it multiplies element by element and sums; KV bytes  H x sum L x (Lk + Lv) x es
`_fwd_kernel`                 FLOPs  H x blocks x 2 x M x N x (Dk + Dv); a tile of M queries meets the blocks of N old
                              keys that its window reaches, and of the new keys those up to its own last row
`_fwd_kernel_unified`         the same over one list of keys, to its end (with a window, up to the tile's last row)
============================  ==========================================================================================

Source: SGLang 0.5.23, `sglang/kernels/ops/attention/{decode_attention,extend_attention,kv_indices,metadata}.py`, CUDA
path: no score modification, no sinks, page size 1 in extend.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from types import MappingProxyType
from typing import NamedTuple

from bench.kernels.attention import Case, Shape
from roofline_policies.counting import Counts
from roofline_policies.work import BYTES_PER_ELEMENT, Precision

INT32, INT64, FP32 = 4, 8, 4
"""Bytes of the elements of the rails (index pointers, lengths) and of partial results."""

GROUPED_ROWS, GROUPED_KEYS = 16, 32
"""Query rows and keys of a tile of `_fwd_grouped_kernel_stage1` (BLOCK_H, BLOCK_N)."""

SPLIT_UNIT = 32
"""Splits of decode are whole multiples of so many keys (`_MIN_BLOCK_KV`)."""

WINDOW_TILE = 128
"""Deterministic inference pads a window's keys so that they start at a multiple of it (`align_window_kv_to_tiles`)."""


class Tiles(NamedTuple):
    """Query rows and keys of a tile of the extend kernels (BLOCK_M, BLOCK_N)."""

    queries: int
    keys: int


@dataclass(frozen=True)
class Expected:
    """One launch: bytes loaded and stored by what they are bytes of, and FLOPs of `tl.dot`."""

    loads: Mapping[str, int]
    stores: Mapping[str, int]
    dot_flops: int = 0

    def counts(self, precision: Precision) -> Counts:
        """What a counted kernel reports, its products being of that precision."""
        flops = {precision: self.dot_flops} if self.dot_flops else {}
        return Counts(sum(self.loads.values()), sum(self.stores.values()), 0, MappingProxyType(flops))

    @property
    def kv_bytes(self) -> int:
        """Of the loads, the bytes of keys and values, wherever they lie."""
        return sum(count for name, count in self.loads.items() if name in ("k", "v", "new_k", "new_v"))


def head_tiles(shape: Shape) -> int:
    """Tiles of query heads of the grouped decode kernel: G x ceil(H / G / 16) where 16 divides a larger group."""
    return ceil(shape.heads / min(GROUPED_ROWS, shape.heads // shape.kv_heads))


def padded_dims(shape: Shape, *, extend: bool) -> int:
    """Dk + Dv: the columns of Q K^T's inner dimension and of V as tiles hold them."""
    in_two_parts = (576, 288, 192) if extend else (576, 288)
    dk = shape.qk_dim if shape.qk_dim in in_two_parts else _power_of_two(shape.qk_dim)
    return dk + _power_of_two(shape.v_dim)


def active_splits(shape: Shape, splits: Sequence[int]) -> int:
    """Splits that hold a key, all requests together; `splits` per request is at most what the grid has."""
    widths = [_round_up(ceil(keys / parts), SPLIT_UNIT) for keys, parts in zip(shape.keys, splits, strict=True)]
    return sum(ceil(keys / width) for keys, width in zip(shape.keys, widths, strict=True))


def decode_stage1(shape: Shape, splits: Sequence[int], max_kv_splits: int) -> Expected:
    """Either first stage of decode: `_fwd_kernel_stage1` where every query head has its own KV head, else grouped.

    Every program of the grid [B, H or T, max_kv_splits] reads two index pointers and its split count; those whose split
    holds a key read their query heads and keep a partial result and its log-sum-exp in float32.
    """
    grouped = shape.heads != shape.kv_heads
    rows = head_tiles(shape) if grouped else shape.heads
    keys, active = sum(shape.keys), active_splits(shape, splits)
    blocks = sum(ceil(one / GROUPED_KEYS) for one in shape.keys)
    dims = padded_dims(shape, extend=False)
    return Expected(
        loads={
            "rails": len(shape.keys) * rows * max_kv_splits * 3 * INT32,
            "indices": rows * keys * INT64,
            "q": active * shape.heads * shape.qk_dim * shape.element_bytes,
            "k": rows * keys * shape.qk_dim * shape.element_bytes,
            "v": 0 if grouped and shape.v_aliases_k else rows * keys * shape.v_dim * shape.element_bytes,
        },
        stores={"partial": active * shape.heads * shape.v_dim * FP32, "lse": active * shape.heads * FP32},
        dot_flops=rows * blocks * 2 * GROUPED_ROWS * GROUPED_KEYS * dims if grouped else 0,
    )


def decode_stage2(shape: Shape, splits: Sequence[int]) -> Expected:
    """`_fwd_kernel_stage2`, a program per request and query head: the partial results that stage 1 kept, merged."""
    rows, active = len(shape.keys) * shape.heads, active_splits(shape, splits)
    return Expected(
        loads={
            "rails": rows * 3 * INT32,
            "partial": active * shape.heads * shape.v_dim * FP32,
            "lse": active * shape.heads * FP32,
        },
        stores={"o": rows * shape.v_dim * shape.element_bytes},
    )


def extend(shape: Shape, tiles: Tiles, *, masked: bool = False) -> Expected:
    """`_fwd_kernel`, a program per request, query head and tile of the longest request's queries.

    masked: with a custom mask among the new tokens, of which every tile holds a visible entry.

    Raises:
        ValueError: a custom mask over more keys than a tile holds; what is skipped then depends on its entries.
    """
    if masked and max(shape.queries) > tiles.keys:
        raise ValueError(f"queries = {max(shape.queries)} under a custom mask; allowed: at most {tiles.keys}")
    programs = len(shape.queries) * ceil(max(shape.queries) / tiles.queries)
    active = old = new = blocks = mask_lanes = 0
    for queries, prefix in zip(shape.queries, shape.keys, strict=True):
        for first in range(0, queries, tiles.queries):
            end = min(queries, first + tiles.queries)
            seen = _reach(prefix, prefix + first, shape.sliding_window, tiles.keys)
            own = end - _tile_of(first - (shape.sliding_window or first), tiles.keys)
            active, old, new = active + 1, old + seen, new + own
            blocks += ceil(seen / tiles.keys) + ceil(own / tiles.keys)
            mask_lanes += (end - first) * own if masked else 0
    heads, es, queries = shape.heads, shape.element_bytes, sum(shape.queries)
    return Expected(
        loads={
            "rails": heads * (programs * 2 * (INT64 + INT32) + (active * INT64 if masked else 0)),
            "mask": heads * mask_lanes,
            "indices": heads * old * INT64,
            "q": heads * queries * shape.qk_dim * es,
            "k": heads * old * shape.qk_dim * es,
            "v": heads * old * shape.v_dim * es,
            "new_k": heads * new * shape.qk_dim * es,
            "new_v": heads * new * shape.v_dim * es,
        },
        stores={"o": heads * queries * shape.v_dim * es},
        dot_flops=heads * blocks * 2 * tiles.queries * tiles.keys * padded_dims(shape, extend=True),
    )


def extend_unified(shape: Shape, tiles: Tiles, pads: Sequence[int]) -> Expected:
    """`_fwd_kernel_unified`; `pads` per request is how many copies of its first key lie before a window's keys.

    Without a window a tile of queries meets every key, those after its last row too.
    """
    window = shape.sliding_window
    programs = len(shape.queries) * ceil(max(shape.queries) / tiles.queries)
    active = read = blocks = 0
    for queries, keys, pad in zip(shape.queries, shape.keys, pads, strict=True):
        length = keys + pad
        for first in range(0, queries, tiles.queries):
            prefix, last = length - queries, min(queries, first + tiles.queries)
            start = _tile_of(prefix + first - window, tiles.keys) if window else 0
            met = ceil(((prefix + last if window else length) - start) / tiles.keys)
            active, blocks = active + 1, blocks + met
            read += min(length, start + met * tiles.keys) - start
    heads, es, queries = shape.heads, shape.element_bytes, sum(shape.queries)
    return Expected(
        loads={
            "rails": heads * (programs * (4 * INT64 + INT32) + (active * INT32 if window else 0)),
            "indices": heads * read * INT64,
            "q": heads * queries * shape.qk_dim * es,
            "k": heads * read * shape.qk_dim * es,
            "v": heads * read * shape.v_dim * es,
        },
        stores={"o": heads * queries * shape.v_dim * es},
        dot_flops=heads * blocks * 2 * tiles.queries * tiles.keys * padded_dims(shape, extend=True),
    )


def window_pads(prefixes: Sequence[int], window: int | None) -> list[int]:
    """Copies of the first key that `_align_window_kv_kernel` puts before each request's keys; none without a window."""
    return [(prefix - min(prefix, window)) % WINDOW_TILE if window else 0 for prefix in prefixes]


def align_window(shape: Shape, pads: Sequence[int]) -> Expected:
    """`_align_window_kv_kernel`: reads and writes one index per key of the prefix and per copy."""
    indices = (sum(shape.keys) - sum(shape.queries) + sum(pads)) * INT64
    return Expected({"rails": len(shape.keys) * 4 * INT32, "indices": indices}, {"indices": indices})


def copy_indices(shape: Shape, pads: Sequence[int]) -> Expected:
    """`_copy_unified_indices_kernel`: reads and writes one index per key, copies and new tokens included."""
    indices = (sum(shape.keys) + sum(pads)) * INT64
    return Expected({"rails": len(shape.keys) * (3 * INT32 + 2 * INT64), "indices": indices}, {"indices": indices})


def kv_indices(shape: Shape) -> Expected:
    """`create_flashinfer_kv_indices_triton`: an int32 of the request's table to an int64 per key."""
    rails = INT32 + (3 if shape.sliding_window else 2) * INT64
    keys = sum(shape.keys)
    return Expected({"rails": len(shape.keys) * rails, "table": keys * INT32}, {"indices": keys * INT64})


def num_kv_splits(shape: Shape) -> Expected:
    """`get_num_kv_splits_triton`: reads the lengths twice, writes a count each and one flag."""
    requests = len(shape.keys)
    return Expected({"lengths": 2 * requests * INT64}, {"splits": requests * INT32, "flag": INT32})


def compulsory_kv_bytes(shape: Shape, slots: int) -> int:
    """Distinct bytes of keys and values in `slots` slots of the cache: each once per KV head, V not where it is K's."""
    dims = shape.qk_dim + (0 if shape.v_aliases_k else shape.v_dim)
    return slots * shape.kv_heads * dims * shape.element_bytes


def compulsory_load_bytes(case: Case) -> int:
    """Distinct bytes of keys and values that the attention kernel of a case reads; 0 for one without a cache.

    The case's tensors must have contents: which slots requests share is read from them.
    """
    inputs = case.inputs
    if "k_buffer" not in inputs:
        return 0
    lists, tensors = [inputs["kv_indices"]], 0
    if case.kernels[-1] == "_fwd_kernel_unified":
        lists.append(inputs["out_cache_loc"])
    elif case.kernels == ("_fwd_kernel",):
        tensors = inputs["k_extend"].nbytes + inputs["v_extend"].nbytes
    return tensors + compulsory_kv_bytes(case.shape, len({slot for one in lists for slot in one.tolist()}))


def tiles_here(shape: Shape) -> Tiles:
    """The tiles that SGLang's extend wrappers choose for these heads on this machine."""
    from sglang.kernels.ops.attention.extend_attention import _get_block_sizes_for_extend_attention

    *_, queries, keys, _warps = _get_block_sizes_for_extend_attention(shape.qk_dim, shape.v_dim)
    return Tiles(queries, keys)


def of_case(case: Case, max_kv_splits: int = 8) -> dict[str, Expected]:
    """What each kernel of a case loads, stores and multiplies; `max_kv_splits` is the extent of decode's grid.

    The case's tensors must have contents: prefix lengths and split counts are read from them.
    """
    shape, inputs = case.shape, case.inputs
    if case.kernels == ("create_flashinfer_kv_indices_triton",):
        return {case.kernels[0]: kv_indices(shape)}
    if case.kernels == ("get_num_kv_splits_triton",):
        return {case.kernels[0]: num_kv_splits(shape)}
    if "num_kv_splits" in inputs:
        splits = inputs["num_kv_splits"].tolist()
        first, second = case.kernels
        return {first: decode_stage1(shape, splits, max_kv_splits), second: decode_stage2(shape, splits)}
    tiles = tiles_here(shape)
    if case.kernels == ("_fwd_kernel",):
        return {"_fwd_kernel": extend(shape, tiles, masked="custom_mask" in inputs)}
    pads = window_pads(inputs["extend_prefix_lens"].tolist(), shape.sliding_window)
    expected = {
        "_align_window_kv_kernel": align_window(shape, pads),
        "_copy_unified_indices_kernel": copy_indices(shape, pads),
        "_fwd_kernel_unified": extend_unified(shape, tiles, pads),
    }
    return {name: expected[name] for name in case.kernels}


def precision_of(case: Case) -> Precision:
    """The precision of a case's products: that of its cache."""
    cache = case.inputs.get("k_buffer")
    if cache is None:
        return Precision.BF16  # it has no products
    names = {"float32": Precision.FP32, "bfloat16": Precision.BF16, "float16": Precision.FP16}
    precision = names[str(cache.dtype).removeprefix("torch.")]
    assert BYTES_PER_ELEMENT[precision] == case.shape.element_bytes
    return precision


def _reach(keys: int, first_row: int, window: int | None, block: int) -> int:
    """Keys of a list that a tile reads whose first row stands at `first_row`: all, or from its window's first tile."""
    if window is None or first_row <= window:
        return keys
    start = first_row - window
    return keys - _tile_of(start, block) if start < keys else 0


def _tile_of(position: int, block: int) -> int:
    """Where the tile begins that holds `position`; 0 for a negative one."""
    return max(position, 0) // block * block


def _power_of_two(value: int) -> int:
    return 1 << (value - 1).bit_length()


def _round_up(value: int, multiple: int) -> int:
    return ceil(value / multiple) * multiple
