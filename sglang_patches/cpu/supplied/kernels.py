"""The operations SGLang imports from `sgl_kernel` in CPU mode, in plain torch: index bookkeeping, no arithmetic.

A dense model computes with torch itself there: norms, rotary embedding and activations take SGLang's native path unless
the AMX operations are registered, which they are not. What is left is moving slot numbers and cache rows around.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import torch


def _spans(start: torch.Tensor, end: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Expand [start, end) of each request (int [batch]) to (request, column), both int64 [sum of lengths]."""
    start = start.to(torch.int64)
    lengths = end.to(torch.int64) - start
    request = torch.repeat_interleave(torch.arange(lengths.numel()), lengths)
    first = torch.cumsum(lengths, 0) - lengths  # where each request begins in the flat result
    column = torch.arange(request.numel()) - first[request] + start[request]
    return request, column


def assign_req_to_token_pool_cpu(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    start_offset: torch.Tensor,
    end_offset: torch.Tensor,
    out_cache_loc: torch.Tensor,
    pool_len: int,
) -> None:
    """Write KV slots, packed request after request in `out_cache_loc` (int [sum]), to columns [start, end) of each row.

    `req_to_token` is int32 [pool, pool_len] and changed in place; the other index tensors are int [batch].
    """
    request, column = _spans(start_offset, end_offset)
    row = req_pool_indices.to(torch.int64)[request]
    req_to_token[row, column] = out_cache_loc[: request.numel()].to(req_to_token.dtype)


def assign_extend_cache_locs_cpu(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    start_offset: torch.Tensor,
    end_offset: torch.Tensor,
    out_cache_loc: torch.Tensor,
    pool_len: int,
) -> None:
    """Read columns [start, end) of each request's row into `out_cache_loc` (int [>= sum]), packed, in place."""
    request, column = _spans(start_offset, end_offset)
    row = req_pool_indices.to(torch.int64)[request]
    out_cache_loc[: request.numel()] = req_to_token[row, column].to(out_cache_loc.dtype)


def assign_draft_cache_locs_contiguous_cpu(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    seq_lens: torch.Tensor,
    out_cache_loc: torch.Tensor,
    pool_len: int,
    topk: int,
    speculative_num_steps: int,
) -> None:
    """Read the `topk * speculative_num_steps` slots after each sequence into `out_cache_loc`, packed, in place."""
    width = topk * speculative_num_steps
    assign_extend_cache_locs_cpu(req_pool_indices, req_to_token, seq_lens, seq_lens + width, out_cache_loc, pool_len)


def fill_bonus_tokens_cpu(
    accept_tokens: torch.Tensor, accept_lens: torch.Tensor, bonus_tokens: torch.Tensor, accept_stride: int
) -> None:
    """Put each request's last accepted token in `bonus_tokens` (int [batch]), in place.

    `accept_tokens` holds `accept_stride` tokens per request, `accept_lens` (int [batch]) how many of them count.
    """
    batch = accept_lens.numel()
    last = torch.arange(batch) * accept_stride + accept_lens.to(torch.int64) - 1
    bonus_tokens[:batch] = accept_tokens.reshape(-1)[last].to(bonus_tokens.dtype)


def fill_accept_out_cache_loc_cpu(
    accept_index: torch.Tensor, out_cache_loc: torch.Tensor, accept_out_cache_loc: torch.Tensor
) -> None:
    """Pack the slots that `accept_index` (int, -1 for none) names to the front of `accept_out_cache_loc`, in place."""
    flat = accept_index.reshape(-1).to(torch.int64)
    kept = flat[flat >= 0]
    accept_out_cache_loc[: kept.numel()] = out_cache_loc[kept].to(accept_out_cache_loc.dtype)


def rotate_input_ids_cpu(
    input_ids: torch.Tensor,
    extend_start_loc: torch.Tensor,
    extend_seq_lens: torch.Tensor,
    topk_index: torch.Tensor,
    select_index: torch.Tensor | None = None,
) -> None:
    """Shift each request's tokens (flat int [tokens]) left by one and store its new token last, in place.

    `topk_index` is int [batch, ...], its first entry per request is taken; `select_index` (int [batch]) names where the
    new token goes when that is not the end of the request.
    """
    new_tokens = topk_index.reshape(extend_seq_lens.numel(), -1)[:, 0] if extend_seq_lens.numel() else topk_index
    for i, (start, length) in enumerate(zip(extend_start_loc.tolist(), extend_seq_lens.tolist(), strict=True)):
        if length <= 0:
            continue
        end = start + length
        input_ids[start : end - 1] = input_ids[start + 1 : end].clone()
        position = end - 1 if select_index is None else int(select_index[i])
        input_ids[position] = new_tokens[i].to(input_ids.dtype)


def copy_all_layer_kv_cache_cpu(
    data_ptrs: torch.Tensor, strides: torch.Tensor, tgt_loc: torch.Tensor, src_loc: torch.Tensor
) -> None:
    """Copy cache rows `src_loc` to `tgt_loc` (int [n]) in every buffer, reading all of them before writing any.

    `data_ptrs` (uint64 [buffers]) are addresses and `strides` (int [buffers], bytes) their row sizes; the caller keeps
    the buffers alive and large enough for every row it names.
    """
    if tgt_loc.numel() == 0:
        return
    target, source = tgt_loc.to(torch.int64), src_loc.to(torch.int64)
    rows = int(torch.maximum(target.max(), source.max())) + 1
    for address, stride in zip(data_ptrs.tolist(), strides.tolist(), strict=True):
        memory = (ctypes.c_uint8 * (rows * stride)).from_address(address)
        buffer = torch.frombuffer(memory, dtype=torch.uint8).view(rows, stride)
        buffer[target] = buffer[source]


KERNELS: dict[str, Callable[..., None]] = {
    kernel.__name__: kernel
    for kernel in (
        assign_req_to_token_pool_cpu,
        assign_extend_cache_locs_cpu,
        assign_draft_cache_locs_contiguous_cpu,
        fill_bonus_tokens_cpu,
        fill_accept_out_cache_loc_cpu,
        rotate_input_ids_cpu,
        copy_all_layer_kv_cache_cpu,
    )
}
