"""Each CPU kernel against a loop written from its contract, over odd shapes and both index types."""

from __future__ import annotations

import random

import pytest

pytest.importorskip("torch")

import torch

from sglang_patches.cpu.supplied import kernels

INT_TYPES = [torch.int32, torch.int64]
POOL, POOL_LEN = 13, 37


def spans(batch: int, seed: int) -> tuple[list[int], list[int], list[int]]:
    """Rows without repetition and a column span for each, some of them empty."""
    rng = random.Random(seed)
    rows = rng.sample(range(POOL), batch)
    starts = [rng.randrange(POOL_LEN) for _ in rows]
    ends = [rng.choice([start, rng.randint(start, POOL_LEN)]) for start in starts]
    return rows, starts, ends


@pytest.mark.parametrize("index_type", INT_TYPES)
@pytest.mark.parametrize("batch", [0, 1, 3, 13])
def test_assign_req_to_token_pool(batch: int, index_type: torch.dtype) -> None:
    rows, starts, ends = spans(batch, seed=batch)
    slots = torch.randperm(1000, generator=torch.Generator().manual_seed(batch))[: POOL_LEN * POOL]
    pool = torch.full((POOL, POOL_LEN), -7, dtype=torch.int32)
    expected = pool.clone()
    taken = 0
    for row, start, end in zip(rows, starts, ends, strict=True):
        for column in range(start, end):
            expected[row, column] = slots[taken]
            taken += 1
    kernels.assign_req_to_token_pool_cpu(
        torch.tensor(rows, dtype=index_type),
        pool,
        torch.tensor(starts, dtype=index_type),
        torch.tensor(ends, dtype=index_type),
        slots[:taken],
        POOL_LEN,
    )
    assert torch.equal(pool, expected)


@pytest.mark.parametrize("index_type", INT_TYPES)
@pytest.mark.parametrize("batch", [0, 1, 3, 13])
def test_assign_extend_cache_locs(batch: int, index_type: torch.dtype) -> None:
    rows, starts, ends = spans(batch, seed=100 + batch)
    pool = torch.randint(0, 10**6, (POOL, POOL_LEN), dtype=torch.int32)
    expected = [int(pool[r, c]) for r, s, e in zip(rows, starts, ends, strict=True) for c in range(s, e)]
    out = torch.full((POOL * POOL_LEN,), -7, dtype=torch.int64)
    kernels.assign_extend_cache_locs_cpu(
        torch.tensor(rows, dtype=index_type),
        pool,
        torch.tensor(starts, dtype=index_type),
        torch.tensor(ends, dtype=index_type),
        out,
        POOL_LEN,
    )
    assert out[: len(expected)].tolist() == expected
    assert (out[len(expected) :] == -7).all()


def test_what_is_assigned_can_be_read_back() -> None:
    rows, starts, ends = (torch.tensor(values) for values in spans(7, seed=5))
    total = int((ends - starts).sum())
    pool, out = torch.zeros((POOL, POOL_LEN), dtype=torch.int32), torch.zeros(total, dtype=torch.int64)
    slots = torch.arange(total) + 500
    kernels.assign_req_to_token_pool_cpu(rows, pool, starts, ends, slots, POOL_LEN)
    kernels.assign_extend_cache_locs_cpu(rows, pool, starts, ends, out, POOL_LEN)
    assert torch.equal(out, slots)


@pytest.mark.parametrize(("topk", "steps"), [(1, 1), (1, 5), (3, 2)])
def test_assign_draft_cache_locs_contiguous(topk: int, steps: int) -> None:
    pool = torch.arange(POOL * POOL_LEN, dtype=torch.int32).view(POOL, POOL_LEN)
    rows, lengths = [4, 0, 12], [3, 0, POOL_LEN - topk * steps]
    out = torch.zeros(len(rows) * topk * steps, dtype=torch.int64)
    kernels.assign_draft_cache_locs_contiguous_cpu(
        torch.tensor(rows), pool, torch.tensor(lengths), out, POOL_LEN, topk, steps
    )
    expected = [
        row * POOL_LEN + length + k for row, length in zip(rows, lengths, strict=True) for k in range(topk * steps)
    ]
    assert out.tolist() == expected


def test_fill_bonus_tokens_takes_the_last_accepted_one() -> None:
    tokens = torch.tensor([[11, 12, 13], [21, 22, 23], [31, 32, 33]])
    bonus = torch.zeros(3, dtype=torch.int32)
    kernels.fill_bonus_tokens_cpu(tokens.reshape(-1), torch.tensor([1, 3, 2]), bonus, 3)
    assert bonus.tolist() == [11, 23, 32]


def test_fill_accept_out_cache_loc_packs_the_accepted_slots() -> None:
    accepted = torch.tensor([[0, 2, -1], [-1, -1, -1], [7, -1, -1]], dtype=torch.int32)
    out = torch.full((9,), -7, dtype=torch.int64)
    kernels.fill_accept_out_cache_loc_cpu(accepted, torch.arange(9) * 10, out)
    assert out.tolist() == [0, 20, 70, *[-7] * 6]


def test_rotate_input_ids() -> None:
    ids = torch.tensor([1, 2, 3, 4, 5, 6, 7])
    starts, lengths = torch.tensor([0, 3, 3]), torch.tensor([3, 0, 4])
    kernels.rotate_input_ids_cpu(ids, starts, lengths, torch.tensor([[91], [92], [93]]))
    assert ids.tolist() == [2, 3, 91, 5, 6, 7, 93]


def test_rotate_input_ids_to_a_chosen_position() -> None:
    ids = torch.tensor([1, 2, 3, 4])
    kernels.rotate_input_ids_cpu(ids, torch.tensor([0]), torch.tensor([4]), torch.tensor([9]), torch.tensor([1]))
    assert ids.tolist() == [2, 9, 4, 4]


def test_rotate_input_ids_of_an_empty_batch() -> None:
    empty = torch.empty(0, dtype=torch.int64)
    kernels.rotate_input_ids_cpu(empty, empty, empty, empty)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int8])
@pytest.mark.parametrize("row_shape", [(1, 1), (3, 5), (4, 64)])
def test_copy_all_layer_kv_cache(dtype: torch.dtype, row_shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    buffers = [torch.randint(-9, 9, (11, *row_shape), generator=generator).to(dtype) for _ in range(4)]
    # Rows 2 and 5 are read and written: every read must come before every write.
    source, target = [2, 5, 9], [5, 2, 10]
    expected = [buffer.clone() for buffer in buffers]
    for copy, buffer in zip(expected, buffers, strict=True):
        for a, b in zip(source, target, strict=True):
            copy.view(torch.uint8)[b] = buffer.view(torch.uint8)[a]
    kernels.copy_all_layer_kv_cache_cpu(
        torch.tensor([buffer.data_ptr() for buffer in buffers], dtype=torch.uint64),
        torch.tensor([buffer[0].numel() * buffer.element_size() for buffer in buffers]),
        torch.tensor(target),
        torch.tensor(source),
    )
    for copy, buffer in zip(expected, buffers, strict=True):
        assert torch.equal(copy.view(torch.uint8), buffer.view(torch.uint8))


def test_copying_no_rows_touches_no_memory() -> None:
    empty = torch.empty(0, dtype=torch.int64)
    kernels.copy_all_layer_kv_cache_cpu(torch.zeros(2, dtype=torch.uint64), torch.ones(2), empty, empty)


def test_the_table_names_every_kernel() -> None:
    public = {name for name, value in vars(kernels).items() if name.endswith("_cpu") and callable(value)}
    assert set(kernels.KERNELS) == public
