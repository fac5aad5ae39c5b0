"""The launches of SGLang 0.5.23's Triton attention backend on a CUDA device, one layer each, as cases.

What `sglang/srt/layers/attention/triton_backend.py` launches, and when:

===================================  ===================================================================================
kernel                               launched
===================================  ===================================================================================
create_flashinfer_kv_indices_triton  once per batch: the slots of decode's keys, or of extend's prefixes, as one list;
                                     once more, with a start index, for a model with sliding windows
get_num_kv_splits_triton             once per decode batch (twice with windows) unless splits are static or inference is
                                     deterministic
_fwd_kernel_stage1                   decode, one query head per KV head (MHA)
_fwd_grouped_kernel_stage1           decode, more than one (GQA, MQA, MLA)
_fwd_kernel_stage2                   decode, after either: merges the splits
_fwd_kernel                          extend: prefill chunks (MLA at 192/128 where no request has a cached prefix, else
                                     absorbed at 576/512); with a custom mask, target verify of a draft tree
_copy_unified_indices_kernel         deterministic inference, every extend layer: prefix and new slots into one list
_align_window_kv_kernel              deterministic inference with sliding windows, once per batch
_fwd_kernel_unified                  deterministic inference, extend, instead of _fwd_kernel
===================================  ===================================================================================

Not here: the lean decode, verify_splitkv, verify_mla and FP8 dense prefill kernels (AMD only); the dense one-shot
prefill (no dispatch on CUDA reaches it); the index kernels of decode context parallelism and of multi-step drafts;
merge_state (other backends); positions (`ForwardBatch`, not the backend). The KV cache is written by a JIT CUDA kernel
(MHA) or by torch indexing (MLA), not by Triton.

As in the server, decode's split counts come from the whole lengths even where a sliding window shortens what is read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate
from math import ceil, log2
from operator import call
from typing import Any
from unittest.mock import patch

import torch

from bench.kernels.tensors import Builder, attend

H200_SMS = 132
"""Streaming multiprocessors of an H200. Source: NVIDIA H100 Tensor Core GPU Architecture, the SXM5 form."""

ABSORBED: Mapping[str, Any] = {"kv_heads": 1, "head_dim": 576, "v_head_dim": 512, "v_aliases_k": True}
"""DeepSeek's latent cache: one KV head of 512 + 64, of which V is the first 512."""

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Shape:
    """What a closed form of FLOPs and bytes needs. Lengths are tokens per request.

    `keys` are read from the paged cache through `kv_indices`, clipped by a sliding window. Extend attends to its
    `queries` new tokens besides: `_fwd_kernel` from tensors of their own, `_fwd_kernel_unified` among its `keys`.
    """

    queries: tuple[int, ...]
    keys: tuple[int, ...]
    heads: int
    kv_heads: int
    qk_dim: int
    v_dim: int
    element_bytes: int
    v_aliases_k: bool = False
    sliding_window: int | None = None


@dataclass(frozen=True)
class Case:
    """One call of SGLang's own wrapper: `launch` makes fresh outputs, calls it and returns them.

    `kernels` are what it launches, in order; `reference` has the outputs from torch in float32 (not on meta).
    """

    name: str
    kernels: tuple[str, ...]
    shape: Shape
    inputs: Mapping[str, torch.Tensor] = field(repr=False)
    launch: Callable[[], Tensors] = field(repr=False)
    reference: Callable[[], Tensors] = field(repr=False)


@contextlib.contextmanager
def block_sizes_of_hopper() -> Iterator[None]:
    """A stand-in for an H200 where there is none: the extend wrappers choose their tiles for capability 9.0."""
    from sglang.kernels.ops.attention import extend_attention

    with patch.multiple(extend_attention, create=True, _is_cuda=True, CUDA_CAPABILITY=(9, 0)):
        yield


def kv_splits(lengths: Sequence[int], heads: int, kv_heads: int, max_kv_splits: int, sms: int = H200_SMS) -> list[int]:
    """Splits of each request's keys in decode, as get_num_kv_splits_triton chooses them."""
    longest, shortest = max(lengths), min(lengths)
    shortest = longest if longest * 8 < shortest * 10 else shortest
    group = heads // kv_heads
    programs = len(lengths) * (heads if group == 1 else ceil(heads / min(16, group)))
    wanted = ceil(int(sms * max(log2(longest / 64), 1)) / programs)
    chunks = [ceil(longest / min(splits, max_kv_splits)) for splits in (ceil(longest / shortest), wanted)]
    return [max(ceil(length / chunk) for chunk in chunks) for length in lengths]


def decode(
    lengths: Sequence[int],
    *,
    heads: int,
    kv_heads: int,
    head_dim: int,
    v_head_dim: int | None = None,
    dtype: torch.dtype = torch.bfloat16,
    max_kv_splits: int = 8,
    shared_prefix: int = 0,
    sliding_window: int | None = None,
    page_size: int = 1,
    use_pdl: bool = False,
    v_aliases_k: bool = False,
    device: str = "cpu",
    seed: int = 0,
    name: str = "decode",
) -> Case:
    """One decode step: a query token per request; `lengths` count the keys, that token's own among them.

    `use_pdl` is what the server passes on capability 9.0 and above (programmatic dependent launch; the interpreter
    knows none of it). `max_kv_splits` is the server's --triton-attention-num-kv-splits, 8 by default.
    """
    make = Builder(device, dtype, seed)
    batch, v_dim = len(lengths), v_head_dim or head_dim
    keys = [min(length, sliding_window or length) for length in lengths]
    tables, slots = make.slots(lengths, shared_prefix, page_size)
    k_buffer = make.normal(slots, kv_heads, head_dim)
    inputs = {
        "q": make.normal(batch, heads, head_dim),
        "k_buffer": k_buffer,
        "v_buffer": k_buffer[..., :v_dim] if v_aliases_k else make.normal(slots, kv_heads, v_dim),
        "kv_indptr": make.integers([0, *accumulate(keys)], torch.int32),
        "kv_indices": torch.cat([table[-n:] for table, n in zip(tables, keys, strict=True)]),
        "num_kv_splits": make.integers(kv_splits(lengths, heads, kv_heads, max_kv_splits), torch.int32),
        "uneven_batch": make.integers([0], torch.int32),
    }
    q, k, v, indptr, indices, splits, uneven = inputs.values()
    scale = float((192 if v_aliases_k else head_dim) ** -0.5)

    def launch() -> Tensors:
        from sglang.kernels.ops.attention.decode_attention import decode_attention_fwd

        out = torch.empty(batch, heads, v_dim, dtype=dtype, device=device)
        partial = [torch.empty(batch, heads, max_kv_splits, *last, device=device) for last in ((v_dim,), ())]
        options = {"has_mla": v_aliases_k, "use_pdl": use_pdl, "page_size": page_size, "uneven_batch": uneven}
        rails = (indptr, indices, *partial, splits, max_kv_splits, scale, 1.0, 1.0)
        decode_attention_fwd(q, k, v, out, *rails, enable_lean=False, **options)
        return {"o": out}

    def reference() -> Tensors:
        last = [table[-n:] for table, n in zip(tables, keys, strict=True)]
        return {"o": torch.cat([attend(q[at : at + 1], k[slot], v[slot], scale) for at, slot in enumerate(last)])}

    stage1 = "_fwd_kernel_stage1" if heads == kv_heads else "_fwd_grouped_kernel_stage1"
    row = (heads, kv_heads, head_dim, v_dim, dtype.itemsize, v_aliases_k, sliding_window)
    shape = Shape((1,) * batch, tuple(keys), *row)
    return Case(name, (stage1, "_fwd_kernel_stage2"), shape, inputs, launch, reference)


def decode_mla(lengths: Sequence[int], *, heads: int, max_kv_splits: int = 256, **options: Any) -> Case:
    """Decode over the latent cache; options of `decode`. 256 splits: MLA on 132 SMs, contexts from 4,097 tokens on."""
    return decode(lengths, heads=heads, max_kv_splits=max_kv_splits, **ABSORBED, **options)


def extend(
    prefix_lengths: Sequence[int],
    extend_lengths: Sequence[int],
    *,
    heads: int,
    kv_heads: int,
    head_dim: int,
    v_head_dim: int | None = None,
    dtype: torch.dtype = torch.bfloat16,
    custom_mask: Sequence[torch.Tensor] | None = None,
    sliding_window: int | None = None,
    shared_prefix: int = 0,
    v_aliases_k: bool = False,
    unified: bool = False,
    device: str = "cpu",
    seed: int = 0,
    name: str = "extend",
) -> Case:
    """A prefill chunk of `extend_lengths` tokens after `prefix_lengths` cached ones; causal.

    `custom_mask`, one bool [extend, prefix + extend] per request, replaces the causal mask among the new tokens (a
    draft tree being verified); the prefix stays visible to all. `unified` is what deterministic inference runs.
    `v_aliases_k` is absorbed MLA: V is the first `v_head_dim` of K.
    """
    if custom_mask is not None and (unified or sliding_window):
        raise ValueError("custom_mask: not with unified or sliding_window in these cases")
    if shared_prefix > min(prefix_lengths):
        raise ValueError(f"shared_prefix = {shared_prefix}: longer than a cached prefix")
    make = Builder(device, dtype, seed)
    v_dim, tokens = v_head_dim or head_dim, sum(extend_lengths)
    scale = float((192 if v_aliases_k else head_dim) ** -0.5)
    lengths = [prefix + new for prefix, new in zip(prefix_lengths, extend_lengths, strict=True)]
    clipped = [min(prefix, sliding_window or prefix) for prefix in prefix_lengths]
    tables, slots = make.slots(lengths, shared_prefix, 1)
    k_buffer = make.normal(slots, kv_heads, head_dim)
    v_buffer = k_buffer[..., :v_dim] if v_aliases_k else make.normal(slots, kv_heads, v_dim)
    prefixes = [table[n - kept : n] for table, n, kept in zip(tables, prefix_lengths, clipped, strict=True)]
    new_slots = torch.cat([table[n:] for table, n in zip(tables, prefix_lengths, strict=True)])
    inputs = {
        "q": make.normal(tokens, heads, head_dim),
        "k_buffer": k_buffer,
        "v_buffer": v_buffer,
        "k_extend": k_buffer[new_slots],
        "v_extend": v_buffer[new_slots].contiguous(),
        "qo_indptr": make.integers([0, *accumulate(extend_lengths)], torch.int64),
        "kv_indptr": make.integers([0, *accumulate(clipped)], torch.int32),
        "kv_indices": torch.cat(prefixes),
        "out_cache_loc": new_slots,
        "extend_seq_lens": make.integers(extend_lengths, torch.int32),
        "extend_prefix_lens": make.integers(prefix_lengths, torch.int32),
    }
    if custom_mask is not None:
        inputs["custom_mask"] = torch.cat([mask.flatten() for mask in custom_mask]).to(device)
        inputs["mask_indptr"] = make.integers([0, *accumulate(mask.numel() for mask in custom_mask)], torch.int64)
    q, *_, qo_indptr, indptr, indices, _, new, prefix = list(inputs.values())[:11]

    def launch() -> Tensors:
        from sglang.kernels.ops.attention import extend_attention as ops

        out, longest = torch.empty(tokens, heads, v_dim, dtype=dtype, device=device), max(extend_lengths)
        kept, listed, starts = indptr, indices, prefix - (indptr[1:] - indptr[:-1]) if sliding_window else None
        window: dict[str, Any] = {"sliding_window_size": sliding_window or -1}
        if unified:  # as TritonAttnBackend's init_forward_metadata and _forward_extend_unified do
            if sliding_window:
                kept, listed = ops.align_window_kv_to_tiles(indptr, indices, starts, len(lengths))
                starts = prefix - (kept[1:] - kept[:-1])
            at = torch.cat([new.new_zeros(1), torch.cumsum(new[:-1], 0)])
            *rails, lens = ops.build_unified_kv_indices(kept, listed, at, new, new_slots, len(lengths))
            given = (q, out, k_buffer, v_buffer, 1.0, 1.0, qo_indptr, *rails, lens.to(torch.int32), longest)
            ops.extend_attention_fwd_unified(*given, sm_scale=scale, window_start_pos=starts, **window)
        else:  # as its forward_extend does
            mask = (inputs.get("custom_mask"), True, inputs.get("mask_indptr"))
            given = (q, inputs["k_extend"], inputs["v_extend"], out, k_buffer, v_buffer, qo_indptr, indptr, indices)
            ops.extend_attention_fwd(*given, *mask, longest, 1.0, 1.0, scale, window_kv_offsets=starts, **window)
        return {"o": out}

    def reference() -> Tensors:
        rows, end = [], 0
        for request, (table, first, length) in enumerate(zip(tables, prefix_lengths, lengths, strict=True)):
            query, key = torch.arange(first, length, device=device)[:, None], torch.arange(length, device=device)
            allowed = key <= query if custom_mask is None else custom_mask[request].to(device) | (key < first)
            if sliding_window:
                allowed = allowed & (query <= key + sliding_window)
            start, end = end, end + length - first
            rows.append(attend(q[start:end], k_buffer[table], v_buffer[table], scale, allowed))
        return {"o": torch.cat(rows)}

    kernels: tuple[str, ...] = ("_fwd_kernel",)
    if unified:
        aligned = ("_align_window_kv_kernel",) if sliding_window else ()
        kernels = (*aligned, "_copy_unified_indices_kernel", "_fwd_kernel_unified")
        clipped = [kept + new for kept, new in zip(clipped, extend_lengths, strict=True)]
    row = (heads, kv_heads, head_dim, v_dim, dtype.itemsize, v_aliases_k, sliding_window)
    shape = Shape(tuple(extend_lengths), tuple(clipped), *row)
    return Case(name, kernels, shape, inputs, launch, reference)


def extend_unified(prefix_lengths: Sequence[int], extend_lengths: Sequence[int], **options: Any) -> Case:
    """The same chunk under --enable-deterministic-inference; options of `extend`."""
    return extend(prefix_lengths, extend_lengths, unified=True, **options)


def kv_indices(
    lengths: Sequence[int], *, sliding_window: int | None = None, device: str = "cpu", seed: int = 0
) -> Case:
    """The rows of the request-to-token table of these requests, flattened; of a window, only their last tokens."""
    make = Builder(device, torch.bfloat16, seed)
    keys = [min(length, sliding_window or length) for length in lengths]
    tables, _ = make.slots(lengths, 0, 1)
    width = ceil(max(lengths) / 64) * 64
    padded = [torch.nn.functional.pad(table, (0, width - len(table))) for table in reversed(tables)]
    inputs = {
        "req_to_token": torch.stack(padded).to(torch.int32),
        "req_pool_indices": make.integers(range(len(lengths))[::-1], torch.int64),
        "lengths": make.integers(keys, torch.int64),
        "kv_indptr": make.integers([0, *accumulate(keys)], torch.int32),
    }
    starts = make.integers([n - kept for n, kept in zip(lengths, keys, strict=True)], torch.int64)

    def launch() -> Tensors:
        from sglang.kernels.ops.attention.kv_indices import create_flashinfer_kv_indices_triton

        out = torch.empty(sum(keys), dtype=torch.int64, device=device)
        given = (*inputs.values(), starts if sliding_window else None, out, width)
        options = {"ENTRY_PAGE_SIZE": 1, "TOKEN_BLOCK_PARALLEL": False, "token_mapping": None}
        create_flashinfer_kv_indices_triton[(len(lengths), 1)](*given, **options)
        return {"kv_indices": out}

    expected = {"kv_indices": torch.cat([table[-n:] for table, n in zip(tables, keys, strict=True)])}
    shape = Shape((), tuple(keys), 0, 0, 0, 0, 0, sliding_window=sliding_window)
    name = "kv indices window" if sliding_window else "kv indices"
    return Case(name, ("create_flashinfer_kv_indices_triton",), shape, inputs, launch, lambda: expected)


def num_kv_splits(
    lengths: Sequence[int], *, heads: int, kv_heads: int, max_kv_splits: int = 8, device: str = "cpu"
) -> Case:
    """The split counts of a decode batch; see `kv_splits`."""
    inputs = {"seq_lens": torch.tensor(lengths).to(device)}

    def launch() -> Tensors:
        from sglang.kernels.ops.attention.metadata import get_num_kv_splits_triton

        out = torch.empty(len(lengths), dtype=torch.int32, device=device)
        uneven = torch.zeros(1, dtype=torch.int32, device=device)
        sizes = (len(lengths), 1, heads, kv_heads, max_kv_splits, H200_SMS)
        block = max(256, 1 << (len(lengths) - 1).bit_length())
        get_num_kv_splits_triton[(1,)](out, inputs["seq_lens"], *sizes, MAX_NUM_SEQ=block, uneven_batch_ptr=uneven)
        return {"num_kv_splits": out}

    expected = torch.tensor(kv_splits(lengths, heads, kv_heads, max_kv_splits), dtype=torch.int32).to(device)
    shape = Shape((), tuple(lengths), heads, kv_heads, 0, 0, 0)
    kernels = ("get_num_kv_splits_triton",)
    return Case("num kv splits", kernels, shape, inputs, launch, lambda: {"num_kv_splits": expected})


def serving_makers(device: str = "meta") -> tuple[Callable[[], Case], ...]:
    """Makers of cases at serving sizes on an H200, bf16: Llama-3 8B (32/8 heads, 128), MHA as wide, DeepSeek-V3.

    Made on the meta device they hold no memory and can be compiled, not run; elsewhere each holds gigabytes.
    """
    lengths, chunk = (4096,) * 64, ((8192,) * 4, (2048,) * 4)
    gqa: dict[str, Any] = {"heads": 32, "kv_heads": 8, "head_dim": 128, "device": device}
    tree = [torch.ones(8, 4104, dtype=torch.bool, device=device)] * 64
    expanded: dict[str, Any] = {"heads": 128, "kv_heads": 128, "head_dim": 192, "v_head_dim": 128}
    return (
        partial(decode, lengths, **gqa | {"kv_heads": 32}, name="decode MHA 32, 128"),
        partial(decode, lengths, **gqa, use_pdl=True, name="decode GQA 32/8, 128"),
        partial(decode_mla, lengths, heads=16, use_pdl=True, device=device, name="decode MLA 16, 576/512"),
        partial(decode_mla, lengths, heads=128, use_pdl=True, device=device, name="decode MLA 128, 576/512"),
        partial(extend, *chunk, **gqa, name="extend GQA 32/8, 128"),
        partial(extend, *chunk, **gqa, sliding_window=1024, name="extend GQA window"),
        partial(extend, lengths, (8,) * 64, **gqa, custom_mask=tree, name="verify GQA tree"),
        partial(extend, (0,) * 4, chunk[1], **expanded, device=device, name="extend MLA 128, 192/128"),
        partial(extend, *chunk, heads=16, **ABSORBED, device=device, name="extend MLA 16, 576/512"),
        partial(extend_unified, *chunk, **gqa, name="unified GQA 32/8, 128"),
        partial(extend_unified, *chunk, **gqa, sliding_window=1024, name="unified GQA window"),
        partial(kv_indices, lengths, device=device),
        partial(kv_indices, lengths, sliding_window=1024, device=device),
        partial(num_kv_splits, lengths, heads=32, kv_heads=8, device=device),
    )


SERVING = tuple(replace(case, launch=block_sizes_of_hopper()(case.launch)) for case in map(call, serving_makers()))
"""The cases of the machine-code table, in the tiles of an H200 wherever they are compiled."""
